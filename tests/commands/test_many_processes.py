"""`test` and `predict` by several processes, killed and gone on with: what one process finds, bit for bit."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nonlocal_nn._launch import Share
from nonlocal_nn.cli import main
from nonlocal_nn.evaluation import parts as parts_module
from nonlocal_nn.evaluation.parts import Parts, Scored

QUICK = ["--clips", "5", "--crops", "3", "--workers", "0", "--device", "cpu", "--progress", "false"]


@pytest.fixture(scope="module")
def forty(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 videos; two lists of them, and one with a broken one."""
    root = tmp_path_factory.mktemp("forty")
    names = ("circle", "cross", "line")
    rows = []
    for number in range(41):
        path = root / f"{number}.mp4"
        make_video(path, seed=number, frames=6 + number % 7, width=32, height=24)
        rows.append(f"{path},{names[number % 3]}")
    (root / "broken.mp4").write_text("no video")
    for name, these in (
        ("40.csv", rows[:40]),
        ("41.csv", rows),
        ("bad.csv", [*rows[:17], f"{root / 'broken.mp4'},line", *rows[17:40]]),
    ):
        (root / name).write_text("path,label\n" + "\n".join(these) + "\n")
    return root


def _environment(**more: str) -> dict[str, str]:
    left = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "SLURM"))}
    return {**left, "OMP_NUM_THREADS": "1", **more}


def _torchrun(processes: int, *words: str, **options) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(processes), "-m", "nonlocal_nn", *words]
    return subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def _alone(*words: str) -> None:
    command = [sys.executable, "-m", "nonlocal_nn", *words]
    subprocess.run(command, env=_environment(), check=True, capture_output=True)


def _words(run: Path, data: Path, out: Path) -> list[str]:
    return ["test", "--checkpoint", str(run), "--data", str(data), "--out", str(out), *QUICK]


def _figures(out: Path) -> tuple[bytes, dict[str, object], bytes]:
    results = json.loads((out / "results.json").read_text())
    results.pop("test_seconds")
    return (out / "predictions.csv").read_bytes(), results, (out / "skipped.csv").read_bytes()


@pytest.mark.parametrize(("data", "counts"), [("40.csv", (2, 3)), ("41.csv", (2,)), ("bad.csv", (3,))])
def test_any_number_of_processes_finds_the_same(run, forty, tmp_path, data, counts) -> None:
    _alone(*_words(run, forty / data, tmp_path / "one"))
    one = _figures(tmp_path / "one")
    with (tmp_path / "one/predictions.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == (41 if data == "41.csv" else 40)
    for processes in counts:
        out = tmp_path / str(processes)
        process = _torchrun(processes, *_words(run, forty / data, out))
        said = process.communicate(timeout=240)[0].decode()
        assert process.returncode == 0, said
        assert said.count("results:") == 1
        assert _figures(out) == one
        assert not (out / ".parts").exists()


def test_a_test_killed_twice_goes_on(run, forty, tmp_path) -> None:
    _alone(*_words(run, forty / "41.csv", tmp_path / "one"))
    out, rng = tmp_path / "killed", random.Random(3)
    slow = Path(__file__).with_name("slow_parts.py")
    words = _words(run, forty / "41.csv", out)
    for kill in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, str(slow), *words],
            env=_environment(PYTHONPATH=os.pathsep.join(sys.path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        before = len(list((out / ".parts").rglob("*.npz")))
        deadline = time.monotonic() + 60
        while len(list((out / ".parts").rglob("*.npz"))) < before + 5 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(kill)
        process.communicate(timeout=60)
        assert process.returncode != 0
        assert not (out / "results.json").exists()
    process = _torchrun(2, *words)
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, said
    assert "of 41 videos are scored already" in said
    assert _figures(out) == _figures(tmp_path / "one")


def test_predict_by_two_processes(run, forty, tmp_path, capsys) -> None:
    places = [str(forty / f"{n}.mp4") for n in range(9)] + [str(forty / "broken.mp4")]
    words = ["predict", *places, "--checkpoint", str(run), *QUICK]
    command = [sys.executable, "-m", "nonlocal_nn", *words, "--json"]
    printed = subprocess.run(command, env=_environment(), capture_output=True, check=False).stdout
    process = _torchrun(2, *words, "--out", str(tmp_path / "found.jsonl"))
    said = process.communicate(timeout=240)[0].decode()
    assert (tmp_path / "found.jsonl").read_bytes() == printed, said
    assert "9 videos:" in said
    assert [path.name for path in tmp_path.iterdir()] == ["found.jsonl"]
    process = _torchrun(2, *words)
    assert "--out FILE says where" in process.communicate(timeout=240)[0].decode()
    assert main([*words[:3], "--checkpoint", str(run), *QUICK, "--out", str(tmp_path / "a.jsonl")]) == 0
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()


def test_parts_of_other_tests_are_not_taken(run_to_write, videos, capsys) -> None:
    words = ["test", "--checkpoint", str(run_to_write), "--data", str(videos), *QUICK]
    wrong = Parts(run_to_write / "test/.parts", "another")
    wrong.write([Scored(0, (1,), np.ones(7) / 7, np.zeros(7), np.zeros(1, np.int64), 1)])
    assert main(words) == 0
    assert "scored already" not in capsys.readouterr().err


def test_a_damaged_part_is_scored_again(tmp_path, capsys) -> None:
    parts = Parts(tmp_path, "k")
    parts.write([Scored(4, (), np.ones(2), np.zeros(2), np.empty(0, np.int64), 3)])
    (file,) = (tmp_path / "k").glob("*.npz")
    file.write_bytes(file.read_bytes()[:50])
    assert parts.indices() == set()
    assert "its videos are scored again" in capsys.readouterr().err


def test_a_silent_process_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parts_module, "SILENT_SECONDS", 0.5)
    parts = Parts(tmp_path, "k")
    parts.write([Scored(n, (), np.ones(2), np.zeros(2), np.empty(0, np.int64), 3) for n in (0, 2, 4)])
    with pytest.raises(ChildProcessError, match=r"process 1 of 2 has been silent .* 2 of its videos"):
        parts.wait_for(5, Share(0, 2, 0, 2))


def test_what_launchers_say(monkeypatch) -> None:
    from nonlocal_nn._launch import launched

    for name, value in (("STEP_ID", "0"), ("PROCID", "5"), ("NTASKS", "8"), ("LOCALID", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "4(x2)")
    assert launched() == Share(5, 8, 1, 4)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert launched() == Share()
