"""Files that are whole or not there at all, whatever kills the process while it writes them.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "results.json"
>>> write_whole(path, lambda partial: partial.write_text("{}"))
>>> path.read_text()
'{}'
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, make sure that it is on the disk, and only then put it in its
    place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    write(partial)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(path)  # atomic: until here the file that was there before is untouched
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
