"""How much memory an operator may take, and large buffers that are cheap to touch for the first time.

>>> import torch
>>> buffer((2, 3), like=torch.zeros(1)).shape
torch.Size([2, 3])
"""

from __future__ import annotations

import contextlib
import mmap
import sys
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
        used = int((folder / "memory.current").read_bytes())
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
    """An uninitialised tensor of the kind of `like`; large ones lie in huge pages where the system has them.

    Memory from the system costs a page fault for each page that is touched first. Without huge pages a
    training step of a block takes 1.20 times as long on 64x64 positions, 1.33 times on 128x128.
    """
    size = prod(shape) * like.element_size()
    if not _HAS_HUGE_PAGES or size < 2 * _HUGE_PAGE or type(like) is not Tensor or like.device.type != "cpu":
        return like.new_empty(shape)
    pages = mmap.mmap(-1, -(-size // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them: small pages then
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memoryview(pages), dtype=like.dtype, count=prod(shape)).view(shape)
