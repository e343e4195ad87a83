"""The scripts from start to end on tiny maps, by their main functions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import accuracy
import operators
import scaling as scaling_script
from _measure import peak_of, time_case
from _processes import StoppedError, in_fresh_process

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def test_operators_measures_saves_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ops.json"
    options = ["--quick", "--threads", "1", "--rounds", "2", "--out", str(out)]
    options += [
        "--only",
        "operator/embedded_gaussian/tiny_80/all/forward/",
        "--only",
        "block/dot_product/tiny_80/all",
    ]
    assert operators.main(options) == 0
    printed = capsys.readouterr().out
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
    assert "GFLOP/s" in printed

    assert operators.main([*options, "--resume"]) == 0
    assert json.loads(out.read_text())["rows"] == saved["rows"]  # nothing was measured again
    capsys.readouterr()
    assert operators.main(["--markdown", "--out", str(out)]) == 0
    assert "| ours |" in capsys.readouterr().out


def test_accuracy_and_scaling_on_tiny_maps(tmp_path: Path) -> None:
    out = tmp_path / "accuracy.json"
    only = ["--only", "operator/dot_product", "--only", "limit/concatenation"]
    assert accuracy.main(["--quick", *only, "--threads", "1", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    by_dtype = {
        name: [row for row in rows if row["dtype"] == name] for name in ("float32", "bfloat16", "float16")
    }
    assert {name: len(found) for name, found in by_dtype.items()} == {
        "float32": 4,
        "bfloat16": 4,
        "float16": 4,
    }
    worst = [(max(row["errors"]), max(row["gradient_errors"])) for row in by_dtype["float32"]]
    assert all(result < 2e-6 and gradients < 2e-5 for result, gradients in worst)
    assert all(len(row["errors"]) == accuracy.SEEDS[row["dtype"]] for row in rows)
    for row in by_dtype["bfloat16"]:  # seeds differ, and half precision rounds
        assert len(set(row["errors"])) > 1
        assert 1e-5 < row["rms"] < max(row["errors"])

    scaling = ["--longest", "1024", "--function", "dot_product", "--threads", "1", "--rounds", "1"]
    places = ["--out", str(tmp_path / "scaling.json"), "--assets", str(tmp_path)]
    assert scaling_script.main([*scaling, *places]) == 0
    assert "<svg" in (tmp_path / "operators_time.svg").read_text()
    assert "<svg" in (tmp_path / "operators_memory.svg").read_text()


def test_wrong_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["--only", "res9"], "chooses nothing"),
        (["--peer", str(tmp_path)], "not a checkout of a project known here"),
        (["--markdown", "--out", str(tmp_path / "none.json")], "no results in"),
        (["--rounds", "0"], "at least 1, got 0"),
    ):
        with pytest.raises(SystemExit) as ended:
            operators.main(options)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_process_that_dies_or_fails_is_reported_and_harms_nobody() -> None:
    with pytest.raises(StoppedError, match=r"killed \(exit code 3\)"):
        in_fresh_process(exit_now, limit_seconds=30)
    with pytest.raises(StoppedError, match="ValueError: no good"):
        in_fresh_process(fail, limit_seconds=30)
    with pytest.raises(StoppedError, match="stopped after 0 s"):
        in_fresh_process(sleep, limit_seconds=0.2)


def test_a_killed_benchmark_takes_its_process_along(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import _processes, tests.benchmarks.test_scripts as here\n"
        f"_processes.in_fresh_process(here.write_pid_and_sleep, {str(place)!r}, limit_seconds=300)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2]) as starter:
        wait_until(lambda: place.exists() and place.read_text() != "", seconds=120)
        starter.kill()
    wait_until(lambda: not Path(f"/proc/{place.read_text()}").exists(), seconds=30)


def write_pid_and_sleep(place: str) -> None:
    Path(place).write_text(str(os.getpid()))
    time.sleep(300)


def wait_until(so: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.05)


def exit_now() -> None:
    os._exit(3)


def fail() -> None:
    raise ValueError("no good")


def sleep() -> None:
    time.sleep(30)


def test_memory_is_the_peak_of_the_call() -> None:
    """A plain softmax over 6000 positions holds two matrices of 144 MB, ours less than one."""
    from _cases import Case
    from _measure import Settings

    case = Case("operator", "embedded_gaussian", "", 16, (6000,), False, "forward")
    peaks = {
        name: in_fresh_process(peak_of, case, name, Settings(), limit_seconds=60)["peak_bytes"]
        for name in ("plain", "ours_linear")
    }
    assert 288e6 < peaks["plain"] < 340e6
    assert peaks["ours_linear"] < 144e6
    rows = in_fresh_process(time_case, case, ("ours", "plain"), Settings(rounds=2), limit_seconds=60)
    assert rows["plain"]["seconds"] > 0
