"""What processes of a Ray cluster do in tests: they import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


class Square:
    """Squares; some numbers kill the process, and one does so once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, number: int, /) -> int:
        with (self._folder / "calls").open("a") as calls:
            calls.write(f"{number}\n")
        if number == 7:
            os._exit(9)
        if number == 3 and not (self._folder / "once").exists():
            (self._folder / "once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 100:
            raise ValueError("no square of 100")
        return number * number


class Sleepy:
    """Says which process it is, and takes its time."""

    def __call__(self, number: int, /) -> tuple[int, int]:
        time.sleep(0.3)
        return number, os.getpid()


def no_work() -> Square:
    """A process that dies before it does anything."""
    os._exit(3)
