"""Ctrl-C, SIGTERM and SLURM's warning signal: recorded when they come, acted upon between two steps.

A handler may run in the middle of an optimizer step, where the state is not consistent; so it only records
the signal. A second Ctrl-C does not wait.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | None


class TrainingInterrupted(SystemExit):
    """Training was stopped by a signal and its state saved; leaves Python with status 128 + signal (Ctrl-C:
    130).
    """

    def __init__(self, signal_number: int, out: Path) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number
        self.out = out


class StopRequestedError(Exception):
    """Raised between two steps, after the checkpoint; `train` turns it into TrainingInterrupted."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class StopSignals:
    """Handlers that record the first signal that asks training to stop.

    >>> with StopSignals() as signals:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     signals.received == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> StopSignals:
        self.install()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def install(self) -> None:
        """Set the handlers (again: Lightning sets its own, which act at once, when it starts)."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if os.environ.get("SLURM_JOB_ID"):
            numbers += [signal.SIGUSR1, signal.SIGUSR2]  # sbatch --signal=USR1@90; submitit's is USR2
        try:
            for number in numbers:
                before = signal.signal(number, self._record)
                self._before.setdefault(number, before)
        except ValueError:  # not the main thread: signals go elsewhere
            return

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        if not self.received:
            self.received = number
            if number == signal.SIGINT:
                sys.stderr.write("\nStopping after this step (Ctrl-C again: at once, without saving).\n")


def ignore_stop_signals(_worker: int) -> None:
    """Let the training process decide when its loader's workers end; for `DataLoader(worker_init_fn=...)`.

    Ctrl-C in a terminal, and often SIGTERM, reach them too, and where they end, the training process fails in
    the middle of a step. So a worker that gets the signal goes on for a few seconds, in which the training
    process stops in order.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_soon)


def _end_soon(_number: int, _frame: FrameType | None) -> None:
    timer = threading.Timer(10.0, os._exit, (0,))
    timer.daemon = True
    timer.start()


def requeue_slurm_job() -> bool:
    """Put this SLURM job back into the queue; the command it runs should have `--resume true`."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
