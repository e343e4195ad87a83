"""Positions split over the ranks of a process group: who holds how many, agreed upon before anything is sent.

A rank that stops with an error while the others wait for its message is a run that hangs. So the ranks first
exchange one kilobyte each, what they were given or what is wrong with it, and either all go on or all raise.

>>> rows = [{"d": 8, "keys": 5}, {"d": 8, "keys": 3}, {"d": 6, "keys": 3}]
>>> _require_equal(rows, free=("keys",))
Traceback (most recent call last):
ValueError: the ranks must agree in d, got d=8 on rank 0 and d=6 on rank 2
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

Group: TypeAlias = "dist.ProcessGroup | None"
MESSAGE_BYTES = 1024


@dataclass(frozen=True)
class Shards:
    """How the keys of one call lie on the ranks of `group`, in order of rank.

    `gradients` names the inputs that require gradients. Every rank has the same, because the backward pass
    exchanges messages too, and all must take part.
    """

    group: dist.ProcessGroup
    rank: int
    keys: tuple[int, ...]
    gradients: frozenset[str]

    @property
    def ranks(self) -> int:
        """Processes in the group."""
        return len(self.keys)

    @property
    def total_keys(self) -> int:
        """N of Eq. 1: the keys of all ranks."""
        return sum(self.keys)


def is_split(group: Group) -> bool:
    """Whether there are several processes to split positions over.

    >>> is_split(None)
    False

    Raises:
        ValueError: when this process is not a member of the group.
    """
    if group is None:
        return False
    if not isinstance(group, dist.ProcessGroup):  # what new_group gives those whom it leaves out
        raise ValueError(
            f"group must be a process group that this process is a member of, or None, got {group!r}"
        )
    return dist.get_world_size(group) > 1


def agree_on_shards(
    group: dist.ProcessGroup,
    function: str,
    check: Callable[[], None],
    inputs: dict[str, Tensor],
    scale: float = 1.0,
) -> Shards:
    """Run `check`, and compare the inputs of `function` (queries, keys, g in this order) across the ranks.

    Raises:
        ValueError: on every rank, when `check` fails on any of them, when they differ in batch, channels,
            dtype, kind of device, scale or inputs that require gradients, or when no rank has a key.
    """

    def describe() -> dict[str, Any]:
        check()
        queries, keys, g = inputs.values()
        wanted = [name for name, x in inputs.items() if torch.is_grad_enabled() and x.requires_grad]
        return {
            "function": function,
            "batch": queries.shape[0],
            "d": queries.shape[2] if queries.dim() == 3 else 1,
            "channels": g.shape[2],
            "dtype": str(g.dtype).removeprefix("torch."),
            "device": g.device.type,
            "scale": scale,
            "inputs that require gradients": ", ".join(wanted) or "none",
            "keys": keys.shape[1],
        }

    rows = agree(group, describe, free=("keys",))
    keys = tuple(row["keys"] for row in rows)
    if sum(keys) == 0:
        raise ValueError(f"at least one key is needed to average over, got none on all {len(keys)} ranks")
    wanted = frozenset(rows[0]["inputs that require gradients"].split(", ")) - {"none"}
    return Shards(group, dist.get_rank(group), keys, wanted)


def agree(
    group: dist.ProcessGroup, describe: Callable[[], dict[str, Any]], free: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Every rank's description, in order of rank; all but the `free` entries must be the same on all.

    Raises:
        ValueError: on every rank, when `describe` raises on any of them or they differ.
    """
    cause: Exception | None = None
    try:
        own = describe()
    except Exception as error:  # whatever it is, the others must raise too
        own, cause = {"problem": str(error) or type(error).__name__}, error
    rows = _exchange(group, own)
    for rank, row in enumerate(rows):
        if "problem" in row:
            raise ValueError(f"rank {rank} of {len(rows)}: {row['problem']}") from cause
    _require_equal(rows, free)
    return rows


def _require_equal(rows: list[dict[str, Any]], free: tuple[str, ...]) -> None:
    for name, value in rows[0].items():
        for rank, row in enumerate(rows):
            if name not in free and str(row.get(name)) != str(value):
                raise ValueError(
                    f"the ranks must agree in {name}, got {name}={value} on rank 0 and "
                    f"{name}={row.get(name)} on rank {rank}"
                )


def _exchange(group: dist.ProcessGroup, own: dict[str, Any]) -> list[dict[str, Any]]:
    while len(text := json.dumps(own).encode()) > MESSAGE_BYTES:  # only the words of an error can be so long
        own = {"problem": own["problem"][: len(own["problem"]) * 3 // 4]}
    message = torch.frombuffer(bytearray(text.ljust(MESSAGE_BYTES)), dtype=torch.uint8).to(_device(group))
    received = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, message, group=group)
    return [json.loads(bytes(row.tolist())) for row in received]


def _device(group: dist.ProcessGroup) -> torch.device:
    """Where the group can exchange small messages: the CPU if it can, else this process's GPU."""
    if "cpu:" in dist.get_backend_config(group):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor], group: Group) -> None:
    """Add up the parameters' gradients over the ranks of `group`, in place, so that all have the whole.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> (3 * weight).sum().backward()
    >>> sum_gradients([weight], group=None)  # one process has the whole already
    >>> weight.grad
    tensor([3., 3.])

    After the backward pass a rank's gradients are what its own positions add to the whole. Call this on
    every rank, with the same parameters, before the optimizer's step. A parameter without a gradient counts
    as zero; where no rank has one it stays without. One all-reduce for each dtype.

    Raises:
        ValueError: on every rank, when their parameters differ in number or size.
    """
    if not is_split(group):
        return
    assert group is not None
    wanted = [parameter for parameter in parameters if parameter.requires_grad]

    def describe() -> dict[str, Any]:
        return {"parameters": len(wanted), "elements": sum(parameter.numel() for parameter in wanted)}

    agree(group, describe)
    for kind in dict.fromkeys((parameter.device, parameter.dtype) for parameter in wanted):
        alike = [parameter for parameter in wanted if (parameter.device, parameter.dtype) == kind]
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in alike]
        present = torch.tensor([float(p.grad is not None) for p in alike], device=kind[0], dtype=kind[1])
        total = torch.cat([*flat, present])
        dist.all_reduce(total, group=group)
        *sums, present = torch.split(total, [*(p.numel() for p in alike), len(alike)])
        for parameter, gradient, anywhere in zip(alike, sums, present.tolist(), strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient.view_as(parameter))
            elif anywhere:
                parameter.grad = gradient.view_as(parameter).clone()
