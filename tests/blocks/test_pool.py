"""The pool of a block: the same numbers with and without a backward pass to follow, and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nonlocal_nn.blocks.pool import SpacePool

TORCHS = {
    1: lambda x: F.max_pool1d(x, 2),
    2: lambda x: F.max_pool2d(x, 2),
    3: lambda x: F.max_pool3d(x, (1, 2, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(2, 3, 9), (2, 3, 8), (1, 3, 7, 6), (0, 3, 4, 4), (2, 3, 3, 5, 4), (1, 2, 1, 2, 2), (3, 4, 2)]
)
def test_it_is_torchs_max_pooling(shape, dtype):
    x = torch.randn(shape).to(dtype)
    x.view(-1)[1:2] = torch.nan
    pool, theirs = SpacePool(len(shape) - 2), TORCHS[len(shape) - 2]
    for given in (x, x.clone().requires_grad_(), x.mT.contiguous().mT):
        torch.testing.assert_close(pool(given), theirs(given), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 7, 6), (0, 3, 4, 4), (2, 3, 3, 5, 4), (1, 2, 1, 2, 2)])
def test_its_gradient_is_torchs(shape):
    x = torch.randint(3, shape).float().requires_grad_()  # few values: many are equal
    pool, theirs = SpacePool(len(shape) - 2), TORCHS[len(shape) - 2]
    dy = torch.randn(pool(x).shape)
    (ours,) = torch.autograd.grad(pool(x), x, dy)
    assert torch.equal(ours, torch.autograd.grad(theirs(x), x, dy)[0])


def test_a_map_too_small_to_pool_is_refused_in_both_forms():
    x = torch.zeros(1, 1, 2, 1, 4)
    for given in (x, x.clone().requires_grad_()):
        with pytest.raises(RuntimeError, match=r"[Oo]utput size is too small"):
            SpacePool(3)(given)


def test_it_maps_over_a_batch_of_its_own():
    x = torch.randn(5, 2, 3, 4, 6, 6)
    torch.testing.assert_close(
        torch.func.vmap(SpacePool(3))(x), torch.stack([SpacePool(3)(one) for one in x])
    )
