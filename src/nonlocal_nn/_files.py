"""Files that are whole or not there at all, whatever kills the process while it writes them.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "results.json"
>>> write_whole(path, lambda partial: partial.write_text("{}"))
>>> path.read_text()
'{}'
"""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO

_ABANDONED_SECONDS = 3600.0
_NO_ROOM_BYTES = 2**16

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
        with partial.open("xb") as made:  # its mode is that of any new file, whatever `write` makes of it
            mode = os.fstat(made.fileno()).st_mode & 0o777
        try:
            write(partial)
            partial.chmod(mode)
            with partial.open("rb+") as written:
                os.fsync(written.fileno())
        except Exception as error:
            _say_if_full(error, path)
            raise
        partial.replace(path)  # atomic: until here the file that was there before is untouched
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def utf8_path(path: str | Path) -> str:
    """The path, for libraries that read names as UTF-8; of a folder with another name, a detour to it.

    >>> utf8_path("runs/model.safetensors")
    'runs/model.safetensors'

    Raises:
        ValueError: the system has no such detours.
    """
    file = Path(path)
    if _is_utf8(str(file)):
        return str(file)
    folder, name = (file, "") if file.is_dir() else (file.parent, file.name)
    if not Path("/proc/self/fd").is_dir() or not _is_utf8(name):
        raise ValueError(f"{path}: this file cannot be used under a name that is not UTF-8; rename it")
    return str(Path(f"/proc/self/fd/{_descriptor(folder.resolve())}", name))


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@functools.cache
def _descriptor(folder: Path) -> int:
    """An open descriptor of a folder, kept for as long as the process runs."""
    return os.open(folder, os.O_RDONLY)


def _say_if_full(error: Exception, path: Path) -> None:
    """Raise the system's own error where a library reports a full disk in words of its own."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        return
    if shutil.disk_usage(path.parent).free < _NO_ROOM_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def open_text(path: Path) -> TextIO:
    """A text file to write, UTF-8, in which any file name can stand; csv wants its line ends as they are."""
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A csv with a line of names, written whole or not at all."""

    def write(partial: Path) -> None:
        with open_text(partial) as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(rows)

    write_whole(path, write)


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
