"""How much memory an operator may take, and large buffers that are cheap to touch for the first time.

>>> import torch
>>> scratch((2, 3), like=torch.zeros(1)).shape
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
        used = int((folder / "memory.current").read_bytes()) - _idle.bytes()
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


def scratch(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor of the kind of `like`.

    Large ones lie in huge pages where the system has them, and their memory is used again. A buffer that goes
    back to the system after each call costs its page faults anew each time: 39 MB, the weights of 3136
    positions, took 8 ms to touch for the first time in small pages and 1.8 ms in huge ones, where both matrix
    products took 44; where the system first has to make room for huge pages, much more.
    """
    size = prod(shape) * like.element_size()
    if not _HAS_HUGE_PAGES or size < 2 * _HUGE_PAGE or type(like) is not Tensor or like.device.type != "cpu":
        return like.new_empty(shape)
    pages = _idle.take(size) or _huge_pages(size)
    lent = memoryview(pages)  # torch holds it for as long as the memory is in use
    _idle.give_back_after(lent, pages)
    return torch.frombuffer(lent, dtype=like.dtype, count=prod(shape)).view(shape)


def _huge_pages(size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, -(-size // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them: small pages then
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


class _Idle:
    """Buffers that nobody uses now, for who asks next.

    The system is told that it may take their pages (MADV_FREE): it does when it needs memory, and until then
    they are there without a page fault. They count as this process's memory all the while. At most as many
    bytes lie here as one operator may take; the oldest go first.

    What lends and takes back are single operations on a list: a tensor can end in any thread and, by the
    garbage collector, in the middle of `take`, where a lock would wait for itself.
    """

    def __init__(self) -> None:
        self._buffers: list[mmap.mmap] = []
        self._lent: dict[int, weakref.ref[memoryview]] = {}

    def bytes(self) -> int:
        return sum(len(pages) for pages in tuple(self._buffers))

    def take(self, size: int) -> mmap.mmap | None:
        """The smallest one of at least `size` bytes and at most twice as many."""
        for pages in sorted(self._buffers, key=len):
            if size <= len(pages) <= 2 * size:
                try:
                    self._buffers.remove(pages)
                except ValueError:  # another thread was faster
                    continue
                return pages
        return None

    def give_back_after(self, lent: memoryview, pages: mmap.mmap) -> None:
        """Take `pages` back when `lent` is gone."""
        key = id(lent)

        def ended(_: weakref.ref[memoryview]) -> None:
            self._lent.pop(key, None)
            self._put(pages)

        self._lent[key] = weakref.ref(lent, ended)

    def _put(self, pages: mmap.mmap) -> None:
        try:
            pages.madvise(mmap.MADV_FREE)
        except (AttributeError, OSError):  # a kernel without it: back to the system
            return
        self._buffers.append(pages)
        if self.bytes() <= ALWAYS_BYTES:
            return
        most = max(ALWAYS_BYTES, free_bytes(torch.device("cpu")) // BUDGET_SHARE)
        while self.bytes() > most:
            try:
                self._buffers.pop(0)
            except IndexError:
                return


_idle = _Idle()
