"""The dot product over the keys of all ranks: one all-reduce of phi^T g."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nonlocal_nn._typing import Float
from nonlocal_nn.distributed.agreement import agree_on_shards, is_split
from nonlocal_nn.ops import dot_product as whole
from nonlocal_nn.ops.checks import check_embeddings, without_autocast, working_dtype


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
        return whole.dot_product(theta, phi, g)
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
