"""From decoding processes to the process that trains, where shared memory is small.

Torch hands tensors between processes through shared memory (/dev/shm). Containers often have 64 MiB of it; a
batch that does not fit kills the worker or makes it wait for ever. There batches go through pipes instead:
one copy more, nothing to set up.

>>> collate, unpack = ways_through(list, batch_bytes=2**20, workers=2, shared=Path("/nowhere"))
>>> collate is list, unpack((1, 2))
(True, (1, 2))
"""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = ["SHARED_MEMORY", "ways_through"]

SHARED_MEMORY = Path("/dev/shm")
_PREFETCH = 2  # batches that each worker makes ahead, torch's default
_said = False


class _Array(NamedTuple):
    """A tensor as it goes through a pipe."""

    array: Any
    order: tuple[int, ...]


def ways_through(
    collate: Callable[[Any], Any], batch_bytes: int, workers: int, shared: Path = SHARED_MEMORY
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """What a loader's workers do with a batch, and what the loading process does with what arrives.

    Args:
        collate: makes a batch of samples.
        batch_bytes: what a batch takes.
        workers: processes; 0 means that nothing goes anywhere.
        shared: the folder of the shared memory.
    """
    needed = batch_bytes * workers * (_PREFETCH + 1)
    if not workers or not shared.is_dir() or shutil.disk_usage(shared).free >= 2 * needed:
        return collate, _as_it_is
    global _said
    if not _said:
        _said = True
        free = shutil.disk_usage(shared).free
        sys.stderr.write(
            f"shared memory ({shared}) has {free / 2**20:.0f} MiB free, batches may take "
            f"{needed / 2**20:.0f}: they go through pipes, a little slower (docker run --shm-size=1g or "
            "--ipc=host gives more)\n"
        )
    return _Packed(collate), _unpacked


class _Packed:
    """`collate`, and the batch as bytes; a class, so that it reaches workers by pickling."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> bytes:
        return pickle.dumps(tree_map(_to_array, self.collate(samples)), protocol=pickle.HIGHEST_PROTOCOL)


def _to_array(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    order = sorted(range(value.dim()), key=value.stride, reverse=True)  # as it lies in memory
    return _Array(value.permute(order).contiguous().numpy(), tuple(order))


def _unpacked(data: bytes) -> Any:
    return tree_map(_to_tensor, pickle.loads(data), is_leaf=lambda value: isinstance(value, _Array))


def _to_tensor(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    return torch.from_numpy(np.array(value.array)).permute(tuple(int(n) for n in np.argsort(value.order)))


def _as_it_is(value: Any) -> Any:
    return value
