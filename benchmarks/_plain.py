"""The operation as everyone writes it in PyTorch, on plain tensors and as a block.

The functions take (batch, positions, channels). `PlainBlock` has its own copy of a NonLocalBlock's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonlocal_nn import NonLocalBlock


def gaussian(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """matmul, softmax, matmul."""
    return (theta @ phi.transpose(1, 2)).softmax(dim=-1) @ g


def sdpa(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """The same by PyTorch's own fused function, which picks its kernel by itself."""
    heads = (theta[:, None], phi[:, None], g[:, None])
    return F.scaled_dot_product_attention(*heads, scale=1.0)[:, 0]


def dot_product(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """matmul, division by the number of keys, matmul."""
    return ((theta @ phi.transpose(1, 2)) / phi.shape[1]) @ g


def concatenation_pairs(theta: Tensor, phi: Tensor, w_f: Tensor, g: Tensor) -> Tensor:
    """Every pair concatenated, as the published blocks do: queries x keys x 2d numbers."""
    queries, keys = theta.shape[1], phi.shape[1]
    pairs = torch.cat(
        [theta[:, :, None].expand(-1, -1, keys, -1), phi[:, None].expand(-1, queries, -1, -1)], dim=3
    )
    return ((pairs @ w_f).relu() / keys) @ g


def concatenation_sums(theta: Tensor, phi: Tensor, w_f: Tensor, g: Tensor) -> Tensor:
    """ReLU(a_i + b_j) by broadcasting: queries x keys numbers."""
    d = theta.shape[2]
    return concatenation_of_scores(theta @ w_f[:d], phi @ w_f[d:], g)


def concatenation_of_scores(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """The same from a (batch, queries) and b (batch, keys)."""
    return ((a[:, :, None] + b[:, None, :]).relu() / b.shape[1]) @ g


class PlainBlock(nn.Module):
    """z = norm(W_z y) + x over all positions, straight; same weights as the given block, same results.

    >>> block = NonLocalBlock(8, dims=2)
    >>> _ = nn.init.ones_(block.norm.weight)
    >>> x = torch.randn(1, 8, 6, 6)
    >>> torch.allclose(PlainBlock(block)(x), block(x), atol=1e-5)
    True

    `average` (theta, phi, g) replaces matmul-softmax-matmul where another form of the softmax is measured.
    """

    def __init__(
        self, block: NonLocalBlock, average: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        if block.span != "spacetime" or block.temporal_groups != 1:
            raise ValueError(f"the plain block looks at all positions; got span={block.span!r}")
        self.pairwise, self.subsample_at, self.scale = block.pairwise, block.subsample_at, block.scale
        own = copy.deepcopy(block)
        self.theta, self.phi, self.g, self.W_z = own.theta, own.phi, own.g, own.W_z
        self.w_f, self.norm = own.w_f, own.norm
        pools = (nn.MaxPool1d(2), nn.MaxPool2d(2), nn.MaxPool3d((1, 2, 2)))
        self.pool = pools[block.dims - 1] if block.subsample else nn.Identity()
        self.average = average or gaussian

    def forward(self, x: Tensor) -> Tensor:
        """Z, of x's shape."""
        before = self.pool(x) if self.subsample_at == "input" else x
        phi, g = before if self.phi is None else self.phi(before), self.g(before)
        if self.subsample_at == "embedding":
            phi, g = self.pool(phi), self.pool(g)
        theta = x if self.theta is None else self.theta(x)
        theta, phi, g = (value.flatten(2).transpose(1, 2) for value in (theta, phi, g))
        if self.scale != 1:
            theta = theta * self.scale
        if self.w_f is not None:
            y = concatenation_pairs(theta, phi, self.w_f, g)
        elif self.pairwise == "dot_product":
            y = dot_product(theta, phi, g)
        else:
            y = self.average(theta, phi, g)
        z = self.W_z(y.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]))
        return x + (z if self.norm is None else self.norm(z))
