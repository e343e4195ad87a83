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
from collections.abc import Iterator
from functools import cache
from math import prod
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

BUDGET_SHARE = 8  # idle buffers take up to 1 / BUDGET_SHARE of the free memory
ALWAYS_BYTES = 32 * 2**20  # and, without asking how much is free, this much

KEPT_BYTES = 31 * 2**20  # glibc's own bound is 32 MiB

_CAREFUL_GUESS = 2 * 2**30  # of the memory of a system that does not tell
_UNLIMITED = 2**60  # version 1 writes a number near 2^63 where there is no limit
_HUGE_PAGE = 2 * 2**20
_HAS_HUGE_PAGES = sys.platform.startswith("linux") and hasattr(mmap, "MADV_HUGEPAGE")


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on the device now; of a container, what its limits leave.

    >>> free_bytes(torch.device("cpu")) > 0
    True
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    limits = [limit - max(0, used - _idle_bytes()) for limit, used in container_limits()]
    available = _in_system(b"MemAvailable:")
    return max(0, min(limits if available is None else [*limits, available], default=_CAREFUL_GUESS))


def all_bytes(device: torch.device) -> int:
    """Memory of the machine, container or GPU, whatever is free of it.

    >>> all_bytes(torch.device("cpu")) >= free_bytes(torch.device("cpu"))
    True
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    limits = [limit for limit, _ in container_limits()]
    total = _in_system(b"MemTotal:")
    return min(limits if total is None else [*limits, total], default=_CAREFUL_GUESS)


def _in_system(field: bytes) -> int | None:
    with contextlib.suppress(OSError), Path("/proc/meminfo").open("rb") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None


def container_limits(
    mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[tuple[int, int]]:
    """(limit, in use) in bytes of each control group with a limit that this process is in.

    Version 2 (files memory.max, memory.high) and version 1 (memory.limit_in_bytes); the process's own group
    and all above it, since SLURM and Docker set limits at different heights. Memory in use is less what the
    kernel gives back when asked (file pages not used lately).

    Args:
        mount: where control groups are mounted.
        own: the file that says which ones this process is in.
    """
    found = []
    for folder, limits, usage in _groups(mount, own):
        limit = min((n for n in (_number(folder / name) for name in limits) if n is not None), default=None)
        used = _number(folder / usage)
        if limit is not None and used is not None and limit < _UNLIMITED:
            found.append((limit, max(0, used - _reclaimable(folder / "memory.stat"))))
    return found


def _groups(mount: Path, own: Path) -> Iterator[tuple[Path, tuple[str, ...], str]]:
    """Folders of groups, each with the names of its files of limits and of usage."""
    version2: tuple[tuple[str, ...], str] = (("memory.max", "memory.high"), "memory.current")
    version1: tuple[tuple[str, ...], str] = (("memory.limit_in_bytes",), "memory.usage_in_bytes")
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            tops, files = [mount, mount / "unified"], version2
        elif "memory" in controllers.split(","):
            tops, files = list({mount / "memory", mount / controllers}), version1
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for top in tops:
            # In a container the path is often the host's; the group itself is then mounted at the top.
            for part in (inside, *inside.parents):
                if ".." not in part.parts and (folder := top / part).is_dir():
                    yield folder, *files


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return None


def _reclaimable(file: Path) -> int:
    """File pages that were not used lately, as memory.stat says."""
    try:
        pairs = dict(line.split()[:2] for line in file.read_text().splitlines() if " " in line)
        return int(pairs.get("total_inactive_file", pairs.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def fits(size: int, device: torch.device, memory_budget: int | None) -> bool:
    """Whether an operator may take `size` bytes beside its inputs and results.

    >>> fits(1000, torch.device("cpu"), memory_budget=999)
    False
    """
    if memory_budget is not None:
        return size <= memory_budget
    return size <= ALWAYS_BYTES or size <= usual_budget(device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def usual_budget(device: torch.device) -> int:
    """Bytes that an operator may take where nobody says how many."""
    # Of all memory, not of what is free: a forward pass made again (activation checkpointing) must save the
    # same. Ten blocks of a network together take no more than a third.
    return 0 if device.type == "meta" else all_bytes(device) // (4 * BUDGET_SHARE)


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


@cache
def keep_freed_memory() -> None:
    """Make glibc give out again what was freed, in pieces of up to `KEPT_BYTES`, in the whole process.

    It takes memory of a size from the system, and gives it back, page faults and all, until a larger piece
    has been freed once; an untouched one costs nothing.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


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
