"""What launchers (torchrun, srun, Lightning) say of the processes that they start.

>>> launched()
Share(rank=0, processes=1, local_rank=0, local_processes=1)
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from nonlocal_nn._cores import cores_for_each


@dataclass(frozen=True)
class Share:
    """Which of several processes this is, over all machines and on this one."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    local_processes: int = 1

    @property
    def cores(self) -> int:
        """Cores this process may use, shared out over the processes of this machine; at least 1."""
        return cores_for_each(self.local_processes)


def was_launched() -> bool:
    """Whether torchrun, srun or Lightning started this process as one of several.

    >>> was_launched()
    False
    """
    by_srun = os.environ.get("SLURM_STEP_ID", "").isdigit() and os.environ.get("SLURM_NTASKS", "1") != "1"
    by_lightning = "MASTER_PORT" in os.environ and "LOCAL_RANK" in os.environ
    return "TORCHELASTIC_RUN_ID" in os.environ or by_srun or by_lightning


def process_rank() -> int:
    """Which of the processes of a distributed run this is, from what their launcher says; 0 in a run of one.

    >>> process_rank()
    0
    """
    for variable in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if variable in os.environ and was_launched():
            return int(os.environ[variable])
    return 0


def launched() -> Share:
    """This process among those that torchrun or srun started; one alone without them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return Share(*(int(os.environ[name]) for name in names))
    if not was_launched() or "SLURM_PROCID" not in os.environ:
        return Share()
    here = os.environ.get("SLURM_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0]
    return Share(
        int(os.environ["SLURM_PROCID"]),
        int(os.environ["SLURM_NTASKS"]),
        int(os.environ.get("SLURM_LOCALID", "0")),
        max(1, int(here)),
    )
