"""How much memory an operator may take, and large buffers that are cheap to touch for the first time.

>>> import torch
>>> buffer((2, 3), like=torch.zeros(1)).shape
torch.Size([2, 3])
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import weakref
from math import prod
from pathlib import Path

import torch
from torch import Tensor

BUDGET_SHARE = 8  # an operator that is told nothing takes up to 1 / BUDGET_SHARE of the free memory
ALWAYS_BYTES = 32 * 2**20  # and, without asking how much is free, this much

_HUGE_PAGE = 2 * 2**20
_HAS_HUGE_PAGES = sys.platform.startswith("linux") and hasattr(mmap, "MADV_HUGEPAGE")


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on the device now; of a container, what its limit leaves.

    >>> free_bytes(torch.device("cpu")) > 0
    True
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    limits = [value for value in (_available_in_system(), _available_in_container()) if value is not None]
    return min(limits, default=2 * 2**30)  # a system that does not tell: a careful guess


def _available_in_system() -> int | None:
    try:
        with Path("/proc/meminfo").open("rb") as file:
            for line in file:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _available_in_container() -> int | None:
    try:
        folder = Path("/sys/fs/cgroup")
        used = int((folder / "memory.current").read_bytes()) - _idle_bytes()
        return int((folder / "memory.max").read_bytes()) - used
    except (OSError, ValueError):  # no such files, or "max": no limit
        return None


def fits(size: int, device: torch.device, memory_budget: int | None) -> bool:
    """Whether an operator may take `size` bytes beside its inputs and results.

    >>> fits(1000, torch.device("cpu"), memory_budget=999)
    False
    """
    if memory_budget is not None:
        return size <= memory_budget
    return size <= ALWAYS_BYTES or size <= _usual_budget(device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _usual_budget(device: torch.device) -> int:
    return 0 if device.type == "meta" else free_bytes(device) // BUDGET_SHARE


def check_budget(memory_budget: int | None) -> None:
    """Raises ValueError for a budget that is not a number of bytes."""
    if memory_budget is not None and memory_budget < 0:
        raise ValueError(f"memory_budget={memory_budget}: give a number of bytes, 0 or more, or None")


def buffer(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor of the kind of `like`; large ones reuse memory in huge pages.

    Memory from the system costs a page fault for each page that is touched first. In small pages a training
    step of a block takes 1.20 times as long on 64x64 positions, 1.33 times on 128x128. Where the system
    has to make room for huge ones first, it takes 1.43 times as long on 4x28x28 without reuse.
    """
    size = prod(shape) * like.element_size()
    if not _HAS_HUGE_PAGES or size < 2 * _HUGE_PAGE or type(like) is not Tensor or like.device.type != "cpu":
        return like.new_empty(shape)
    pages = _take_idle(size) or _huge_pages(size)
    memory = memoryview(pages)  # the tensor holds it for as long as it is in use
    weakref.finalize(memory, _keep_idle, pages).atexit = False
    return torch.frombuffer(memory, dtype=like.dtype, count=prod(shape)).view(shape)


def _huge_pages(size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, -(-size // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them: small pages then
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


# Buffers that nobody uses now, the oldest first. Operations on this list are single ones: a tensor can end in
# any thread and, by the garbage collector, in the middle of `_take_idle`, where a lock would wait for itself.
_idle: list[mmap.mmap] = []


def _idle_bytes() -> int:
    return sum(len(pages) for pages in tuple(_idle))


def _take_idle(size: int) -> mmap.mmap | None:
    """The smallest one of at least `size` bytes and at most twice as many."""
    for pages in sorted(_idle, key=len):
        if size <= len(pages) <= 2 * size:
            with contextlib.suppress(ValueError):  # another thread was faster
                _idle.remove(pages)
                return pages
    return None


def _keep_idle(pages: mmap.mmap) -> None:
    """Keep these, but no more in all than one operator may take; the system may have their pages back."""
    try:
        pages.madvise(mmap.MADV_FREE)
    except (AttributeError, OSError):  # a kernel without it: back to the system
        return
    _idle.append(pages)
    if _idle_bytes() <= ALWAYS_BYTES:
        return
    most = max(ALWAYS_BYTES, free_bytes(torch.device("cpu")) // BUDGET_SHARE)
    while _idle_bytes() > most:
        with contextlib.suppress(IndexError):
            _idle.pop(0)
