"""theta (phi^T g) / N, the bracket of the dot product that needs no queries x keys matrix, and its gradients.

With S = phi^T g / N, a matrix d x channels, and dy_i the gradient of y_i,

    y = theta S        dtheta = dy S^T        dS = theta^T dy        dphi = g dS^T / N        dg = phi dS / N

Results are made transposed, (batch, channels, positions), where the inputs lie so in memory: as maps do,
whose channels come first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nonlocal_nn.ops.folding import fold_vmapped_one
from nonlocal_nn.ops.products import product


def _times(rows: Tensor, columns: Tensor, like: Tensor) -> Tensor:
    """Rows (batch, positions, k) times columns (batch, n, k) transposed, laid out as `like` is."""
    if like.mT.is_contiguous():
        return product(columns, rows).mT
    return product(rows, columns)


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """left^T right, the sum over positions: (batch, left's channels, right's channels)."""
    if right.mT.is_contiguous() and not left.mT.is_contiguous():
        return product(right.mT, left.mT).mT
    return product(left.mT, right.mT)


def sums(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Y (batch, queries, channels).

    >>> theta, phi, g = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    >>> torch.allclose(sums(theta, phi, g), theta @ phi.mT @ g / 4, atol=1e-6)
    True
    """
    return _times(theta, _summed(g, phi).div_(phi.shape[1]), theta)


class DotProductSum(torch.autograd.Function):
    """apply(theta, phi, g) -> `sums`; differentiable any number of times."""

    @staticmethod
    def forward(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """The sums."""
        return sums(theta, phi, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        """Nothing is kept but the inputs: S is small work to make again."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """See the module."""
        theta, phi, g = ctx.saved_tensors
        keys = phi.shape[1]
        if torch.is_grad_enabled():  # to be differentiated again
            dS = theta.mT @ dy / keys
            return dy @ (g.mT @ phi / keys), g @ dS.mT, phi @ dS
        want_theta, want_phi, want_g = ctx.needs_input_grad
        dtheta = dphi = dg = None
        if want_theta:
            dtheta = _times(dy, _summed(phi, g).div_(keys), theta)
        if want_phi or want_g:
            dS = _summed(theta, dy).div_(keys)
            dphi = _times(g, dS, phi) if want_phi else None
            dg = _times(phi, dS.mT, g) if want_g else None
        return dtheta, dphi, dg

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Tensor) -> Any:
        """A mapped axis is one more batch axis."""
        return fold_vmapped_one(DotProductSum.apply, info.batch_size, in_dims, arguments)
