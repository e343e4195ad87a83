"""The softmax average of positions over themselves: half of the logits, and half of the exponentials.

Where theta is phi, the gaussian of Eq. 2 with nothing subsampled, l_ij = scale x_i . x_j is symmetric. With
r_i = l_ii / 2 and w_i = exp(r_i - max r), the numbers

    e_ij = exp(l_ij - r_j - max r) = w_i exp(-scale |x_i - x_j|^2 / 2)

are at most 1, and one of them serves both of its positions:

    y_i = n_i / z_i,      n_i = sum_{j<i} e_ji g_j + 1 / w_i sum_{j>=i} e_ij w_j g_j

with z_i the same sums of ones in place of g. Square tiles on and above the diagonal are made; the rows of a
tile give a part of the second sum, its columns a part of the first one, which later rows wait for. Between
the products a tile is touched once, to exponentiate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nonlocal_nn.ops.cpu.gemm import Right, product
from nonlocal_nn.ops.cpu.softmax_rows import LONGEST_SUM_LARGE_CHUNK
from nonlocal_nn.ops.cpu.workspace import scratch

FEW = 1024  # positions, below which whole rows are as fast
TILE = 784  # about so many rows and columns

# Of r. What is left out is e_ij < exp(LEFT_OUT - 2 spread), a weight of at most exp(LEFT_OUT) beside the one
# of i on itself: 1e-13 (float64: 1e-26). Below exp(-87) float32 has denormal numbers, for which torch's exp
# took 9 ms a tile and not 0.5: a block on 2 x 3136 positions with peaked weights took 534 ms, 389 without.
LARGEST_SPREAD = 28.0
LEFT_OUT = {torch.float32: -30.0, torch.float64: -60.0}

_ONE = slice(0, 1)


def suits(theta: Tensor, phi: Tensor, g: Tensor, scale: float, memory_budget: int | None) -> bool:
    """Whether these are the same positions, enough of them, their sizes not too far apart, within the budget.

    >>> x, g = torch.rand(1, 2000, 4), torch.rand(1, 2000, 2)
    >>> suits(x, x, g, 1.0, None), suits(x, x.clone(), g, 1.0, None), suits(x, x, g, 1.0, memory_budget=1000)
    (True, False, False)
    >>> x[0, 5] = 100
    >>> suits(x, x, g, 1.0, None)
    False
    """
    if type(theta) is not Tensor or type(phi) is not Tensor:  # one without data, of a program in the making
        return False
    same = theta.data_ptr() == phi.data_ptr() and theta.shape == phi.shape and theta.stride() == phi.stride()
    if not same or theta.device.type != "cpu" or theta.shape[1] < FEW or theta.numel() == 0 or scale <= 0:
        return False
    if memory_budget and memory_budget < _bytes(theta, g):
        return False
    half = _half_sizes(theta, scale)
    return bool((half.amax(dim=1) - half.amin(dim=1)).max() <= LARGEST_SPREAD)  # NaN: no


def forward(x: Tensor, g: Tensor, scale: float) -> Tensor:
    """Y (batch, positions, channels) of x (batch, positions, d).

    >>> x, g = torch.randn(1, 5, 4), torch.randn(1, 5, 2)
    >>> torch.allclose(forward(x, g, 1.0), (x @ x.mT).softmax(dim=2) @ g, atol=1e-6)
    True
    """
    y = x.new_empty(x.shape[0], x.shape[1], g.shape[2])
    half = _half_sizes(x, scale)
    for item in (slice(number, number + 1) for number in range(x.shape[0])):
        _forward(x[item], g[item], scale, half[item], y[item])
    return y


def _half_sizes(x: Tensor, scale: float) -> Tensor:
    sizes: Tensor = torch.linalg.vector_norm(x, dim=2)
    return sizes.square_().mul_(scale / 2)


def _bytes(x: Tensor, g: Tensor) -> int:
    """Beside inputs and result: x once or twice, g with its ones four times, two tiles."""
    positions, d = x.shape[1:]
    return (positions * (2 * d + 4 * (g.shape[2] + 1)) + 2 * TILE**2) * x.element_size()


def _forward(x: Tensor, g: Tensor, scale: float, half: Tensor, y: Tensor) -> None:
    """One entry of a batch, into y."""
    largest = half.max()
    floor = LEFT_OUT[x.dtype] - 2 * (largest - half.min()).item()
    w = (half - largest).exp_().unsqueeze(2)
    ones_too = torch.cat([g, torch.ones_like(w)], dim=2)
    weighted, shift = ones_too * w, -(half + largest)[0]
    queries = x if scale == 1 else x * scale
    tiles = _tiles(x.shape[1])
    size = tiles[0].stop
    buffer = scratch((size * size,), x)
    for_logits = [Right(x[:, tile], size, n, LONGEST_SUM_LARGE_CHUNK) for n, tile in enumerate(tiles, 1)]
    for_sums = [Right(weighted[:, tile].mT, size, n) for n, tile in enumerate(tiles, 1)]
    # transposed, as its products are made
    from_earlier = [x.new_zeros(1, g.shape[2] + 1, tile.stop - tile.start) for tile in tiles]
    for number, rows in enumerate(tiles):
        left, columns = queries[:, rows].contiguous(), ones_too[:, rows].mT.contiguous()
        sums = torch.zeros_like(ones_too[:, rows])
        for other in range(number, len(tiles)):
            keys = tiles[other]
            shape = (1, rows.stop - rows.start, keys.stop - keys.start)
            lent = buffer[: shape[1] * shape[2]].view(shape)
            e = for_logits[other].product(_ONE, left, lent, bias=shift[keys])
            torch.threshold_(e, floor, -torch.inf).exp_()
            sums += for_sums[other].product(_ONE, e)
            if other > number:
                from_earlier[other] += product(columns, e.mT)
        sums = sums.div_(w[:, rows]).add_(from_earlier[number].mT)
        torch.div(sums[:, :, :-1], sums[:, :, -1:], out=y[:, rows])


def _tiles(count: int) -> list[slice]:
    """Slices of about TILE positions and equal lengths, but for the last.

    >>> [(tile.start, tile.stop) for tile in _tiles(2001)]
    [(0, 667), (667, 1334), (1334, 2001)]
    """
    size = -(-count // max(1, round(count / TILE)))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]
