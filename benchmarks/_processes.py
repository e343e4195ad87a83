"""A function in a fresh process, with a time limit; what happens to it happens to nobody else.

The processes come from a server that has imported torch and computed nothing, so that starting one takes no
time, its memory is that of the imports, and no thread or buffer is left from an earlier measurement.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "numpy", "nonlocal_nn.blocks.nonlocal_block"])


class StoppedError(Exception):
    """The process did not end in its own way; the text says how it ended."""


def in_fresh_process(function: Callable[..., Any], *arguments: Any, limit_seconds: float) -> Any:
    """function(*arguments), both importable by name.

    Raises:
        StoppedError: where it failed, was killed or took longer than the limit.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit_seconds):
            raise StoppedError(f"stopped after {limit_seconds:.0f} s")
        try:
            kind, answer = receiver.recv()
        except EOFError:
            process.join(10)
            raise StoppedError(f"killed (exit code {process.exitcode}), most likely out of memory") from None
    finally:
        if process.is_alive():
            process.join(1)
            process.kill()
        process.join()
        receiver.close()
    if kind == "error":
        raise StoppedError(answer)
    return answer


def _run(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = ("result", function(*arguments))
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        answer = ("error", f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})")
    sender.send(answer)
    sender.close()


def _end_with_parent() -> None:
    """A killed benchmark leaves nothing behind that disturbs the next one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
