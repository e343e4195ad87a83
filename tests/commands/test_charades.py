"""A made Charades csv through train, test and submission."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nonlocal_nn.cli import main
from nonlocal_nn.data.dataset import ClipDataset, SampleKey
from nonlocal_nn.data.manifest import read_manifest
from nonlocal_nn.data.transforms import TrainTransform
from tests.evaluation.test_charades import official


@pytest.fixture(scope="module")
def charades(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of 2 s: one has no action, one is broken, one is not there."""
    root = tmp_path_factory.mktemp("charades")
    for number in range(5):
        make_video(root / f"V{number}.mp4", seed=number)
    (root / "V5.mp4").write_text("no video")
    rows = [
        "V0,c001 0.00 0.80;c002 1.20 2.00,2.0",
        "V1,c001 0.00 2.40,2.0",
        "V2,,2.0",
        "GONE,c002 0.00 1.00,2.0",
        "V3,c003 0.50 1.50;c003 1.60 1.90,2.0",
        "V4,c002 0.00 2.00;c001 0.00 0.10,2.0",
        "V5,c003 0.00 2.00,2.0",
    ]
    (root / "labels.csv").write_text("id,actions,length\n" + "\n".join(rows) + "\n")
    return root / "labels.csv"


def test_labels_of_a_clip_are_those_that_overlap_it(charades: Path) -> None:
    manifest = read_manifest(charades)
    assert manifest.kind == "charades_csv"
    assert [(at, record.path, record.labels) for at, record in manifest.missing] == [(3, "GONE", (2,))]
    assert manifest.records[3].actions == ((3, 0.5, 1.5), (3, 1.6, 1.9))
    assert any("1 actions end after their video does, by up to 0.40 s (V1)" in n for n in manifest.notes)
    options = {"clip_frames": 4, "frame_stride": 2, "transform": TrainTransform(crop=16, jitter=(20, 24))}
    clip, video = (
        ClipDataset(manifest, seed=0, labels=labels, **options)  # type: ignore[arg-type]
        for labels in ("clip", "video")
    )
    seen = {tuple(clip[SampleKey(epoch, 0)].labels.nonzero().flatten().tolist()) for epoch in range(40)}
    assert {(1,), (2,)} <= seen <= {(1,), (2,), (1, 2), ()}  # a clip is 0.6 s of a video of 2 s
    assert video[SampleKey(0, 0)].labels.nonzero().flatten().tolist() == [1, 2]


def test_train_test_and_submission(charades: Path, tmp_path: Path, capsys) -> None:
    out, submission = tmp_path / "run", tmp_path / "submission.txt"
    small = ["--model.name", "c2d_tiny_nl1", "--clip_frames", "4", "--crop", "24", "--jitter", "24,30"]
    short = ["--iterations", "2", "--batch_size", "2", "--precise_bn", "0", "--workers", "0"]
    quiet = ["--accelerator", "cpu", "--progress", "false", "--max-bad-videos", "1"]
    assert main(["train", "--data.train", str(charades), "--out", str(out), *small, *short, *quiet]) == 0
    words = ["test", "--checkpoint", str(out), "--data", str(charades), "--clips", "2", "--workers", "0"]
    assert main([*words, "--device", "cpu", "--submission", str(submission)]) == 0
    results = json.loads((out / "test/results.json").read_text())
    assert (results["map_kind"], results["pool"], results["videos"]) == ("official", "max", 5)
    rows = {line.split(" ")[0]: line.split(" ")[1:] for line in submission.read_text().splitlines()}
    assert list(rows) == ["V0", "V1", "V2", "V3", "V4"]
    # The script on that file: the csv's order, what is missing at minus infinity.
    order = ["V0", "V1", "V2", "GONE", "V3", "V4", "V5"]
    labels = {"V0": (1, 2), "V1": (1,), "GONE": (2,), "V3": (3,), "V4": (1, 2), "V5": (3,)}
    scores = [[float(s) for s in rows[v]] if v in rows else [-np.inf] * 157 for v in order]
    targets = [[c in labels.get(v, ()) for c in range(157)] for v in order]
    mean, weighted = official(scores, targets)
    assert results["map"] == results["map_official"] == pytest.approx(mean)
    assert results["map_official_weighted"] == pytest.approx(weighted)
    assert main([*words, "--device", "cpu", "--map", "labelled", "--pool", "mean"]) == 0
    again = json.loads((out / "test/results.json").read_text())
    assert (again["map_kind"], again["pool"]) == ("labelled", "mean")
    assert again["map"] == again["map_labelled"]
    capsys.readouterr()


def test_max_of_one_label_is_said(run_to_write: Path, videos: Path, capsys) -> None:
    words = ["test", "--checkpoint", str(run_to_write), "--data", str(videos), "--clips", "2"]
    assert main([*words, "--workers", "0", "--device", "cpu", "--pool", "max"]) == 0
    assert "largest of its views" in capsys.readouterr().err
