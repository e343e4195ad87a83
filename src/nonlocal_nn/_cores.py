"""How many cores there are to share out.

>>> 1 <= available_cores() <= os.cpu_count()
True
"""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores this process may use: fewer than the machine has in a container or under SLURM."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_for_each(processes: int) -> int:
    """Cores this process may use, shared out over so many processes of the machine; at least 1.

    >>> cores_for_each(10_000)
    1
    """
    return max(1, available_cores() // processes)
