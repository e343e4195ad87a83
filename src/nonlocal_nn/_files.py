"""Files that are whole or not there at all, whatever kills the process while it writes them.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "results.json"
>>> write_whole(path, lambda partial: partial.write_text("{}"))
>>> path.read_text()
'{}'
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

_ABANDONED_SECONDS = 3600.0

# Under which a state dict's metadata keeps the options of a non-local block.
BLOCK_OPTIONS_KEY = "nonlocal_nn"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, make sure that it is on the disk, and only then put it in its
    place.

    A reader, or a kill at any moment, finds the old file or the new one. Missing folders are made; where
    `write` fails, what it had written is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    # two writers of one path do not share it
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write(partial)
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)  # atomic: until here the file that was there before is untouched
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _remove_abandoned(path: Path) -> None:
    """What a killed process left of an earlier attempt; a file still being written is younger than that."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):  # another writer was faster
            if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name in the folder last through a power cut, where the system lets a folder be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
