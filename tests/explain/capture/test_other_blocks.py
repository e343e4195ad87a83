"""Any block that weighs positions can be looked into, not the non-local one alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nonlocal_nn as nl
from nonlocal_nn.explain.capture.affinity import Relating, capture


@pytest.mark.parametrize("pooling", ["softmax", "average"])
def test_rows_of_global_context(pooling: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
    nl.insert_blocks(network, "1", block="global_context", block_options={"pooling": pooling})
    block = network[1].global_context
    assert isinstance(block, Relating)
    with torch.no_grad():
        block.add.W_v2.weight.normal_()
    image = torch.rand(1, 3, 32, 24)
    captured = capture(network, image)
    found = captured.blocks["1.global_context"]
    assert (found.queries.shape, found.keys.shape) == ((1, 16, 12), (1, 16, 12))
    rows = found.rows([0, 100])
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(rows[0], rows[1])  # one row for all
    x = torch.relu(network[0](image))
    expected = block.affinity(x, torch.tensor([0]))[0, 0]
    np.testing.assert_allclose(rows[0], expected, rtol=1e-4, atol=1e-7)
    assert found.function.label == "global context"
    assert found.response().shape == (192,)
    assert (found.response() > 0).all()


def test_a_figure_and_a_page_of_global_context(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU())
    nl.insert_blocks(network, "1", block="global_context")
    shown = nl.explain(network, torch.rand(1, 3, 64, 64))
    for name in ("figure.png", "page.html"):
        shown.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_squeeze_and_excitation_has_no_rows() -> None:
    assert not isinstance(nl.SqueezeExcitation(8), Relating)
    network = nl.insert_blocks(nn.Sequential(nn.Conv2d(3, 8, 3)), "0", block="squeeze_excitation")
    with pytest.raises(ValueError, match="no non-local block to look into"):
        capture(network, torch.rand(1, 3, 16, 16))
