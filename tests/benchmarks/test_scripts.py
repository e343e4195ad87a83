"""The scripts from start to end on tiny maps, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from _measure import peak_of, time_case
from _processes import StoppedError, in_fresh_process

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def call(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_operators_measures_saves_and_resumes(scripts: Path, tmp_path: Path) -> None:
    out = tmp_path / "ops.json"
    options = ["--quick", "--threads", "1", "--rounds", "2", "--out", str(out)]
    options += [
        "--only",
        "operator/*gaussian/tiny_80/all/forward/",
        "--only",
        "block/dot_product/tiny_80/all",
    ]
    first = call(scripts / "operators.py", *options)
    assert first.returncode == 0, first.stderr
    saved = json.loads(out.read_text())
    assert {"cpu", "cores", "threads", "memory_bytes", "torch", "numpy", "python", "date", "commit"} <= set(
        saved["machine"]
    )
    rows = {row["name"]: row for row in saved["rows"]}
    ours = rows["operator/embedded_gaussian/tiny_80/all/forward/float32/ours"]
    assert ours["status"] == "measured"
    assert ours["runs"] >= 2
    assert ours["seconds"] == min(ours["rounds"]) > 0
    assert 0 <= ours["peak_bytes"] < ours["total_bytes"]
    assert rows["block/dot_product/tiny_80/all/forward_backward/float32/plain"]["difference"] < 1e-4
    assert "Figures to reach" in first.stdout

    again = call(scripts / "operators.py", *options, "--resume")
    assert again.returncode == 0, again.stderr
    assert json.loads(out.read_text())["rows"] == saved["rows"]  # nothing was measured again
    page = call(scripts / "operators.py", "--quick", "--markdown", "--out", str(out)).stdout
    assert "| ours |" in page


def test_accuracy_and_scaling_on_tiny_maps(scripts: Path, tmp_path: Path) -> None:
    out = tmp_path / "accuracy.json"
    only = ["--only", "operator/dot_product", "--only", "operator/concatenation"]
    done = call(scripts / "accuracy.py", "--quick", *only, "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 4
    assert all(row["error"] < 2e-6 and row["gradient_error"] < 2e-5 for row in rows)

    scaling = ["--longest", "1024", "--function", "dot_product", "--threads", "1", "--rounds", "1"]
    places = ["--out", str(tmp_path / "scaling.json"), "--assets", str(tmp_path)]
    done = call(scripts / "scaling.py", *scaling, *places)
    assert done.returncode == 0, done.stderr
    assert "<svg" in (tmp_path / "operators_time.svg").read_text()
    assert "<svg" in (tmp_path / "operators_memory.svg").read_text()


def test_wrong_options_are_one_line(scripts: Path, tmp_path: Path) -> None:
    for options, said in (
        (["--only", "res9"], "chooses nothing"),
        (["--peer", str(tmp_path)], "not a checkout of a project known here"),
        (["--markdown", "--out", str(tmp_path / "none.json")], "no results in"),
        (["--rounds", "0"], "at least 1, got 0"),
    ):
        done = call(scripts / "operators.py", *options)
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]


def test_a_process_that_dies_or_fails_is_reported_and_harms_nobody() -> None:
    with pytest.raises(StoppedError, match=r"killed \(exit code 3\)"):
        in_fresh_process(exit_now, limit_seconds=30)
    with pytest.raises(StoppedError, match="ValueError: no good"):
        in_fresh_process(fail, limit_seconds=30)
    with pytest.raises(StoppedError, match="stopped after 0 s"):
        in_fresh_process(sleep, limit_seconds=0.2)


def exit_now() -> None:
    import os

    os._exit(3)


def fail() -> None:
    raise ValueError("no good")


def sleep() -> None:
    import time

    time.sleep(30)


def test_memory_is_the_peak_of_the_call() -> None:
    """A plain softmax over 2000 positions holds two matrices of 16 MB, ours less than one."""
    from _cases import Case
    from _measure import Settings

    case = Case("operator", "embedded_gaussian", "", 16, (2000,), False, "forward")
    peaks = {
        name: in_fresh_process(peak_of, case, name, Settings(), limit_seconds=60)["peak_bytes"]
        for name in ("plain", "ours_linear")
    }
    assert 32e6 < peaks["plain"] < 60e6
    assert peaks["ours_linear"] < peaks["plain"] - 10e6
    rows = in_fresh_process(time_case, case, ("ours", "plain"), Settings(rounds=2), limit_seconds=60)
    assert rows["plain"]["seconds"] > 0
