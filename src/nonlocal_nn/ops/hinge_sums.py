"""sum_j ReLU(a_i + b_j) g_j for every i without the N x N matrix, by sorting: O(N log N + N d).

As a function of a the sum is piecewise linear with corners at t = -b. Let t_1 <= t_2 <= ... be the sorted
corners, g in their order:

    step_k  = sum_{j<=k} g_j                    (the slope after corner k)
    hinge_k = sum_{j<=k} (t_k - t_j) g_j        (the value at corner k)
    y(a)    = hinge_k + (a - t_k) step_k        with k the last corner below a; 0 if there is none

Every weight here is a difference of corners and not negative, so nothing large is subtracted from anything
large, however far a and b lie apart (a step_k + sum b_j g_j, the obvious form, cancels). Inside blocks of
corners the sums over j are small triangular matrix products; from block to block they are carried in float64:

    S_next = S + sum_block g_j
    H_next = H + (T_next - T) S + sum_block (T_next - t_j) g_j        (T: a block's first corner)

The gradients have the same form with the roles of a and b exchanged, so they can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nonlocal_nn.ops.checks import without_autocast, working_dtype

BLOCK = 32  # corners in a block: N * BLOCK numbers of triangular weights
CHUNK_BYTES = 64 * 2**20  # of g handled at once: channels are independent of each other


def hinge_and_step_sums(a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """(sum_j ReLU(a_i + b_j) g_j, sum_j [a_i + b_j > 0] g_j), each (batch, queries, channels), in g's dtype.

    >>> a, b, g = torch.tensor([[1.0]]), torch.tensor([[3.0, -2.0]]), torch.tensor([[[1.0], [5.0]]])
    >>> hinge, step = hinge_and_step_sums(a, b, g)
    >>> hinge.item(), step.item()
    (4.0, 1.0)
    """
    batch, keys, channels = g.shape
    if keys == 0:  # an empty sum; the public functions refuse it, but gradients have the queries for keys
        return g.new_zeros(batch, a.shape[1], channels), g.new_zeros(batch, a.shape[1], channels)
    corners, order = torch.sort(-b.to(working_dtype(b.dtype)), dim=1)
    a = a.to(corners.dtype).contiguous()
    below = torch.searchsorted(corners, a)  # how many corners lie below a_i: those keys have a_i + b_j > 0
    reached = (below > 0)[:, :, None]
    last = (below - 1).clamp_(min=0)
    # Where no corner is reached the first one stands in, with a rest of 0 (there hinge_1 = 0 as well).
    rest = (a - corners.gather(1, last))[:, :, None].where(reached, 0.0)
    # Sorting puts NaN last, where no query would notice it. Eq. 1 makes every y NaN then, and so do we.
    rest = rest.where(~corners[:, -1].isnan()[:, None, None], torch.nan)

    hinge = g.new_empty(batch, a.shape[1], channels)
    step = torch.empty_like(hinge)
    width = max(16, CHUNK_BYTES // max(1, batch * keys * corners.element_size()))
    for first in range(0, channels, width):
        part = slice(first, first + width)
        with without_autocast(g.device):
            hinge_k, step_k = _sums_at_corners(corners, order, g[:, :, part])
        index = last[:, :, None].expand(-1, -1, hinge_k.shape[2])
        slope = step_k.gather(1, index)
        hinge[:, :, part] = hinge_k.gather(1, index).addcmul_(slope, rest)
        step[:, :, part] = slope.masked_fill_(~reached, 0.0)
    return hinge, step


def _sums_at_corners(corners: Tensor, order: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """hinge_k and step_k of the module's equations, (batch, padded keys, channels) in the corners' dtype."""
    batch, keys, channels = g.shape
    block = min(BLOCK, 1 << (keys - 1).bit_length())
    blocks = -(-keys // block)
    extra = blocks * block - keys
    sorted_g = g.gather(1, order[:, :, None].expand(-1, -1, channels)).to(corners.dtype)
    if extra:  # padding repeats the last corner, so that differences stay finite, with g = 0
        sorted_g = pad(sorted_g, (0, 0, 0, extra))
        corners = torch.cat([corners, corners[:, -1:].expand(-1, extra)], dim=1)
    t = corners.view(batch, blocks, block)
    sorted_g = sorted_g.view(batch, blocks, block, channels)
    ones = torch.ones(block, block, dtype=t.dtype, device=t.device).tril_()

    step = torch.matmul(ones, sorted_g)
    hinge = torch.matmul((t[..., :, None] - t[..., None, :]).relu_(), sorted_g)
    # The same sums over whole blocks, seen from the next block's first corner, carried in float64.
    here, following = t[:, :-1, 0], t[:, 1:, 0]
    block_step = step[:, :-1, -1].double()
    block_hinge = torch.matmul((following[..., None] - t[:, :-1])[..., None, :], sorted_g[:, :-1])[
        :, :, 0
    ].double()
    carried_step = pad(block_step.cumsum(dim=1), (0, 0, 1, 0))
    block_hinge += (following.double() - here)[..., None] * carried_step[:, :-1]
    carried_hinge = pad(block_hinge.cumsum(dim=1), (0, 0, 1, 0)).to(t.dtype)
    carried_step = carried_step.to(t.dtype)

    hinge += carried_hinge[:, :, None]
    hinge.addcmul_((t - t[..., :1])[..., None], carried_step[:, :, None])
    step += carried_step[:, :, None]
    return hinge.flatten(1, 2), step.flatten(1, 2)


class HingeSum(torch.autograd.Function):
    """apply(a, b, g) -> sum_j ReLU(a_i + b_j) g_j; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, g: Tensor) -> Tensor:
        """The sum; nothing is kept but the inputs."""
        ctx.save_for_backward(a, b, g)
        return hinge_and_step_sums(a, b, g)[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dg_j = sum_i ReLU(a_i + b_j) dy_i;  da_i = dy_i . sum_j [..] g_j;  db_j = g_j . sum_i [..] dy_i."""
        a, b, g = ctx.saved_tensors
        want_a, want_b, want_g = ctx.needs_input_grad
        da = db = dg = None
        if want_a:
            da = (StepSum.apply(a, b, g) * dy).sum(dim=2)
        if torch.is_grad_enabled():
            dg, step = HingeSum.apply(b, a, dy), StepSum.apply(b, a, dy)
        elif want_b or want_g:
            dg, step = hinge_and_step_sums(b, a, dy)
        if want_b:
            db = (step * g).sum(dim=2)
        return da, db, dg if want_g else None


class StepSum(torch.autograd.Function):
    """apply(a, b, g) -> sum_j [a_i + b_j > 0] g_j; its slope in a and b is 0 almost everywhere."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, g: Tensor) -> Tensor:
        """The sum; nothing is kept but a and b."""
        ctx.save_for_backward(a, b)
        return hinge_and_step_sums(a, b, g)[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, None, Tensor]:
        """dg_j = sum_i [a_i + b_j > 0] dy_i."""
        a, b = ctx.saved_tensors
        return None, None, StepSum.apply(b, a, dy)
