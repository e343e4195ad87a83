"""The processes of a run: how many there are, how they share the cores, and reductions over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nonlocal_nn._launch import launched
from nonlocal_nn.training.config import TrainConfig

_T = TypeVar("_T")


def uses_gpu(config: TrainConfig) -> bool:
    """Whether the run trains on GPUs."""
    return config.accelerator != "cpu" and torch.cuda.is_available()


def process_counts(config: TrainConfig) -> tuple[int, int]:
    """Processes on each machine and machines: what torchrun started, where it did, else the config's.

    >>> from nonlocal_nn.training.config import DataConfig
    >>> process_counts(TrainConfig(out="run", data=DataConfig(train="videos"), devices=8, nodes=2))
    (8, 2)

    Raises:
        ValueError: devices below 1.
    """
    if config.devices != "auto" and config.devices < 1:
        raise ValueError(f"devices is {config.devices}; it must be at least 1, or auto")
    if "TORCHELASTIC_RUN_ID" in os.environ and config.devices == "auto":
        share = launched()
        return share.local_processes, share.processes // share.local_processes
    if config.devices != "auto":
        return config.devices, config.nodes
    return (torch.cuda.device_count() if uses_gpu(config) else 1), config.nodes


def default_workers(cores: int, *, on_gpu: bool) -> int:
    """Decoding processes beside a training process that has so many cores.

    >>> default_workers(2, on_gpu=False), default_workers(16, on_gpu=False), default_workers(16, on_gpu=True)
    (1, 4, 15)

    Beside a GPU all cores but one decode. A CPU computes for longer than it decodes: measured on 2 cores, one
    worker keeps c2d_tiny_nl2 waiting for 5% of a step.
    """
    return max(1, min(16, cores - 1) if on_gpu else min(4, cores // 2))


def default_threads(cores: int, workers: int, omp_num_threads: str | None) -> int:
    """Threads of torch in a training process on the CPU: the cores that do not decode, unless OMP_NUM_THREADS
    says.

    >>> [default_threads(16, workers=4, omp_num_threads=said) for said in (None, "2")]
    [12, 2]

    More threads than free cores wait for each other: on 2 busy cores a step took four times as long with 2
    threads as with 1.
    """
    if omp_num_threads is not None and omp_num_threads.isdigit() and int(omp_num_threads) > 0:
        return int(omp_num_threads)
    return max(1, cores - workers)


# Collectives; with one process they cost nothing.


def processes_are_joined() -> bool:
    """Whether this process is in a group, if only of one."""
    return dist.is_available() and dist.is_initialized()


def leave_processes() -> None:
    """Leave the group, if there is one; no collective may follow."""
    if processes_are_joined():
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Whether more than one process takes part."""
    return processes_are_joined() and dist.get_world_size() > 1


def maximum(values: Sequence[int], device: torch.device) -> list[int]:
    """Each value's maximum over the processes.

    >>> maximum([0, 15], torch.device("cpu"))
    [0, 15]
    """
    if not is_distributed():
        return list(values)
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value's sum over the processes.

    >>> total([0.5, 2], torch.device("cpu"))
    [0.5, 2]
    """
    if not is_distributed():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def mean(tensor: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if is_distributed():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def gather(items: list[_T]) -> list[_T]:
    """The items of all processes, in the order of their ranks.

    >>> gather([1, 2])
    [1, 2]
    """
    if not is_distributed():
        return items
    lists: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lists, items)
    return [item for own in lists for item in own]
