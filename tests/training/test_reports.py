"""The files that a run writes while it trains: metrics.csv and skipped.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from nonlocal_nn.data.errors import Problem
from nonlocal_nn.training.reports import MetricsCsv
from nonlocal_nn.training.run import train
from nonlocal_nn.training.skipped import SkippedVideos, TooManyBadVideosError


def test_skipped_videos_are_listed_once_and_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "skipped.csv"
    skipped = SkippedVideos(path, videos=20, allowed_share=0.1)
    skipped.add([Problem("b.mp4", 'odd, "quoted"'), Problem("b.mp4", "again")], warn=True)
    skipped.add([Problem("val.mp4", "x"), Problem("val2.mp4", "x")], warn=True, training=False)
    skipped.add([Problem("a.mp4", "empty")], warn=True)
    assert capsys.readouterr().err.count("skipped b.mp4") == 1
    with path.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["a.mp4", "b.mp4", "val.mp4", "val2.mp4"]
    resumed = SkippedVideos(path, videos=20, allowed_share=0.1)
    resumed.load(skipped.state())
    with pytest.raises(TooManyBadVideosError, match=r"3 of 20 training videos \(15.0%\)"):
        resumed.add([Problem("c.mp4", "no video stream")], warn=False)
    assert "c.mp4" in path.read_text()


def test_metrics_go_on_where_the_checkpoint_stands(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCsv(path, from_step=0)
    for step in (2, 4, 6):
        log.add(step, {"train_loss": float(step)})
    resumed = MetricsCsv(path, from_step=4)
    resumed.add(6, {"train_loss": 6.0})
    resumed.add(6, {"val_top1": 50.0})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["train_loss"], row["val_top1"]) for row in rows] == [
        ("2", "2", ""),
        ("4", "4", ""),
        ("6", "6", "50"),
    ]


def test_ten_lines_at_most_of_skipped_videos(tmp_path, capsys) -> None:
    skipped = SkippedVideos(tmp_path / "skipped.csv", videos=1000, allowed_share=1.0)
    skipped.add([Problem(f"{number}.mp4", "no such file") for number in range(500)], warn=True)
    skipped.add([Problem("one more.mp4", "it is empty")], warn=True)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 11
    assert said[0] == "skipped 0.mp4: no such file"
    assert said[-1] == f"more than 10 videos are skipped; all of them are in {tmp_path / 'skipped.csv'}"
    assert len((tmp_path / "skipped.csv").read_text().splitlines()) == 502


def test_a_run_says_how_long_it_waited_for_batches(tiny_config) -> None:
    config = tiny_config()
    train(config)
    with (Path(config.out) / "metrics.csv").open(newline="") as file:
        waiting = [float(row["waiting"]) for row in csv.DictReader(file) if row["train_loss"]]
    assert len(waiting) == 6
    assert all(0 < share < 1 for share in waiting)  # decoding in the process that trains
