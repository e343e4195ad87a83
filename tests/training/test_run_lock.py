"""Two processes cannot train in one run folder; a killed one leaves nothing that keeps the next out."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nonlocal_nn.training.run import train
from nonlocal_nn.training.run_lock import RunInUseError, hold_run_folder
from tests.training.conftest import ConfigMaker

pytest.importorskip("fcntl")

_HOLDER = """
import sys, time
from pathlib import Path
from nonlocal_nn.training.run_lock import hold_run_folder
lock = hold_run_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_run_in_use_is_refused_and_a_killed_one_is_free(tiny_config: ConfigMaker) -> None:
    config = tiny_config(out="used")
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, config.out], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        config.resume = True
        with pytest.raises(RunInUseError, match=r"another process is training in .*used"):
            train(config)
        assert [path.name for path in Path(config.out).iterdir()] == [".lock"]
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert train(config)["steps"] > 0
    with hold_run_folder(Path(config.out)):
        pass  # given back by the finished run
