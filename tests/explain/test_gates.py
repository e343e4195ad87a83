"""Gates of squeeze-and-excitation by class: means, a csv, a figure."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nonlocal_nn as nl
from nonlocal_nn.explain.gates import draw_gates, gates_by_class, write_gates


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    nl.insert_blocks(model, ["1", "2"], block="squeeze_excitation", block_options={"hidden": 3})
    for part in model.modules():
        if isinstance(part, nl.SqueezeExcitation):
            nn.init.normal_(part.W_2.weight)
    return model.train()


def test_means_of_every_class(tmp_path: Path) -> None:
    model, x = network(), torch.randn(6, 3, 9, 9)
    labels = [0, 3, 0, 1, 3, 3]
    found = gates_by_class(model, [(x[:4], labels[:4]), (x[4:], torch.tensor(labels[4:]))])
    assert list(found) == ["1.squeeze_excitation", "2.squeeze_excitation"]
    first = found["1.squeeze_excitation"]
    gates = model[1].squeeze_excitation.gates(torch.relu(model[0](x)))
    for label in (0, 1, 3):
        chosen = [n for n, own in enumerate(labels) if own == label]
        np.testing.assert_allclose(first[label], gates[chosen].mean(dim=0), rtol=1e-5)
    assert np.isnan(first[2]).all()
    assert model.training
    assert not model[1].squeeze_excitation._forward_pre_hooks
    write_gates(tmp_path / "gates.csv", found)
    with (tmp_path / "gates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * (8 + 4)
    assert float(rows[1]["gate"]) == pytest.approx(first[0, 1])
    for name in ("gates.png", "gates.svg"):
        draw_gates(tmp_path / name, found, classes=["a", "b", "c", "d"])
        assert (tmp_path / name).stat().st_size > 1000


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 9, 9)
    with pytest.raises(ValueError, match="no squeeze-and-excitation"):
        gates_by_class(nn.Conv2d(3, 3, 1), [(x, [0, 1])])
    with pytest.raises(ValueError, match=r"3 labels, \[0, 1, 1\], for 2 images"):
        gates_by_class(network(), [(x, [0, 1, 1])])
    with pytest.raises(ValueError, match="no batch"):
        gates_by_class(network(), [])
    twice = network()
    twice = nn.Sequential(twice, nn.Conv2d(4, 3, 1), twice)
    with pytest.raises(ValueError, match="must run once"):
        gates_by_class(twice, [(x, [0, 1])])
    found = gates_by_class(network(), [(x, [0, 1])])
    with pytest.raises(ValueError, match="3 names for 2 classes"):
        draw_gates(tmp_path / "a.png", found, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="cannot write"):
        draw_gates(tmp_path / "a.gif", found)
