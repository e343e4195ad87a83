"""Work on numbers, shared out over the processes of a Ray cluster, each number counted once.

A process that dies (killed, out of memory, its machine taken away) costs the work it had in hand, which is
tried again elsewhere. Ray would try for ever; here a number that has taken three processes along is given up.
Ray itself is imported when work begins.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

__all__ = ["RayChoice", "Work", "on_ray"]

RayChoice = Literal["auto", "local"]
_Result = TypeVar("_Result")
_Made = TypeVar("_Made", covariant=True)
RETRIES = 2
_SAID = 10
_FRUITLESS = 5  # processes that do not even start, without a result between them
_STORE_BYTES = 200 * 2**20  # for results, which are small; Ray would take a third of the memory


class Work(Protocol[_Made]):
    """What each process does: made there once, then called with one number after the other."""

    def __call__(self, number: int, /) -> _Made: ...


def on_ray(
    choice: RayChoice,
    make: Callable[[], Work[_Result]],
    numbers: Sequence[int],
    *,
    died: Callable[[int], _Result],
    called: Callable[[int], str],
    workers: int | None,
    on_gpus: bool = False,
) -> Iterator[_Result]:
    """make()(number) for each number, in any order; died(number) where that killed three processes.

    Args:
        choice: "auto": the cluster that this machine belongs to, or RAY_ADDRESS; "local": one of its own on
            this machine, which ends with the work.
        make: called in each process; it is sent there, and so is what it gives.
        numbers: what to work on.
        died: the result of a number that is given up.
        called: what people call a number, such as a path.
        workers: processes; None: one for each GPU of the cluster where on_gpus, else one for each CPU.
        on_gpus: give each process a GPU, where the cluster has any.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: there is no cluster, it has no free CPU, or workers is below 1.
        RuntimeError: process after process dies before it does anything.
        Exception: what the work raises.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers = {workers}: with Ray, at least one process must work")
    if not numbers:
        return
    import ray

    with _cluster(ray, choice, workers):
        share = _Processes.of(ray, workers, on_gpus, len(numbers))
        yield from _Pool(ray, make, share, died, called).results(numbers)


@dataclass(frozen=True)
class _Processes:
    """How many processes, and what each may use."""

    count: int
    cpus: int = 1
    gpus: int = 0

    @classmethod
    def of(cls, ray: Any, workers: int | None, on_gpus: bool, numbers: int) -> _Processes:
        held = ray.cluster_resources()
        cpus, gpus = int(held.get("CPU", 0)), int(held.get("GPU", 0))
        if not cpus:
            raise ValueError("the Ray cluster has no CPU; start it with `ray start --head --num-cpus N`")
        if on_gpus and gpus:
            return cls(min(workers or gpus, gpus, numbers), max(1, cpus // gpus), 1)
        return cls(min(workers or cpus, cpus, numbers))


@contextmanager
def _cluster(ray: Any, choice: RayChoice, workers: int | None) -> Iterator[None]:
    """Be connected to a cluster meanwhile."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send reports
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # says so itself, at length
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if choice == "local":
        sys.stderr.write("starting Ray on this machine (some 20 s) ...\n")
        quiet |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        if workers is not None:
            quiet["num_cpus"] = workers
    try:
        ray.init(address=choice, **quiet)
    except ConnectionError:
        raise ValueError(
            "--ray auto: no Ray cluster is running here (`ray start --head` starts one, RAY_ADDRESS names "
            "another); --ray local starts one of its own on this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


class _Worker(Generic[_Result]):
    """One process of the cluster."""

    def __init__(self, make: Callable[[], Work[_Result]], folder: str) -> None:
        with suppress(OSError):  # relative paths mean here what they meant there
            os.chdir(folder)
        self._work = make()

    def ready(self) -> None:
        """Nothing; that it answers says that it was made."""

    def work(self, number: int) -> _Result:
        """The result of one number."""
        return self._work(number)


class _Pool(Generic[_Result]):
    """Processes that are handed one number at a time, and replaced as they die."""

    def __init__(
        self,
        ray: Any,
        make: Callable[[], Work[_Result]],
        share: _Processes,
        died: Callable[[int], _Result],
        called: Callable[[int], str],
    ) -> None:
        self._ray, self._died, self._called, self._count = ray, died, called, share.count
        # No retries of Ray's own: which number killed a process is to be seen here.
        options = {"max_restarts": 0, "max_task_retries": 0, "num_cpus": share.cpus, "num_gpus": share.gpus}
        self._actor = ray.remote(_Worker).options(**options)
        self._make, self._folder = ray.put(make), str(Path.cwd())
        self._running: dict[Any, tuple[Any, int | None]] = {}  # by what is waited for: worker and number

    def results(self, numbers: Sequence[int]) -> Iterator[_Result]:
        """One for each number."""
        waiting, deaths, fruitless, left = deque(numbers), Counter[int](), 0, len(numbers)
        for _ in range(self._count):
            self._start()
        while left:
            (done,), _ = self._ray.wait(list(self._running), num_returns=1)
            worker, number = self._running.pop(done)
            try:
                result = self._ray.get(done)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except self._ray.exceptions.RayError as error:  # the process, or its machine, is gone
                self._end(worker)
                if number is None:
                    fruitless += 1
                    if fruitless > _FRUITLESS:
                        raise RuntimeError(
                            f"{fruitless} Ray processes in a row died before they did anything: "
                            f"{str(error).strip().splitlines()[0]}"
                        ) from None
                else:
                    deaths[number] += 1
                    if deaths[number] > RETRIES:
                        left -= 1
                        yield self._died(number)
                    else:
                        waiting.append(number)
                        self._say(sum(deaths.values()), number)
                if waiting:
                    self._start()
                continue
            if number is not None:
                fruitless, left = 0, left - 1
            if waiting:
                self._hand(worker, waiting.popleft())
            if number is not None:
                yield result

    def _start(self) -> None:
        worker = self._actor.remote(self._make, self._folder)
        self._running[worker.ready.remote()] = worker, None

    def _hand(self, worker: Any, number: int) -> None:
        self._running[worker.work.remote(number)] = worker, number

    def _say(self, deaths: int, number: int) -> None:
        if deaths <= _SAID:
            sys.stderr.write(
                f"a Ray process died while it had {self._called(number)} in hand; it is tried again\n"
            )

    def _end(self, worker: Any) -> None:
        self._ray.kill(worker, no_restart=True)
