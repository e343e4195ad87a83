"""The few things the processes of a distributed run tell each other; with one process they cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")


def several() -> bool:
    """Whether more than one process takes part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def maximum(values: Sequence[int], device: torch.device) -> list[int]:
    """Each value's maximum over the processes.

    >>> maximum([0, 15], torch.device("cpu"))
    [0, 15]
    """
    if not several():
        return list(values)
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value's sum over the processes.

    >>> total([0.5, 2], torch.device("cpu"))
    [0.5, 2]
    """
    if not several():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def mean(tensor: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if several():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def gather(items: list[_T]) -> list[_T]:
    """The items of all processes, in the order of their ranks.

    >>> gather([1, 2])
    [1, 2]
    """
    if not several():
        return items
    lists: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lists, items)
    return [item for own in lists for item in own]
