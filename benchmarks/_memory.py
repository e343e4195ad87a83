"""What a process holds, and what the machine has left; Linux."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path


def resident_bytes(field: str, *, reset: bool = False) -> int:
    """VmRSS (now) or VmHWM (high-water mark) of this process, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from now
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {field}")


def machine_bytes(field: str) -> int:
    """MemTotal or MemAvailable of the machine, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {field}")


def fail_rather_than_fill_the_machine(limit_bytes: int) -> None:
    """From now on an allocation beyond the limit raises an error here instead of ending somebody else.

    Where the system runs out all the same, it ends this process first.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def in_words(count: float | None) -> str:
    """Bytes for people.

    >>> in_words(1_500_000_000), in_words(20_000_000), in_words(None)
    ('1.50 GB', '20 MB', '')
    """
    if count is None:
        return ""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
