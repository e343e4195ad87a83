"""Cells as a SLURM job array, by submitit: a job that is preempted or cut off is queued again and resumes."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nonlocal_nn.experiments.grid import C, Failure, Work, in_one_line

_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class SlurmOptions:
    """What each job gets: partition (None: the default), minutes at most, CPU threads, a GPU or none."""

    partition: str | None
    minutes: int
    threads: int
    gpu: bool


class _Job:
    """One cell; submitit calls `checkpoint` when the job is about to be cut off, and queues what it gives."""

    def __call__(self, work: Work[C], cell: C) -> None:
        work(cell)

    def checkpoint(self, work: Work[C], cell: C) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, work, cell)  # a run resumes by itself


def fill_on_slurm(
    cells: Sequence[C],
    work: Work[C],
    root: Path,
    options: SlurmOptions,
    *,
    at_once: int,
    cluster: Literal["slurm", "local"] = "slurm",
) -> list[Failure[C]]:
    """Submit all cells that are not finished, and wait for them; the failures.

    Args:
        cells: equal ones are done once.
        work: trains and tests a cell.
        root: of the grid, on a disk that all machines see; its folder slurm gets the logs.
        options: of a job.
        at_once: jobs that run at the same time, at most.
        cluster: local runs them here, for tests: all at once, whatever `at_once` says.

    Raises:
        ImportError: submitit is missing.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("--engine slurm needs submitit: pip install 'nonlocal-nn[slurm]'") from error
    todo = list({cell.key: cell for cell in cells if cell.results() is None}.values())
    if not todo:
        return []
    executor = submitit.AutoExecutor(folder=root / "slurm", cluster=cluster, slurm_max_num_timeout=1000)
    executor.update_parameters(
        name="nonlocal_ablate",
        timeout_min=options.minutes,
        cpus_per_task=options.threads,
        gpus_per_node=int(options.gpu),
        slurm_array_parallelism=at_once,
        **({} if options.partition is None else {"slurm_partition": options.partition}),
    )
    jobs = executor.map_array(_Job(), [work] * len(todo), todo)
    about = f"logs in {root / 'slurm'}; Ctrl-C leaves them running"
    sys.stderr.write(f"{len(jobs)} jobs, {jobs[0].job_id} and so on, {about}\n")
    while not all(job.done() for job in jobs):
        time.sleep(_LOOK_SECONDS if cluster == "slurm" else 0.2)
    errors = [(cell, job.exception()) for cell, job in zip(todo, jobs, strict=True)]
    return [Failure(cell, _reason(error)) for cell, error in errors if error is not None]


def _reason(error: BaseException) -> str:
    """Submitit hands over the job's whole traceback as text: its last error says what happened."""
    found = re.findall(r"^\w[\w.]*(?:Error|Exception|Interrupt)\b.*$", str(error), flags=re.MULTILINE)
    return str(found[-1]) if found else in_one_line(error)
