"""Heads of self-attention, looked into: where they lie, what their rows are, what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nonlocal_nn as nl
from nonlocal_nn.blocks.self_attention import SelfAttention2d
from nonlocal_nn.explain.capture.affinity import capture
from nonlocal_nn.explain.explanation import Explanation
from nonlocal_nn.explain.queries import asked_rows
from nonlocal_nn.explain.view import View


def _network(**options) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), SelfAttention2d(4, 4, heads=3, **options))


@pytest.mark.parametrize("options", [{}, {"padding": (1, 2, 0, 1)}, {"stride": 2}, {"content": True, "d": 2}])
def test_rows_are_the_layers_and_lie_where_they_belong(options) -> None:
    model = _network(**options)
    captured = capture(model, torch.rand(1, 3, 16, 12))
    assert list(captured.blocks) == ["1 head 0", "1 head 1", "1 head 2"]
    layer = model[1]
    x = model[0](torch.zeros(1, 3, 16, 12))
    left, _, top, _ = layer.padding
    for number, block in enumerate(captured.blocks.values()):
        assert block.layer == "1"
        assert block.keys.shape[1:] == layer.key_shape(x.shape[2:])
        assert block.keys.first[1:] == (0.5 - 2 * top, 0.5 - 2 * left)
        assert block.queries.step[1] == 2 * layer.stride[0]
        row = block.rows([1])[0]
        assert row.sum() == pytest.approx(1, abs=1e-5)
        assert block.head is not None
        centre = layer.centres[number].detach().numpy()
        np.testing.assert_allclose(block.head.centre, 2 * centre, rtol=1e-6)


def test_a_sharp_head_looks_at_its_centre() -> None:
    model = _network(padding=1)
    with torch.no_grad():
        model[1].spreads.fill_(30.0)
        model[1].centres.copy_(torch.tensor([[1.0, 2.0]] * 3))
    for block in capture(model, torch.rand(1, 3, 16, 12)).blocks.values():
        place = block.keys.centres()[block.rows([0])[0].argmax()]
        assert (place - block.queries.centres()[0])[1:].tolist() == [2, 4]


def test_ellipses() -> None:
    layer = SelfAttention2d(2, 2, heads=2, position="gaussian")
    with torch.no_grad():
        layer.spreads[0] = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
        layer.spreads[1] = torch.zeros(2, 2)
    shapes = layer.head_shapes()
    assert shapes is not None
    assert shapes[0][1].tolist() == [[0.25, 0.0], [0.0, 4.0]]
    assert SelfAttention2d(2, 2, position="learned", largest_map=(4, 4)).head_shapes() is None
    quadratic = SelfAttention2d(2, 2, heads=1)
    with torch.no_grad():
        quadratic.spreads.fill_(0.0)
    assert quadratic.head_shapes()[0][1].diagonal().isinf().all()  # type: ignore[index]


@pytest.mark.parametrize("position", ["quadratic", "gaussian", "learned"])
def test_pictures_and_pages(position, tmp_path: Path) -> None:
    size = (8, 8) if position == "learned" else None
    explained = nl.explain(_network(position=position, largest_map=size), torch.rand(1, 3, 16, 16))
    assert isinstance(explained, Explanation)
    rows = asked_rows(explained.captured, View())
    assert [block.name for block, _ in rows] == ["1 head 0", "1 head 1", "1 head 2"]
    assert [b.name for b, _ in asked_rows(explained.captured, View(block="1 head 2"))] == ["1 head 2"]
    for name in ("figure.png", "page.html"):
        assert explained.save(tmp_path / name).stat().st_size > 1000


def test_what_cannot_be_asked() -> None:
    model = _network()
    with pytest.raises(ValueError, match=r"nearest are 1 head 2"):
        nl.explain(model, torch.rand(1, 3, 16, 16), block="1 head 7")
    with pytest.raises(ValueError, match="none of the model's"):
        capture(_Unused(), torch.rand(1, 3, 4, 4))


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = SelfAttention2d(3, 3)

    def forward(self, x):
        return x
