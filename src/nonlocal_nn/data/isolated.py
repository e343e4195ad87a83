"""Run a function on many files in processes that may crash on them."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

__all__ = ["run_isolated"]

Result = TypeVar("Result")


def run_isolated(
    work: Callable[[str], Result], paths: Sequence[str], *, workers: int, crashed: Callable[[str], Result]
) -> Iterator[Result]:
    """Yield work(path) for every path, in any order; crashed(path) where that killed its process.

    When a process dies (a decoder's segmentation fault, or no memory left), every file that was
    being worked on is tried again, alone in a process of its own: that shows which of them it was.
    """
    waiting = deque(paths)
    while waiting:
        suspects: list[str] = []
        with _pool(min(workers, len(waiting))) as pool:
            running: dict[Future[Result], str] = {}
            while (waiting or running) and not suspects:
                while waiting and len(running) < 2 * workers:  # few at a time: few to try again
                    path = waiting.popleft()
                    try:
                        running[pool.submit(work, path)] = path
                    except BrokenProcessPool:
                        suspects.append(path)
                        break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    path = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        suspects.append(path)
            suspects += running.values()
        for path in suspects:
            yield _alone(work, path, crashed)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not "fork": the progress bar runs in a thread, and a forked child may inherit its locks.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _alone(work: Callable[[str], Result], path: str, crashed: Callable[[str], Result]) -> Result:
    with _pool(1) as pool:
        try:
            return pool.submit(work, path).result()
        except BrokenProcessPool:
            return crashed(path)
