"""`nonlocal ablate` from end to end: the same table whatever happens on the way."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nonlocal_nn.cli import main
from nonlocal_nn.experiments import tables
from nonlocal_nn.experiments.grid import grid_lock
from tests.experiments.conftest import TINY

pytest.importorskip("sklearn")

WORDS = ("tiny", "--seeds", "0,1", "--accelerator", "cpu", "--progress", "false")


def _start(out: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.experiments.tiny_ablate", *WORDS, "--out", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _finished(process: subprocess.Popen[bytes], code: int = 0) -> str:
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == code, said
    return said


def _figures(out: Path) -> list[dict[str, str]]:
    with (out / "tiny.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "train_seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid") / "whole"
    said = _finished(_start(out, "--jobs", "1"))
    assert "4 cells, 0 done already; 1 at a time" in said
    return out


def test_what_comes_out(whole: Path) -> None:
    rows = _figures(whole)
    assert {(row["variant"], row["seed"], row["part"]) for row in rows} == {
        (variant, seed, part)
        for variant in ("C2D", "block")
        for seed in ("0", "1")
        for part in ("", "38 px, 0 frames", "0 px, 6 frames")
    }
    blind = [row for row in rows if row["variant"] == "C2D"]
    assert all((row["quartets_right"], row["quartets_tied"]) == ("50.0", "100.0") for row in blind)
    assert {file.name for file in whole.iterdir()} >= {"tiny.csv", "tiny.md", "tiny.svg", "cells", "sets"}
    cells = [path for path in (whole / "cells").iterdir() if path.is_dir()]
    assert len(cells) == 4
    assert all(
        (cell / "config.yaml").exists() and (cell / "test" / "results.json").exists() for cell in cells
    )


def test_two_jobs_give_the_same_table_as_one(whole: Path, tmp_path: Path) -> None:
    _finished(_start(tmp_path / "two", "--jobs", "2"))
    assert _figures(tmp_path / "two") == _figures(whole)


def test_a_grid_killed_at_random_moments_gives_the_same_table(whole: Path, tmp_path: Path) -> None:
    out, rng = tmp_path / "killed", random.Random(0)
    for moment in range(3):
        process = _start(out, "--jobs", "2")
        time.sleep(rng.uniform(3, 12))
        process.send_signal(signal.SIGINT if moment == 1 else signal.SIGKILL)
        process.communicate(timeout=240)
    deadline = time.monotonic() + 60
    while True:  # what a killed grid's processes still finish may hold a run for a moment
        process = _start(out, "--jobs", "2")
        said = process.communicate(timeout=240)[0].decode()
        if process.returncode == 0:
            break
        assert time.monotonic() < deadline, said
    assert _figures(out) == _figures(whole)


def test_a_second_call_finds_everything_and_a_longer_one_the_rest(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tables.TABLES, "tiny", TINY)
    before = {path: path.stat().st_mtime_ns for path in (whole / "cells").rglob("*.safetensors")}
    assert main(["ablate", *WORDS, "--out", str(whole)]) == 0
    assert "4 cells, 4 done already" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "cells").rglob("*.safetensors")}
    assert main(["ablate", *WORDS, "--out", str(whole), "--seeds", "0,1,2", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 6 cells to do" in printed
    assert "C2D: a feature sees 25 pixels, 1 frame" in printed


def test_a_cell_that_fails_is_listed_and_the_others_go_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tables.TABLES, "tiny", TINY)
    out = tmp_path / "failing"
    assert main(["ablate", *WORDS, "--out", str(out), "--seeds", "0", "--dry-run"]) == 0
    key = next(line for line in capsys.readouterr().out.splitlines() if "C2D" in line and "│" in line)
    folder = out / "cells" / key.split("│")[4].strip()
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    assert main(["ablate", *WORDS, "--out", str(out), "--seeds", "0"]) == 1
    printed = capsys.readouterr()
    assert "failed: C2D, seed 0: FileExistsError" in printed.err
    assert "block" in printed.out
    assert {row["variant"] for row in _figures(out)} == {"block"}


def test_two_grids_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tables.TABLES, "tiny", TINY)
    with grid_lock(tmp_path):
        assert main(["ablate", *WORDS, "--out", str(tmp_path)]) == 2
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["2z"], "no table is called '2z'; the tables are 2a, 2b"),
        ([], "which table"),
        (["2d", "--seeds", "1,1"], "1 stands there twice"),
        (["2d", "--jobs", "0"], "jobs = 0"),
        (["2d", "--data", "labels.csv"], "--fold_by COLUMN"),
        (["2d", "--data", "no.csv", "--fold_by", "x"], "no such file: no.csv"),
        (["2d", "--recipe", "r.yaml"], "--recipe belongs to --data PATH"),
        (["2d", "--slurm_partition", "gpu"], "belongs to --engine slurm"),
        (["tiny"], "block: the network cannot be built for clips of 1 frames"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    words: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = replace(TINY.variants[1], options={"temporal_groups": {"res3": 2}}, clip_frames=1)
    monkeypatch.setitem(tables.TABLES, "tiny", replace(TINY, variants=(TINY.variants[0], broken)))
    assert main(["ablate", *words, "--out", str(tmp_path / "grid")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()


def test_a_recipe_does_not_choose_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, recipe = tmp_path / "labels.csv", tmp_path / "recipe.yaml"
    labels.write_text("path,label,sequence\na.mp4,one,1\nb.mp4,two,2\n")
    recipe.write_text("model: {weights: mine.safetensors}\n")
    words = ["--data", str(labels), "--fold_by", "sequence", "--folds", "2", "--recipe", str(recipe)]
    assert main(["ablate", "2c", *words, "--out", str(tmp_path / "grid")]) == 2
    assert "has the key model" in capsys.readouterr().err
