"""Networks that share layers start alike in them, whatever else they have."""

from __future__ import annotations

import pytest
import torch

from nonlocal_nn.models.build import build_model
from nonlocal_nn.models.catalog import get_spec


@pytest.mark.parametrize("other", ["c2d_tiny_nl1", "c2d_tiny_nl2"])
def test_shared_layers_start_equal(other: str) -> None:
    plain, blocks = build_model(get_spec("c2d_tiny"), seed=3), build_model(get_spec(other), seed=3)
    theirs = dict(blocks.named_parameters())
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, theirs[name]), name


def test_shared_parts_of_blocks_start_equal() -> None:
    embedded = build_model(get_spec("c2d_tiny_nl1"), seed=3)
    for changes in ({"pairwise": "gaussian"}, {"pairwise": "concatenation"}, {"span": "time"}):
        other = build_model(get_spec("c2d_tiny_nl1", **changes), seed=3)
        theirs = dict(embedded.named_parameters())
        shared = [name for name, _ in other.named_parameters() if name in theirs]
        assert "res3.nonlocal0.g.weight" in shared
        assert all(torch.equal(other.get_parameter(name), theirs[name]) for name in shared)


def test_seeds_and_layers_differ_and_the_global_numbers_are_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.randn(2)
    first, second = build_model(get_spec("c2d_tiny"), seed=0), build_model(get_spec("c2d_tiny"), seed=1)
    assert not torch.equal(first.stem.conv.weight, second.stem.conv.weight)
    kernels = first.get_submodule("res3")
    assert not torch.equal(kernels[0].conv1.weight.flatten()[:9], kernels[1].conv1.weight.flatten()[:9])  # type: ignore[index]
    torch.manual_seed(0)
    assert torch.equal(torch.randn(2), expected)
