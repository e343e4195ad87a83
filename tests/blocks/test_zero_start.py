"""A new block is the identity however its parts are reset; a norm is folded with all that makes W_z."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import nonlocal_nn as nl


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "frozen", None])
@pytest.mark.parametrize("order", ["modules", "apply", "block"])
def test_meta_then_to_empty_then_reset(dims: int, norm: Any, order: str) -> None:
    with torch.device("meta"):
        block = nl.NonLocalBlock(6, dims=dims, norm=norm)
    block = block.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.fill_(3)  # what to_empty leaves is arbitrary
    if order == "modules":
        for module in block.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    elif order == "apply":
        block.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    else:
        block.reset_parameters()
    x = torch.randn(2, 6, *(4, 6, 8)[3 - dims :])
    for mode in (True, False):
        assert torch.equal(block.train(mode)(x), x)


def _lose(block: nl.NonLocalBlock) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    nn.utils.parametrize.register_parametrization(block.W_z, "weight", Doubled())


@pytest.mark.parametrize(
    "change",
    [
        lambda block: None,
        lambda block: parametrizations.spectral_norm(block.W_z),
        lambda block: parametrizations.weight_norm(block.W_z),
        lambda block: parametrizations.weight_norm(block.W_z, "bias", dim=None),
        lambda block: spectral_norm(block.W_z),
        lambda block: weight_norm(block.W_z),
        lambda block: prune.l1_unstructured(block.W_z, "weight", 0.5),
        _lose,
    ],
)
def test_folding_keeps_what_computes_the_weight(change: Callable[[nl.NonLocalBlock], object]) -> None:
    torch.manual_seed(0)
    block = nl.NonLocalBlock(6, dims=2)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert block.norm is not None
    block.norm.running_mean.normal_()  # type: ignore[operator, union-attr]
    block.norm.running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    change(block)
    block.eval()
    x = torch.randn(2, 6, 6, 8)
    before = block(x)
    torch.testing.assert_close(block.fold_norm()(x), before, rtol=1e-4, atol=1e-5)
    assert isinstance(block.W_z.weight, nn.Parameter)


def test_other_norms_are_not_folded() -> None:
    block = nl.NonLocalBlock(6, dims=2).eval()
    block.norm = nn.GroupNorm(2, 6)
    with pytest.raises(ValueError, match="not a GroupNorm"):
        block.fold_norm()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_converters_of_torch_know_the_norm(dims: int) -> None:
    block = nn.SyncBatchNorm.convert_sync_batchnorm(nl.NonLocalBlock(6, dims=dims))
    assert isinstance(block.norm, nn.SyncBatchNorm)
    assert not block.norm.weight.any()
