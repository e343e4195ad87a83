"""Run a function on many files in processes that may crash on them."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

__all__ = ["run_isolated"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_isolated(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int, crashed: Callable[[Item], Result]
) -> Iterator[Result]:
    """Yield work(item) for every item, such as a path, in any order; crashed(item) where that killed its
    process.

    When a process dies (a decoder's segmentation fault, or no memory left), every file that was
    being worked on is tried again, alone in a process of its own: that shows which of them it was.
    """
    waiting = deque(items)
    while waiting:
        suspects: list[Item] = []
        with _pool(min(workers, len(waiting))) as pool:
            running: dict[Future[Result], Item] = {}
            while (waiting or running) and not suspects:
                while waiting and len(running) < 2 * workers:  # few at a time: few to try again
                    item = waiting.popleft()
                    try:
                        running[pool.submit(work, item)] = item
                    except BrokenProcessPool:
                        suspects.append(item)
                        break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    item = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        suspects.append(item)
            suspects += running.values()
        for item in suspects:
            yield _alone(work, item, crashed)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not "fork": the progress bar runs in a thread, and a forked child may inherit its locks.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _alone(work: Callable[[Item], Result], item: Item, crashed: Callable[[Item], Result]) -> Result:
    with _pool(1) as pool:
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            return crashed(item)
