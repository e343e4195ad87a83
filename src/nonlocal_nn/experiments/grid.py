"""Work through cells in a bounded pool of processes: what is finished stays, what fails is listed.

Each process trains one cell after another on a fixed number of threads, so that the figures do not depend on
how many processes there are. Why a pool of our own: a sweep of Hydra cannot be resumed, Optuna and Ray Tune
search instead of filling a grid, and submitit's local executor starts everything at once.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar


class Unit(Protocol):
    """What a pool needs to know of a piece of work.

    Attributes:
        key: equal ones are done once.
        folder: what it says goes to a file beside that.
    """

    @property
    def key(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    def results(self) -> dict[str, Any] | None:
        """What was found; None where it is not finished."""


C = TypeVar("C", bound=Unit)
Work = Callable[[C], None]
_PR_SET_PDEATHSIG = 1
_parent = 0  # in a process of the pool: who started it


@dataclass(frozen=True)
class Failure(Generic[C]):
    """A cell that could not be finished, and why, in one line."""

    cell: C
    reason: str


class GridInUseError(ValueError):
    """Another process works on this grid."""


@contextmanager
def grid_lock(root: Path) -> Iterator[None]:
    """Keep a grid's folder for this process.

    Raises:
        GridInUseError: another process has it.
    """
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    holder = root / ".holder"
    lock = FileLock(root / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = holder.read_text().strip() if holder.exists() else "another process"
        raise GridInUseError(
            f"{root} is in use by {who}; wait for it, or choose another folder with --out"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()}, since {time.strftime('%H:%M:%S')}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def fill(
    cells: Sequence[C],
    work: Work[C],
    *,
    jobs: int,
    threads: int,
    gpus: int = 0,
    progress: Callable[[list[C], list[tuple[C, float]]], None] | None = None,
) -> list[Failure[C]]:
    """Work through all cells that are not finished; the failures, in order.

    Args:
        cells: in the order of the work; equal ones are done once.
        work: trains and tests a cell; called in the processes, so a function of a module.
        jobs: processes.
        threads: of each of them.
        gpus: how many are shared out among the processes.
        progress: called about once a second with the cells done and those at work with their seconds.
    """
    todo = list({cell.key: cell for cell in cells if cell.results() is None}.values())
    done: list[C] = []
    failures: list[Failure[C]] = []
    if not todo:
        return failures
    waiting: list[C] = list(reversed(todo))
    running: dict[Future[None], tuple[C, float]] = {}
    lost: set[str] = set()  # cells whose process died: tried once more
    pool, broken = _pool(jobs, threads, gpus), False
    try:
        while waiting or running:
            while waiting and len(running) < jobs and not broken:
                cell = waiting.pop()
                running[pool.submit(_logged, work, cell)] = (cell, time.monotonic())
            finished, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                cell, _ = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool) and cell.key not in lost:
                    lost.add(cell.key)
                    waiting.append(cell)
                elif error is not None:
                    failures.append(Failure(cell, in_one_line(error)))
                else:
                    done.append(cell)
                broken = broken or isinstance(error, BrokenProcessPool)
            if broken and not running:
                pool.shutdown(wait=False)
                pool, broken = _pool(jobs, threads, gpus), False
            if progress is not None:
                now = time.monotonic()
                progress(done, [(cell, now - start) for cell, start in running.values()])
    except BaseException:
        _stop(pool)
        raise
    pool.shutdown()
    return failures


def _pool(jobs: int, threads: int, gpus: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would take torch's threads with it
    numbers = context.SimpleQueue()
    for number in range(jobs):
        numbers.put(number)
    return ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(numbers, threads, gpus, os.getpid())
    )


def in_one_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the processes as Ctrl-C does: each saves a checkpoint of its run first."""
    processes = list((pool._processes or {}).values())
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGTERM)
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.join(timeout=30)


def _begin(numbers: Any, threads: int, gpus: int, parent: int) -> None:
    """The start of a process: its threads, its GPU, and that it ends with its parent."""
    global _parent
    _parent = parent
    # First of all, since what follows may wait for the parent, who, killed, cannot tell its children.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise SystemExit
    number = numbers.get()
    os.setpgrp()  # Ctrl-C goes to the parent alone, which passes it on once
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _logged(work: Work[C], cell: C) -> None:
    """What the run says goes to a file beside its folder."""
    log = cell.folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        work(cell)
    except SystemExit as stop:  # a run that was told to stop has saved itself
        if os.getppid() != _parent:  # nobody is there to give it another
            os._exit(1)
        raise InterruptedError(f"stopped ({stop.code})") from None
