"""Ring attention: an online softmax over shards of keys, partial results merged by their (max, sum) pairs.

With l_ij = scale theta_i . phi_j, a rank keeps for each of its queries i the largest logit so far m_i, the
sum s_i and the unnormalised result Y_i. A shard S of keys changes them to

    m'_i = max(m_i, max_{j in S} l_ij)
    s'_i = exp(m_i - m'_i) s_i + sum_{j in S} exp(l_ij - m'_i)
    Y'_i = exp(m_i - m'_i) Y_i + sum_{j in S} exp(l_ij - m'_i) g_j

and after the last shard y_i = Y_i / s_i. m and s stay apart, not as one log-sum-exp: next to logits of 1e4
the logarithm of s would be rounded to 1e-3. In the backward pass the shards come once more, and with dy_i
the gradient of y_i, p_ij = exp(l_ij - m_i), u_i = dy_i / s_i

    dg_j     = sum_i p_ij u_i
    dl_ij    = p_ij (u_i . g_j - u_i . y_i)
    dtheta_i = scale sum_j dl_ij phi_j,      dphi_j = scale sum_i dl_ij theta_i

where the sums over i are accumulated from rank to rank as dphi and dg travel on with their keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nonlocal_nn._typing import Float
from nonlocal_nn.distributed.agreement import Shards, agree_on_shards, is_split
from nonlocal_nn.distributed.ring import checked_gradients, ring
from nonlocal_nn.ops import softmax
from nonlocal_nn.ops.checks import check_embeddings, without_autocast, working_dtype
from nonlocal_nn.ops.cpu.workspace import check_budget
from nonlocal_nn.ops.rows import chunk_bytes, chunks


def gaussian(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
    scale: float = 1.0,
    group: dist.ProcessGroup | None = None,
    *,
    memory_budget: int | None = None,
) -> Float[Tensor, "batch query channel"]:
    """y_i = sum_j softmax_j(scale theta_i . phi_j) g_j (Eqs. 1 to 3), j over the keys of all ranks.

    >>> import torch
    >>> theta, phi = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    >>> gaussian(theta, phi, torch.ones(1, 4, 2), group=None).allclose(torch.ones(1, 5, 2))
    True

    Keys and values travel in a ring. With N keys on R ranks each link carries N (d + channels) (R - 1) / R
    numbers forward, and backward those once more and N (d + channels) gradients, which are float32 for half
    precisions. Second derivatives raise NotImplementedError.

    memory_budget: bytes for buffers of weights beside shards, inputs, results and gradients, down to one row;
        None or 0: as large as is fast. It may differ from rank to rank.

    Raises:
        ValueError: on every rank, for inputs that do not fit together on one rank or across them, or when no
            rank has a key.
    """
    if not is_split(group):
        return softmax.gaussian(theta, phi, g, scale, memory_budget=memory_budget)
    assert group is not None

    def check() -> None:
        check_budget(memory_budget)
        check_embeddings(theta, phi, g, keys_elsewhere=True)

    shards = agree_on_shards(group, "gaussian", check, {"theta": theta, "phi": phi, "g": g}, scale)
    y: Tensor = RingSoftmax.apply(theta, phi, g, scale, shards, memory_budget)
    return y.to(theta.dtype)


class RingSoftmax(torch.autograd.Function):
    """apply(theta, phi, g, scale, shards, memory_budget) -> y in the working dtype; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        theta: Tensor,
        phi: Tensor,
        g: Tensor,
        scale: float,
        shards: Shards,
        memory_budget: int | None,
    ) -> Tensor:
        """Y of this rank's queries over all ranks' keys."""
        batch, queries, _ = theta.shape
        like = theta.new_empty(0, dtype=working_dtype(theta.dtype))
        row_max = like.new_full((batch, queries, 1), -torch.inf)
        row_sum, y = like.new_zeros(batch, queries, 1), like.new_zeros(batch, queries, g.shape[2])

        def merge(shard_phi: Tensor, shard_g: Tensor) -> tuple[Tensor, ...]:
            shard_phi, shard_g = shard_phi.to(like.dtype), shard_g.to(like.dtype)
            for some, rows, p in _row_chunks(theta, shard_phi, 1, memory_budget):
                _logits(theta[some, rows], shard_phi[some], scale, p)
                before = row_max[some, rows]
                now = torch.maximum(before, p.amax(dim=2, keepdim=True))
                fade = (before - _finite(now)).exp_()
                _exp_below(p, _finite(now))
                row_sum[some, rows] = (row_sum[some, rows] * fade).add_(p.sum(dim=2, keepdim=True))
                y[some, rows] = torch.baddbmm(y[some, rows] * fade, p, shard_g[some])
                row_max[some, rows] = now
            return ()

        with without_autocast(theta.device):
            ring(shards, (phi, g), merge)
            y.div_(row_sum)
        ctx.scale, ctx.shards, ctx.memory_budget = scale, shards, memory_budget
        ctx.save_for_backward(theta, phi, g, y, _finite(row_max), row_sum)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients; every rank takes part, whichever of them it was asked for."""
        theta, phi, g, *_ = ctx.saved_tensors
        with torch.no_grad(), without_autocast(dy.device):
            dtheta, dphi, dg = _gradients(ctx, dy)
        return (*checked_gradients("gaussian", ((theta, dtheta), (phi, dphi), (g, dg))), None, None, None)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    theta, phi, g, y, row_max, row_sum = ctx.saved_tensors
    want_theta, want_phi, want_g = (name in ctx.shards.gradients for name in ("theta", "phi", "g"))
    dtheta = torch.zeros_like(theta, dtype=y.dtype) if want_theta else None
    u = dy / row_sum
    mean = (u * y).sum(dim=2, keepdim=True)  # over the keys j of all ranks, of u_i . g_j

    def visit(shard_phi: Tensor, shard_g: Tensor) -> tuple[Tensor, ...]:
        shard_phi, shard_g = shard_phi.to(y.dtype), shard_g.to(y.dtype)
        dphi = torch.zeros_like(shard_phi) if want_phi else None
        dg = torch.zeros_like(shard_g) if want_g else None
        for some, rows, p, dl in _row_chunks(theta, shard_phi, 2, ctx.memory_budget):
            _logits(theta[some, rows], shard_phi[some], ctx.scale, p)
            _exp_below(p, row_max[some, rows])
            if dg is not None:
                dg[some].baddbmm_(p.transpose(1, 2), u[some, rows])
            if dtheta is None and dphi is None:
                continue
            torch.bmm(u[some, rows], shard_g[some].transpose(1, 2), out=dl)
            dl.sub_(mean[some, rows]).mul_(p)
            if dtheta is not None:
                dtheta[some, rows].baddbmm_(dl, shard_phi[some], alpha=ctx.scale)
            if dphi is not None:
                dphi[some].baddbmm_(dl.transpose(1, 2), theta[some, rows].to(y.dtype), alpha=ctx.scale)
        return tuple(found for found in (dphi, dg) if found is not None)

    found = iter(ring(ctx.shards, (phi, g), visit))
    return dtheta, next(found) if want_phi else None, next(found) if want_g else None


def _row_chunks(theta: Tensor, phi: Tensor, buffers: int, memory_budget: int | None = None) -> Iterator[Any]:
    """Batch and query slices that cover all pairs, each with so many (batch, rows, keys) buffers to write to.

    >>> pairs = torch.zeros(2, 5, 3), torch.zeros(2, 4, 3)
    >>> [(some, rows, p.shape) for some, rows, p in _row_chunks(*pairs, buffers=1)]
    [(slice(0, 2, None), slice(0, 5, None), torch.Size([2, 5, 4]))]
    """
    (batch, queries, _), keys = theta.shape, phi.shape[1]
    if batch * queries * keys == 0:
        return
    most = chunk_bytes(keys, phi, memory_budget, buffers)
    flats: list[Tensor] = []
    for some, rows in chunks(batch, queries, keys * phi.element_size(), most):
        shape = (some.stop - some.start, rows.stop - rows.start, keys)
        size = prod(shape)
        flats = flats or [phi.new_empty(size) for _ in range(buffers)]  # the first chunk is the largest
        yield some, rows, *(flat[:size].view(shape) for flat in flats)


def _logits(theta: Tensor, phi: Tensor, scale: float, out: Tensor) -> None:
    torch.bmm(theta.to(phi.dtype) * scale, phi.transpose(1, 2), out=out)


def _finite(row_max: Tensor) -> Tensor:
    """0 for the maximum of no keys, or of logits that are all -inf: -inf - -inf would be NaN."""
    return row_max.masked_fill(row_max == -torch.inf, 0.0)


def _exp_below(logits: Tensor, row_max: Tensor) -> None:
    """exp(logits - row_max) in place; weights under 4e-18 (float64: 1e-87) of the largest become zero.

    A million of them are below the rounding of any sum, and as denormal numbers they would slow a CPU down.
    """
    floor = -200.0 if logits.dtype == torch.float64 else -40.0
    torch.threshold_(logits.sub_(row_max), floor, -torch.inf).exp_()
