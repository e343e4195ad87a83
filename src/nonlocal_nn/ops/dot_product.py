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

from nonlocal_nn.ops.cpu.gemm import product
from nonlocal_nn.ops.vmap import fold_vmapped


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


def sums(theta: Tensor, phi: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Y (batch, queries, channels), and S transposed (batch, channels, d).

    >>> theta, phi, g = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    >>> y, S = sums(theta, phi, g)
    >>> torch.allclose(y, theta @ phi.mT @ g / 4, atol=1e-6), torch.allclose(y, theta @ S.mT, atol=1e-6)
    (True, True)
    """
    S = _summed(g, phi).div_(phi.shape[1])
    return _times(theta, S, theta), S


class DotProductSum(torch.autograd.Function):
    """apply(theta, phi, g) -> `sums`; y can be differentiated any number of times."""

    @staticmethod
    def forward(theta: Tensor, phi: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The sums."""
        return sums(theta, phi, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep S, which is no larger than the inputs where this is used, and a seventh of all the work."""
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        """See the module."""
        if dy is None:
            return None, None, None
        theta, phi, g, S = ctx.saved_tensors
        keys = phi.shape[1]
        if torch.is_grad_enabled():  # to be differentiated again
            dS = theta.mT @ dy / keys
            return dy @ (g.mT @ phi / keys), g @ dS.mT, phi @ dS
        want_theta, want_phi, want_g = ctx.needs_input_grad
        dtheta = dphi = dg = None
        if want_theta:
            dtheta = _times(dy, S.mT, theta)
        if want_phi or want_g:
            dS = _summed(theta, dy).div_(keys)
            dphi = _times(g, dS, phi) if want_phi else None
            dg = _times(phi, dS.mT, g) if want_g else None
        return dtheta, dphi, dg

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Tensor) -> Any:
        """A mapped axis is one more batch axis."""
        return fold_vmapped(DotProductSum.apply, info.batch_size, in_dims, arguments)
