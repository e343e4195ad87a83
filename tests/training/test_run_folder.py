"""One process at a time trains in a run folder, a killed one blocks nobody, and only runs are deleted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nonlocal_nn.training.run import train
from nonlocal_nn.training.run_folder import RunInUseError, lock_run_folder
from tests.training.conftest import ConfigMaker

_HOLDER = """
import os, sys, time
from pathlib import Path
from nonlocal_nn.training.run_folder import lock_run_folder
lock = lock_run_folder(Path(sys.argv[1]))
worker = os.fork()  # as a decoding worker is
if worker:
    print(worker, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")
def test_a_run_in_use_is_refused_and_a_killed_one_is_free(tiny_config: ConfigMaker) -> None:
    config = tiny_config(out="used")
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, config.out], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        config.resume = True
        with pytest.raises(RunInUseError, match=r"another process is training in .*used"):
            train(config)
        assert [path.name for path in Path(config.out).iterdir()] == [".lock"]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert train(config)["steps"] > 0  # though the worker still lives
        with lock_run_folder(Path(config.out)):
            pass  # given back by the finished run
    finally:
        for process in (holder.pid, worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()


def test_the_lock_goes_with_an_error_too(tiny_config: ConfigMaker, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    with pytest.raises(FileExistsError, match="not empty") as caught:
        train(tiny_config())
    assert caught.tb is not None  # its frames still live
    with lock_run_folder(tmp_path / "run"), pytest.raises(RunInUseError):
        lock_run_folder(tmp_path / "run")


def test_a_folder_that_is_no_run_is_never_deleted(tiny_config: ConfigMaker, tmp_path: Path) -> None:
    precious = tmp_path / "run" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match="not empty"):
            train(tiny_config(**flags))  # type: ignore[arg-type]
    assert precious.read_text() == "years"
