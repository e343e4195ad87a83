"""One process at a time trains in a run folder: two would write over each other's checkpoints.

>>> import tempfile
>>> lock = hold_run_folder(Path(tempfile.mkdtemp()) / "run")
>>> lock.close()                                             # or the end of the process, whatever ends it
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no such locks; there the user must take care
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class RunInUseError(ValueError):
    """Another process is training in this run folder."""


def hold_run_folder(out: Path) -> IO[str]:
    """Take the folder, made where missing, until the file given back is closed.

    The lock belongs to this process and not to its children: decoding workers that outlive a killed run for
    a moment do not keep it from being resumed.

    Raises:
        RunInUseError: another process holds it.
        FileExistsError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; out must name a folder to make")
    out.mkdir(parents=True, exist_ok=True)
    file = (out / LOCK).open("a")
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise RunInUseError(
                f"another process is training in {out}; wait for it, stop it, or choose another out folder"
            ) from None
    return file
