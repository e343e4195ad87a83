"""The pairwise operations where positions are split over the processes of a `torch.distributed` group.

>>> import torch
>>> from nonlocal_nn.ops import pairwise
>>> theta, phi, g = torch.randn(2, 70, 8), torch.randn(2, 60, 8), torch.randn(2, 60, 5)
>>> torch.equal(gaussian(theta, phi, g, group=None), pairwise.gaussian(theta, phi, g))  # one process
True

For clips too long for one device. Rank r passes its contiguous part of the queries and of the keys (parts may
differ in size, and some may be empty) and gets y for its own queries over the keys of all ranks: what
`nonlocal_nn.ops.pairwise` gives for the whole, up to rounding. So are the gradients of the sum of all ranks'
losses, each with respect to the rank's own part. No rank holds more than a few shards at a time.

`group` is a process group (`torch.distributed.group.WORLD` for all processes, `mesh.get_group()` for one axis
of a device mesh), or None for positions that are not split. A call on one rank must be made on all of them,
in the same order, and so must every backward pass, for the same inputs. What is wrong on one rank is a
ValueError on all of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nonlocal_nn._typing import Float
from nonlocal_nn.distributed.agreement import agree_on_shards, is_split, sum_gradients
from nonlocal_nn.distributed.concatenation import RingHinge
from nonlocal_nn.distributed.softmax import RingSoftmax
from nonlocal_nn.ops import pairwise
from nonlocal_nn.ops.checks import check_embeddings, check_scores, without_autocast, working_dtype

__all__ = ["concatenation", "dot_product", "gaussian", "sum_gradients"]


def gaussian(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
    scale: float = 1.0,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch query channel"]:
    """y_i = sum_j softmax_j(scale theta_i . phi_j) g_j (Eqs. 1 to 3), j over the keys of all ranks.

    >>> import torch
    >>> theta, phi = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    >>> gaussian(theta, phi, torch.ones(1, 4, 2), group=None).allclose(torch.ones(1, 5, 2))
    True

    Keys and values travel in a ring. With N keys on R ranks each link carries N (d + channels) (R - 1) / R
    numbers forward, and backward those once more and N (d + channels) gradients, which are float32 for half
    precisions. Second derivatives raise NotImplementedError.

    Raises:
        ValueError: on every rank, for inputs that do not fit together on one rank or across them, or when no
            rank has a key.
    """
    if not is_split(group):
        return pairwise.gaussian(theta, phi, g, scale)
    assert group is not None
    inputs = {"theta": theta, "phi": phi, "g": g}
    shards = agree_on_shards(
        group, "gaussian", lambda: check_embeddings(theta, phi, g, keys_elsewhere=True), inputs, scale
    )
    y: Tensor = RingSoftmax.apply(theta, phi, g, scale, shards)
    return y.to(theta.dtype)


def dot_product(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch query channel"]:
    """y_i = 1/N sum_j (theta_i . phi_j) g_j (Eqs. 1 and 4), j over the N keys of all ranks.

    >>> import torch
    >>> dot_product(torch.ones(1, 1, 3), torch.ones(1, 2, 3), torch.tensor([[[1.0], [3.0]]]), group=None)
    tensor([[[6.]]])

    theta (phi^T g) / N, with phi^T g added up over the ranks: one all-reduce of batch d channels numbers, and
    one of as many (theta^T dy) in the backward pass, however many positions there are.

    Raises:
        ValueError: on every rank, for inputs that do not fit together on one rank or across them, or when no
            rank has a key.
    """
    if not is_split(group):
        return pairwise.dot_product(theta, phi, g)
    assert group is not None
    inputs = {"theta": theta, "phi": phi, "g": g}
    shards = agree_on_shards(
        group, "dot_product", lambda: check_embeddings(theta, phi, g, keys_elsewhere=True), inputs
    )
    dtype, work = theta.dtype, working_dtype(theta.dtype)
    with without_autocast(theta.device):
        matrix = _SumOverRanks.apply(phi.to(work).transpose(1, 2) @ g.to(work), group)
        y: Tensor = theta.to(work) @ (matrix / shards.total_keys)
        return y.to(dtype)


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
    `nonlocal_nn.distributed.concatenation`, also for why). With R ranks each link carries N (1 + channels)
    (R - 1) / R numbers forward, and backward those once more and N (1 + channels) gradients. Every rank goes
    through all keys: memory is split over the ranks, this operation's time is not. Second derivatives raise
    NotImplementedError.

    Raises:
        ValueError: on every rank, for inputs that do not fit together on one rank or across them, or when no
            rank has a key.
    """
    if not is_split(group):
        return pairwise.concatenation(a, b, g)
    assert group is not None
    inputs = {"a": a, "b": b, "g": g}
    shards = agree_on_shards(
        group, "concatenation", lambda: check_scores(a, b, g, keys_elsewhere=True), inputs
    )
    total: Tensor = RingHinge.apply(a, b, g, shards)
    return (total / shards.total_keys).to(g.dtype)


class _SumOverRanks(torch.autograd.Function):
    """apply(x, group) -> the sum of all ranks' x; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """The sum, the same on every rank."""
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        """Each rank's x is in the sum of every rank, so their gradients add up."""
        return _SumOverRanks.apply(dy, ctx.group), None
