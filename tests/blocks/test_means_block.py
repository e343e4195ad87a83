"""The bridge from non-local means to the non-local operation."""

from __future__ import annotations

import math

import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn.blocks.means_block import NonLocalMeansBlock
from nonlocal_nn.ops.means import reference


@pytest.mark.parametrize(("channels", "patch", "h"), [(1, 3, 0.1), (3, 5, 0.3), (2, 1, 0.05)])
def test_it_starts_as_non_local_means(channels: int, patch: int, h: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, channels, 7, 9, dtype=torch.float64)
    block = NonLocalMeansBlock(channels, patch, h).double()
    with torch.no_grad():
        block.log_h.fill_(math.log(h))  # which was rounded to float32
    found = block(x)
    for image, result in zip(x, found, strict=True):
        expected = reference.denoise(image.movedim(0, -1).numpy(), (patch,) * 2, (9, 9), h=h)
        torch.testing.assert_close(result.movedim(0, -1), torch.from_numpy(expected), atol=1e-10, rtol=0)
    single = NonLocalMeansBlock(channels, patch, h)(x.float())
    torch.testing.assert_close(single, found.float(), atol=1e-4, rtol=0)


def test_gradients() -> None:
    torch.manual_seed(0)
    block = NonLocalMeansBlock(2, 3, 0.4).double()
    x = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in block.named_parameters()]

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *block.parameters()))


def test_it_learns_to_denoise_better_than_where_it_starts() -> None:
    torch.manual_seed(0)
    places = torch.arange(24) / 4
    pictures = torch.stack(
        [torch.outer(torch.sin(places + k).sign(), torch.cos(places * 2 - k).sign()) for k in range(9)]
    )
    clean = 0.5 + 0.3 * pictures[:, None]
    block = NonLocalMeansBlock(1, 3, 0.3)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.01)
    held_out = clean[8:] + 0.2 * torch.randn(1, 1, 24, 24)
    before = float((block(held_out) - clean[8:]).detach().square().mean())
    for _ in range(40):
        optimizer.zero_grad()
        noisy = clean[:8] + 0.2 * torch.randn(8, 1, 24, 24)
        (block(noisy) - clean[:8]).square().mean().backward()
        optimizer.step()
    assert float((block(held_out) - clean[8:]).detach().square().mean()) < 0.8 * before


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="an odd patch_size"):
        NonLocalMeansBlock(1, 4)
    with pytest.raises(ValueError, match="takes 3 channels and more than 3 pixels"):
        NonLocalMeansBlock(3)(torch.rand(1, 3, 3, 9))
    assert "NonLocalMeansBlock" in nl.__all__
