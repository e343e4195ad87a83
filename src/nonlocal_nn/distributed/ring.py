"""Ring exchange: every rank's shard of keys passes every rank, and returns with the sums made for it.

With R ranks, in step s = 0 ... R-1 rank r works on the shard of rank r - s (mod R):

    step 0                 step 1                 step 2
    r0: K0  r1: K1  r2: K2   r0: K2  r1: K0  r2: K1   r0: K1  r1: K2  r2: K0

While a rank works on a shard, that shard is already on its way to the next rank, the next shard is arriving,
and so is the sum of what earlier ranks made for the present shard (the gradients of its keys); the rank's
own part is added to that when both are there. A last hop returns the sums to their owners. So a rank holds,
beside its own, at most two shards of keys and three of their sums, and each link carries R - 1 shards of keys
and R of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nonlocal_nn.distributed.agreement import Shards

Visit = Callable[..., tuple[Tensor, ...]]


def ring(shards: Shards, own: tuple[Tensor, ...], visit: Visit) -> tuple[Tensor, ...]:
    """Call `visit` with every rank's `own` tensors; returns the sum of what the calls for our own have given.

    own: tensors (batch, keys, ...), the same but for the number of keys on every rank.
    visit(*own of some rank): gives tensors (batch, keys, ...) to add up and return to their owner, the same
        number on every rank (none where nothing is to be returned), which it does not use again.
    """
    shard: tuple[Tensor, ...] = own
    found: tuple[Tensor, ...] = ()
    for step in range(shards.ranks):
        hop = _Hop(shards)
        following = hop.exchange(shard, step + 1) if step + 1 < shards.ranks else ()
        earlier = hop.exchange(found, step)
        hop.start()
        part = visit(*shard)
        hop.wait()
        for mine, theirs in zip(part, earlier, strict=bool(step)):
            mine.add_(theirs)
        shard, found = following, part
    hop = _Hop(shards)
    own_sums = hop.exchange(found, shards.ranks)
    hop.start()
    hop.wait()
    return own_sums


class _Hop:
    """Messages to the next rank and from the one before, all under way at once."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._tag = 0
        self._messages: list[dist.P2POp] = []
        self._under_way: list[Any] = []

    def exchange(self, leaving: tuple[Tensor, ...], step: int) -> tuple[Tensor, ...]:
        """Send these on; returns the tensors that arrive, those of the shard of `step`."""
        rank, ranks = self._shards.rank, self._shards.ranks
        keys = self._shards.keys[(rank - step) % ranks]
        arriving = []
        for tensor in leaving:
            received = tensor.new_empty(tensor.shape[0], keys, *tensor.shape[2:])
            self._add(dist.isend, tensor.contiguous(), (rank + 1) % ranks)
            self._add(dist.irecv, received, (rank - 1) % ranks)
            arriving.append(received)
            self._tag += 1
        return tuple(arriving)

    def _add(self, direction: Callable[..., Any], tensor: Tensor, peer: int) -> None:
        if tensor.numel():  # both sides know the sizes, so nothing is sent for an empty shard
            group = self._shards.group
            self._messages.append(dist.P2POp(direction, tensor, group=group, group_peer=peer, tag=self._tag))

    def start(self) -> None:
        """All messages at once, so that no rank waits for another that waits for it."""
        if self._messages:
            self._under_way = dist.batch_isend_irecv(self._messages)

    def wait(self) -> None:
        """Until all have left and arrived."""
        for message in self._under_way:
            message.wait()


class FirstDerivatives(torch.autograd.Function):
    """apply(function, *gradients) -> gradients that say what to do when they are differentiated once more."""

    @staticmethod
    def forward(ctx: Any, function: str, *gradients: Tensor) -> tuple[Tensor, ...]:
        """The gradients."""
        ctx.function = function
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        """Raises."""
        raise NotImplementedError(
            f"{ctx.function} split over processes has first derivatives only; dot_product has second ones too"
        )


def checked_gradients(
    function: str, wanted: tuple[tuple[Tensor, Tensor | None], ...]
) -> tuple[Tensor | None, ...]:
    """What a backward pass returns for (input, gradient or None), in the inputs' dtypes."""
    given = tuple(None if gradient is None else gradient.to(x.dtype) for x, gradient in wanted)
    if not torch.is_grad_enabled():
        return given
    present = [gradient.detach().requires_grad_() for gradient in given if gradient is not None]
    guarded = iter(FirstDerivatives.apply(function, *present))
    return tuple(None if gradient is None else next(guarded) for gradient in given)
