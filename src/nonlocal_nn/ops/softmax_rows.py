"""The softmax average without the N x N matrix: a few query rows at a time in one reused buffer.

With l_ij = scale theta_i . phi_j, m_i = max_j l_ij, p_ij = exp(l_ij - m_i) and s_i = sum_j p_ij the forward
pass is

    y_i = (1/s_i) sum_j p_ij g_j

and only m and s, two numbers a row, are kept beside inputs and result. The backward pass makes p again, row
chunk by row chunk, unless told to keep it: four matrix products instead of five. With dy_i the gradient of
y_i and u_i = dy_i / s_i,

    dg_j     = sum_i p_ij u_i
    dl_ij    = p_ij (u_i . g_j - (1/s_i) sum_k p_ik u_i . g_k)
    dtheta_i = scale sum_j dl_ij phi_j,      dphi_j = scale sum_i dl_ij theta_i

The sum over k is u_i . y_i, but taken from the same products as the term before it: where one key has all the
weight, the two cancel exactly. m and s are kept apart, not as one log-sum-exp: next to logits of 1e4 the
logarithm of s would be rounded to 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nonlocal_nn.ops.checks import without_autocast

# What one buffer of logits may take. The backward pass has two of them. On the CPU it should stay in the
# last-level cache.
CPU_CHUNK_BYTES = 4 * 2**20
DEVICE_CHUNK_BYTES = 256 * 2**20


def chunks(batch: int, queries: int, row_bytes: int, chunk_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Batch and query slices that cover everything, each with at most `chunk_bytes` of logits (or one row).

    >>> [(b.start, b.stop, q.start, q.stop) for b, q in chunks(2, 5, row_bytes=10, chunk_bytes=30)]
    [(0, 1, 0, 3), (0, 1, 3, 5), (1, 2, 0, 3), (1, 2, 3, 5)]
    """
    rows = max(1, chunk_bytes // row_bytes)
    # Small matrices (one frame, one position across frames) go many at a time, large ones a part at a time.
    batch_step = max(1, rows // max(1, queries))
    for first in range(0, batch, batch_step):
        for row in range(0, queries, rows):
            yield slice(first, min(first + batch_step, batch)), slice(row, min(row + rows, queries))


class _Buffer:
    """One allocation, lent again and again as (batch, rows, keys)."""

    def __init__(self, like: Tensor, keys: int) -> None:
        self._flat = like.new_empty(0)
        self._keys = keys

    def take(self, batch: int, rows: int) -> Tensor:
        size = batch * rows * self._keys
        if self._flat.numel() < size:  # the first chunk is the largest
            self._flat = self._flat.new_empty(size)
        return self._flat[:size].view(batch, rows, self._keys)


def _exp_below(logits: Tensor, row_max: Tensor) -> None:
    """exp(logits - row_max) in place; weights under 4e-18 (float64: 1e-87) of a row's largest become zero.

    Even a million of them are far below the rounding of any sum, but their products with gradients would be
    denormal numbers, which slow a CPU's exp and matrix products many times over.
    """
    floor = -200.0 if logits.dtype == torch.float64 else -40.0
    torch.threshold_(logits.sub_(row_max), floor, float("-inf")).exp_()


def _plan(theta: Tensor, phi: Tensor) -> Iterator[tuple[slice, slice]]:
    chunk_bytes = CPU_CHUNK_BYTES if theta.device.type == "cpu" else DEVICE_CHUNK_BYTES
    return chunks(theta.shape[0], theta.shape[1], phi.shape[1] * phi.element_size(), chunk_bytes)


class SoftmaxAverage(torch.autograd.Function):
    """apply(theta, phi, g, scale, keep) -> y; differentiable once. `keep` saves the matrix p."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, phi: Tensor, g: Tensor, scale: float, keep: bool) -> Tensor:
        """Y, in chunks of rows; see the module's equations."""
        batch, queries, _ = theta.shape
        y = theta.new_empty(batch, queries, g.shape[2])
        row_max, row_sum = theta.new_empty(batch, queries, 1), theta.new_empty(batch, queries, 1)
        keep = keep and any(ctx.needs_input_grad)
        kept = theta.new_empty(batch, queries, phi.shape[1]) if keep else theta.new_empty(0)
        buffer = _Buffer(theta, phi.shape[1])
        for some, rows in _plan(theta, phi):
            shape = (some.stop - some.start, rows.stop - rows.start)
            p = kept[some, rows] if keep else buffer.take(*shape)
            torch.bmm(theta[some, rows] * scale, phi[some].transpose(1, 2), out=p)
            row_max[some, rows] = p.amax(dim=2, keepdim=True)
            _exp_below(p, row_max[some, rows])
            row_sum[some, rows] = p.sum(dim=2, keepdim=True)
            y[some, rows] = torch.bmm(p, g[some]).div_(row_sum[some, rows])
        ctx.scale, ctx.kept = scale, keep
        ctx.save_for_backward(theta, phi, g, row_max, row_sum, kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that are asked for; differentiating them again raises an error."""
        with torch.no_grad(), without_autocast(dy.device):
            grads: tuple[Tensor | None, ...] = _gradients(ctx, dy)
        if torch.is_grad_enabled():
            wanted = [grad for grad in grads if grad is not None]
            # Inputs that require gradients, so that a second differentiation reaches the error below.
            guarded = iter(_FirstDerivativeOnly.apply(*[grad.detach().requires_grad_() for grad in wanted]))
            grads = tuple(None if grad is None else next(guarded) for grad in grads)
        return (*grads, None, None)


class _FirstDerivativeOnly(torch.autograd.Function):
    """Passes gradients on, and says what to do when they are to be differentiated once more."""

    @staticmethod
    def forward(_: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(_: Any, *_second: Tensor) -> Any:
        raise NotImplementedError(
            "gaussian in linear memory has first derivatives only; for second derivatives use another "
            "pairwise function, or nonlocal_nn.ops.reference.gaussian, which holds the queries x keys matrix"
        )


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    theta, phi, g, row_max, row_sum, kept = ctx.saved_tensors
    want_theta, want_phi, want_g, *_ = ctx.needs_input_grad
    dtheta = torch.zeros_like(theta) if want_theta else None
    dphi = torch.zeros_like(phi) if want_phi else None
    dg = torch.zeros_like(g) if want_g else None
    u = dy / row_sum
    first, second = _Buffer(theta, phi.shape[1]), _Buffer(theta, phi.shape[1])
    for some, rows in _plan(theta, phi):
        shape = (some.stop - some.start, rows.stop - rows.start)
        if ctx.kept:
            p = kept[some, rows]
        else:
            p = first.take(*shape)
            torch.bmm(theta[some, rows] * ctx.scale, phi[some].transpose(1, 2), out=p)
            _exp_below(p, row_max[some, rows])
        if dg is not None:
            dg[some].baddbmm_(p.transpose(1, 2), u[some, rows])
        if dtheta is None and dphi is None:
            continue
        dl = second.take(*shape)
        torch.bmm(u[some, rows], g[some].transpose(1, 2), out=dl)
        dl.mul_(p)
        dl.addcmul_(p, dl.sum(dim=2, keepdim=True).div_(row_sum[some, rows]), value=-1)
        if dtheta is not None:
            dtheta[some, rows] = torch.bmm(dl, phi[some]).mul_(ctx.scale)
        if dphi is not None:
            dphi[some].baddbmm_(dl.transpose(1, 2), theta[some, rows], alpha=ctx.scale)
    return dtheta, dphi, dg
