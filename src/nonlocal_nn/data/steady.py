"""A loader that outlives its decoding processes: one that dies costs a line, not the run.

A decoder crashes on a file, the system kills a process for memory: torch's DataLoader then raises, in the
middle of whatever the training process does. Here the batches are a function of their number, so a new loader
goes on with the batch that is missing. The file that the dead process had open is tried alone; where that
process dies as well, the file is left out like any broken one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.sharedctypes import RawArray
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info

from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.loading import ways_through

__all__ = ["AtWork", "Batches", "FixedBatches", "Isolating", "SteadyLoader"]

_Batch = TypeVar("_Batch", covariant=True)
_FRUITLESS = 5  # deaths without a batch between them
_SAID = 10
_NOTHING = -1
_MOMENT_SECONDS = 0.5


class Batches(Protocol):
    """What a loader asks its data set for: lists of keys, each known by its number."""

    def __len__(self) -> int: ...

    def lists_from(self, first: int) -> Iterator[list[Any]]:
        """The lists from number `first` on."""
        ...


class FixedBatches:
    """Places in their order, so many together.

    >>> list(FixedBatches([4, 5, 6], size=2).lists_from(1))
    [[6]]
    """

    def __init__(self, indices: Sequence[int], size: int) -> None:
        self.indices, self.size = indices, size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.size)

    def lists_from(self, first: int) -> Iterator[list[int]]:
        """The lists from number `first` on."""
        for begin in range(first * self.size, len(self.indices), self.size):
            yield list(self.indices[begin : begin + self.size])


class AtWork:
    """What each decoding process has in hand, in memory that outlives it.

    >>> at_work = AtWork(2)
    >>> at_work.note(3, 7, 12)                      # outside a loader's process: the first place
    >>> at_work.of(0), at_work.of(1)
    ((3, 7, 12), None)
    """

    def __init__(self, workers: int) -> None:
        self._numbers = RawArray("q", [_NOTHING] * (3 * workers))

    def note(self, epoch: int, index: int, video: int) -> None:
        """This process reads a video, for the sample (epoch, index)."""
        self._put(epoch, index, video)

    def done(self) -> None:
        """This process has nothing in hand."""
        self._put(_NOTHING, _NOTHING, _NOTHING)

    def of(self, worker: int) -> tuple[int, int, int] | None:
        """What a process had in hand when it was last heard of."""
        epoch, index, video = self._numbers[3 * worker : 3 * worker + 3]
        return None if video == _NOTHING else (epoch, index, video)

    def _put(self, *numbers: int) -> None:
        info = get_worker_info()
        place = 3 * (0 if info is None else info.id)
        self._numbers[place : place + 3] = numbers


class Isolating(Protocol):
    """A data set that says what it reads, and can be told to leave a video out."""

    at_work: AtWork | None

    def read_again(self, epoch: int, index: int) -> object:
        """The sample (epoch, index)."""
        ...

    def path_of(self, video: int) -> str:
        """The file of a video."""
        ...

    def leave_out(self, video: int, problem: Problem) -> None:
        """Treat a video as broken from now on."""
        ...


class SteadyLoader(Generic[_Batch]):
    """Batches made by processes that may die.

    Args:
        dataset: indexed by the keys; where it is `Isolating`, a file on which a process dies is found out.
        batches: the keys of each batch.
        collate: makes a batch of samples.
        batch_bytes: what a batch takes, for the shared memory.
        workers: processes; 0: none, this process reads.
        worker_init: called in each process as it starts.
        pin_memory: see torch's DataLoader.
        prefetch: batches that each process makes ahead.
    """

    def __init__(
        self,
        dataset: Any,
        batches: Batches,
        collate: Callable[[Any], Any],
        *,
        batch_bytes: int,
        workers: int,
        worker_init: Callable[[int], None] | None = None,
        pin_memory: bool = False,
        prefetch: int = 2,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.workers = workers
        self.deaths = 0
        self._collate, self._unpack = ways_through(collate, batch_bytes, workers)
        self._worker_init, self._pin_memory, self._prefetch = worker_init, pin_memory, prefetch
        self._running: Any = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[_Batch]:
        """Every batch once, in order.

        Raises:
            RuntimeError: process after process dies and no batch comes.
        """
        made = fruitless = 0
        while True:
            at_work = AtWork(self.workers) if self._isolates and self.workers else None
            if at_work is not None:
                self.dataset.at_work = at_work
            self._running = running = iter(self._loader(made))
            with _deaths_are_seen_here(running):
                while True:
                    try:
                        batch = next(running)
                    except StopIteration:
                        return
                    # OSError: it died with a batch in its hands, half handed over
                    except (RuntimeError, OSError, EOFError) as error:
                        dead = [] if "in DataLoader worker process" in str(error) else _dead(running)
                        if not dead:
                            raise
                        fruitless += 1
                        if fruitless > _FRUITLESS:
                            raise RuntimeError(_many_deaths(dead[0][1])) from error
                        break
                    made += 1
                    fruitless = 0
                    yield self._unpack(batch)
            self.close()
            self.deaths += 1
            if self._look_into(dead, at_work):
                fruitless = 0

    def close(self) -> None:
        """End the processes now; torch waits for the garbage collector."""
        shutdown = getattr(self._running, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        self._running = None

    @property
    def _isolates(self) -> bool:
        return hasattr(self.dataset, "leave_out")

    def _loader(self, first: int) -> DataLoader[Any]:
        return DataLoader(
            self.dataset,
            batch_sampler=_From(self.batches, first),
            collate_fn=self._collate,
            num_workers=self.workers,
            worker_init_fn=self._worker_init,
            pin_memory=self._pin_memory,
            prefetch_factor=self._prefetch if self.workers else None,
        )

    def _look_into(self, dead: Sequence[tuple[int, int]], at_work: AtWork | None) -> bool:
        """Try what the dead processes had in hand, each alone; leave out what kills its process again.

        Whether something was left out; it is reported with the broken videos.
        """
        held: str | None = None
        for worker, code in dead:
            in_hand = None if at_work is None else at_work.of(worker)
            if in_hand is None:
                continue
            again = _alone(self.dataset, in_hand)
            held = self.dataset.path_of(in_hand[2])
            if again is not None:
                code, video = again
                reason = f"the process that read it died ({_how(code)}), and another one, too"
                self.dataset.leave_out(video, Problem(self.dataset.path_of(video), reason))
                return True
        if self.deaths <= _SAID:
            file = "" if held is None else f" while it read {held}, which can be read"
            sys.stderr.write(
                f"a loader process died ({_how(dead[0][1])}){file}; a new one goes on with the same batch\n"
            )
        return False


class _From:
    """A batch sampler: the batches from one on."""

    def __init__(self, batches: Batches, first: int) -> None:
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return len(self.batches) - self.first

    def __iter__(self) -> Iterator[list[Any]]:
        return self.batches.lists_from(self.first)


@contextmanager
def _deaths_are_seen_here(running: Any) -> Iterator[None]:
    """No exception in the middle of a step: torch's handler of SIGCHLD raises wherever this process is.

    The iterator itself looks, every five seconds, whether its processes live.
    """
    before: Any = None
    if hasattr(running, "_workers") and hasattr(signal, "SIGCHLD"):
        with suppress(ValueError):  # not the main thread: there is no handler of ours either
            before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if before is not None:
            with suppress(ValueError):
                signal.signal(signal.SIGCHLD, before)


def _dead(running: Any) -> list[tuple[int, int]]:
    """Number and exit code of each process that has ended, or ends within a moment."""
    workers = getattr(running, "_workers", ())
    ended = connection.wait([process.sentinel for process in workers], timeout=_MOMENT_SECONDS)
    for process in workers:
        if process.sentinel in ended:  # its files are closed; its exit code comes a moment later
            process.join(timeout=_MOMENT_SECONDS)
    return [(n, process.exitcode) for n, process in enumerate(workers) if process.exitcode is not None]


def _alone(dataset: Isolating, in_hand: tuple[int, int, int]) -> tuple[int, int] | None:
    """Read a sample in a process of its own: None where that goes well, else its exit code and the video."""
    context = multiprocessing.get_context()
    at_work = dataset.at_work = AtWork(1)
    process = context.Process(target=_read, args=(dataset, *in_hand[:2]), daemon=True)
    process.start()
    process.join()
    code = process.exitcode
    if not code:
        return None
    now = at_work.of(0)
    return code, in_hand[2] if now is None else now[2]


def _read(dataset: Isolating, epoch: int, index: int) -> None:
    """What that process does; what a broken video raises is no death."""
    torch.set_num_threads(1)  # as in a loader's process: a forked one has none of its parent's threads
    with suppress(Exception):
        dataset.read_again(epoch, index)
    os._exit(0)


def _how(code: int) -> str:
    """An exit code for people.

    >>> _how(-9), _how(3)
    ('SIGKILL, as the system does where memory runs out', 'exit code 3')
    """
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as the system does where memory runs out" if name == "SIGKILL" else name


def _many_deaths(code: int) -> str:
    return (
        f"{_FRUITLESS + 1} loader processes in a row died ({_how(code)}) and no batch came: memory or shared "
        "memory is probably too small; take fewer of them (--data.workers 1, --workers 1)"
    )
