"""Loader processes that die while a network trains."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nonlocal_nn.commands.test import run_test
from nonlocal_nn.data import dataset
from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.evaluation.config import TestConfig
from nonlocal_nn.training.run import train
from tests.training.conftest import ConfigMaker

SECTIONS: dict[str, Any] = {
    "data": {"workers": 1},
    "schedule": {"iterations": 60},
    "optim": {"accumulate": 2},
    "checkpoint_every_seconds": 1e9,
}


def _steps(out: Path) -> int:
    rows = (out / "metrics.csv").read_text().splitlines() if (out / "metrics.csv").exists() else []
    return len(rows) - 1


def _kill_a_loader_process(after: int, out: Path) -> None:
    while _steps(out) < after:
        time.sleep(0.002)
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        return


@pytest.mark.slow
def test_killed_at_three_moments_the_weights_are_the_same(
    tiny_config: ConfigMaker, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = train(tiny_config(out="whole", **SECTIONS))
    config = tiny_config(out="killed", **SECTIONS)
    out = Path(config.out)

    def kill() -> None:
        for after in (5, 20, 40):
            _kill_a_loader_process(after, out)
            while _steps(out) < after + 3:
                time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    results = train(config)
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert results["weights_sha256"] == whole["weights_sha256"]
    assert capfd.readouterr().err.count("a loader process died (SIGKILL") == 3
    assert (out / "checkpoints" / "last.ckpt").exists()


def _crash_on(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    class Crashing(VideoReader):
        def __init__(self, opened: str, **options: Any) -> None:
            if Path(opened) == path:
                os.kill(os.getpid(), signal.SIGSEGV)
            super().__init__(opened, **options)

    monkeypatch.setattr(dataset, "VideoReader", Crashing)


def test_a_file_that_crashes_its_reader_costs_one_line(
    tiny_config: ConfigMaker,
    videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bad = videos / "train" / "light" / "3.mp4"
    _crash_on(monkeypatch, bad)
    sections = SECTIONS | {"schedule": {"iterations": 12}}
    config = tiny_config(out="crashed", **sections)
    train(config)
    rows = list(csv.reader((Path(config.out) / "skipped.csv").open()))
    assert rows == [
        ["path", "reason"],
        [str(bad), "the process that read it died (SIGSEGV), and another one, too"],
    ]
    said = capfd.readouterr().err.replace("\0", "").splitlines()  # torch ends a line of its own so
    assert [line for line in said if "died" in line] == [f"skipped {bad}: {rows[1][1]}"]


def test_a_test_leaves_out_what_crashes_its_reader(
    tiny_config: ConfigMaker, videos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tiny_config(out="run")
    train(config)
    bad = videos / "test" / "dark" / "1.mp4"
    _crash_on(monkeypatch, bad)
    _, results = run_test(
        TestConfig(
            checkpoint=config.out,
            data=str(videos / "test"),
            out=str(tmp_path / "test"),
            clips=1,
            crops=1,
            workers=1,
            device="cpu",
            progress=False,
        )
    )
    assert (results["videos"], results["skipped"]) == (3, 1)
    assert "SIGSEGV" in (tmp_path / "test" / "skipped.csv").read_text()
