"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nonlocal_nn._files import write_whole


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, lambda partial: partial.write_text("old"))

    def fail(partial: Path) -> None:
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_text() == "old"


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from nonlocal_nn._files import write_whole\n"
        "def write(partial): partial.write_text('new'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(Path(sys.argv[1]), write)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    (left,) = (other for other in tmp_path.iterdir() if other != path)
    os.utime(left, (0, 0))  # long ago
    write_whole(path, lambda partial: partial.write_text("new"))
    assert [other.name for other in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "new"
