"""sum_j ReLU(a_i + b_j) g_j over the keys of all ranks, each rank's keys sorted by themselves.

A sum over keys is the sum over shards of the sums over each shard's keys, and those are what
`nonlocal_nn.ops.concatenation` computes from the shard's sorted prefixes: so far-apart a and b do not cancel
here either. Shards of (b, g) travel in a ring; in the backward pass

    dg_j = sum_i ReLU(a_i + b_j) dy_i,   db_j = g_j . sum_i [a_i + b_j > 0] dy_i

are accumulated from rank to rank as they travel on with their keys, and on its own rank

    da_i = dy_i . sum_j [a_i + b_j > 0] g_j

Why a ring. With N keys on R ranks it sends N (channels + 1) (R - 1) / R numbers forward over each link,
whatever the values are. Sorting all keys across the ranks, so that each owns an interval of values, would
send about 2 N (channels + 1) / R, that is more for two ranks and two thirds for four; and a rank in whose
interval most queries fall would need memory for most of the result. A ring in which queries travel and meet
each rank's sorted keys sends as much as ours, but for each query, and there are four queries for each key
where keys are subsampled in two axes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nonlocal_nn._typing import Float
from nonlocal_nn.distributed.agreement import Shards, agree_on_shards, is_split
from nonlocal_nn.distributed.ring import checked_gradients, ring
from nonlocal_nn.ops import concatenation as whole
from nonlocal_nn.ops.checks import check_scores, without_autocast, working_dtype
from nonlocal_nn.ops.concatenation import hinge_sums, step_sums


def concatenation(
    a: Float[Tensor, "batch query"],
    b: Float[Tensor, "batch key"],
    g: Float[Tensor, "batch key channel"],
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch query channel"]:
    """y_i = 1/N sum_j ReLU(a_i + b_j) g_j (Eqs. 1 and 5), j over the N keys of all ranks.

    >>> import torch
    >>> b, g = torch.tensor([[3.0, -2.0]]), torch.tensor([[[1.0], [5.0]]])
    >>> concatenation(torch.tensor([[1.0]]), b, g, group=None)
    tensor([[[2.]]])

    Keys and values travel in a ring, and each shard's sorted prefixes give its part of the sum (see
    this module, also for why). With R ranks each link carries N (1 + channels)
    (R - 1) / R numbers forward, and backward those once more and N (1 + channels) gradients. Every rank goes
    through all keys: memory is split over the ranks, this operation's time is not. Second derivatives raise
    NotImplementedError.

    Raises:
        ValueError: on every rank, for inputs that do not fit together on one rank or across them, or when no
            rank has a key.
    """
    if not is_split(group):
        return whole.concatenation(a, b, g)
    assert group is not None
    inputs = {"a": a, "b": b, "g": g}
    shards = agree_on_shards(
        group, "concatenation", lambda: check_scores(a, b, g, keys_elsewhere=True), inputs
    )
    total: Tensor = RingHinge.apply(a, b, g, shards)
    return (total / shards.total_keys).to(g.dtype)


class RingHinge(torch.autograd.Function):
    """apply(a, b, g, shards) -> sums over all ranks' keys in the working dtype; differentiable once."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, g: Tensor, shards: Shards) -> Tensor:
        """The sums for this rank's queries; nothing is kept but the inputs."""
        work = working_dtype(g.dtype)
        total = g.new_zeros(*a.shape, g.shape[2], dtype=work)

        def visit(shard_b: Tensor, shard_g: Tensor) -> tuple[Tensor, ...]:
            if shard_b.shape[1] and a.shape[1]:
                total.add_(hinge_sums(a.to(work), shard_b.to(work), shard_g.to(work)))
            return ()

        with without_autocast(g.device):
            ring(shards, (b, g), visit)
        ctx.shards = shards
        ctx.save_for_backward(a, b, g)
        return total

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients; every rank takes part, whichever of them it was asked for."""
        a, b, g = ctx.saved_tensors
        with torch.no_grad(), without_autocast(dy.device):
            da, db, dg = _gradients(ctx, dy)
        return (*checked_gradients("concatenation", ((a, da), (b, db), (g, dg))), None)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    a, b, g = ctx.saved_tensors
    want_a, want_b, want_g = (name in ctx.shards.gradients for name in ("a", "b", "g"))
    a = a.to(dy.dtype)
    da = torch.zeros_like(a) if want_a else None

    def visit(shard_b: Tensor, shard_g: Tensor) -> tuple[Tensor, ...]:
        shard_b, shard_g = shard_b.to(dy.dtype), shard_g.to(dy.dtype)
        found: tuple[Tensor, ...] = ()
        if da is not None and shard_b.shape[1]:
            da.add_(step_sums(a, shard_b, shard_g).mul_(dy).sum(dim=2))
        if want_b:
            found += (step_sums(shard_b, a, dy).mul_(shard_g).sum(dim=2),)
        if want_g:
            found += (hinge_sums(shard_b, a, dy),)
        return found

    found = iter(ring(ctx.shards, (b, g), visit))
    return da, next(found) if want_b else None, next(found) if want_g else None
