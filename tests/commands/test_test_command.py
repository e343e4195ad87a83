"""`nonlocal test` on real files: figures, files, and videos or classes that do not fit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nonlocal_nn.checkpoints.load import load_model
from nonlocal_nn.checkpoints.save import save_model
from nonlocal_nn.cli import main

QUICK = ["--clips", "2", "--crops", "3", "--workers", "0", "--device", "cpu"]
Capture = pytest.CaptureFixture[str]


def test_figures_agree_with_the_predictions_file(run_to_write: Path, videos: Path, capsys: Capture) -> None:
    assert main(["test", "--checkpoint", str(run_to_write), "--data", str(videos), *QUICK]) == 0
    out = run_to_write / "test"
    assert str(out / "results.json") in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    with (out / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    right = [row["labels"] == row["predicted"] for row in rows]
    assert results["video_top1"] == pytest.approx(100 * np.mean(right))
    assert (results["videos"], results["views"], results["skipped"]) == (3, 18, 0)
    assert (results["clip_frames"], results["frame_stride"], results["short_side"]) == (4, 2, 24)
    assert results["video_top5"] is not None
    assert results["map"] is None
    assert results["classes_left_out"] == ["line", "[bold]square", "star", "wave", "zigzag"]
    assert (out / "skipped.csv").read_text().split() == ["path,reason"]


def test_the_same_scores_as_predict(run_to_write: Path, videos: Path, capsys: Capture) -> None:
    main(["test", "--checkpoint", str(run_to_write), "--data", str(videos), *QUICK, "--predictions", "npz"])
    capsys.readouterr()
    main(["predict", str(videos), "--checkpoint", str(run_to_write), *QUICK, "--top", "7", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with np.load(run_to_write / "test" / "predictions.npz") as stored:
        assert stored["path"].tolist() == [line["path"] for line in lines]
        for row, line in zip(stored["scores"], lines, strict=True):
            for entry in line["classes"]:
                assert entry["score"] == pytest.approx(row[entry["index"]], abs=1e-6)


def test_classes_go_by_name(run_to_write: Path, videos: Path, capsys: Capture) -> None:
    """The set has two of the network's seven classes: cross is its class 1 in both, wave is 5 and not 1."""
    wave = videos / "cross"
    listed = run_to_write / "list.csv"
    listed.write_text(
        f"path,label,split\n{wave / 'b.mp4'},wave,x\n{videos / 'circle' / 'a.mp4'},circle,x\nno.mp4,line,y\n"
    )
    words = [
        "test",
        "--checkpoint",
        str(run_to_write),
        "--data",
        str(listed),
        "--where",
        "split == x",
        *QUICK,
    ]
    assert main([*words, "--predictions", "npz"]) == 0
    with np.load(run_to_write / "test" / "predictions.npz") as stored:
        assert stored["labels"].argmax(1).tolist() == [5, 0]
    assert json.loads((run_to_write / "test" / "results.json").read_text())["where"] == "split == x"


def test_other_classes_are_refused(
    run_to_write: Path, make_video: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    make_video(tmp_path / "set" / "juggling" / "a.mp4", seed=1)
    assert main(["test", "--checkpoint", str(run_to_write), "--data", str(tmp_path / "set"), *QUICK]) == 2
    err = capsys.readouterr().err
    assert "juggling" in err
    assert err.count("\n") == 1


def test_broken_videos_are_left_out_and_listed(
    run_to_write: Path, videos: Path, broken: Path, tmp_path: Path, capsys: Capture
) -> None:
    listed = tmp_path / "list.txt"
    good = videos / "circle" / "a.mp4"
    listed.write_text(f"{good} circle\n{broken} cross\nabsent.mp4 line\n")
    out = tmp_path / "out"
    words = ["test", "--checkpoint", str(run_to_write), "--data", str(listed), "--out", str(out), *QUICK]
    assert main(words) == 0
    assert "videos skipped: 2" in capsys.readouterr().out
    with (out / "skipped.csv").open(newline="") as stream:
        rows = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(stream)}
    assert set(rows) >= {"text.mp4"}
    assert len(rows) == 2
    assert all(rows.values())
    results = json.loads((out / "results.json").read_text())
    assert (results["videos"], results["skipped"]) == (1, 2)


def test_nothing_to_test_is_an_error(
    run_to_write: Path, broken: Path, tmp_path: Path, capsys: Capture
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{broken} circle\n")
    assert main(["test", "--checkpoint", str(run_to_write), "--data", str(listed), *QUICK]) == 2
    err = capsys.readouterr().err
    assert "none of the 1 videos could be tested" in err
    assert "text.mp4" in err
    with (run_to_write / "test" / "skipped.csv").open(newline="") as stream:
        assert [Path(row["path"]).name for row in csv.DictReader(stream)] == ["text.mp4"]
    assert not (run_to_write / "test" / "results.json").exists()


def test_several_labels_give_map(run: Path, videos: Path, tmp_path: Path, capsys: Capture) -> None:
    model = load_model(run)
    save_model(model, tmp_path / "model.safetensors", {**model.metadata, "multi_label": "true"})
    listed = tmp_path / "list.txt"
    listed.write_text(
        f"{videos / 'circle' / 'a.mp4'} 0,2\n{videos / 'cross' / 'b.mp4'} 1\n"
        f"{videos / 'circle' / 'short.mp4'} 0\n"
    )
    assert main(["test", "--checkpoint", str(tmp_path), "--data", str(listed), *QUICK]) == 0
    assert "mean average precision" in capsys.readouterr().out
    results = json.loads((tmp_path / "test" / "results.json").read_text())
    assert results["map"] is not None
    assert results["video_top1"] is None
    # one label a video is a case of several
    assert main(["test", "--checkpoint", str(tmp_path), "--data", str(videos), *QUICK]) == 0
    assert json.loads((tmp_path / "test" / "results.json").read_text())["map"] is not None
    # but a network that chooses one class has no scores for several
    assert main(["test", "--checkpoint", str(run), "--data", str(listed), *QUICK]) == 2
    assert "several labels a video" in capsys.readouterr().err


def test_its_config_file_is_the_test_again(run_to_write: Path, videos: Path) -> None:
    words = ["test", "--checkpoint", str(run_to_write), "--data", str(videos), *QUICK, "--full_frame"]
    assert main(words) == 0
    out = run_to_write / "test"
    first = json.loads((out / "results.json").read_text())
    assert first["crops"] == "full frame"
    (out / "config.yaml").rename(run_to_write / "again.yaml")
    assert main(["test", "--config", str(run_to_write / "again.yaml")]) == 0
    second = json.loads((out / "results.json").read_text())
    first.pop("test_seconds"), second.pop("test_seconds")
    assert first == second
    assert yaml.safe_load((out / "config.yaml").read_text())["full_frame"] is True


def test_half_precision_is_near(run_to_write: Path, videos: Path) -> None:
    words = ["test", "--checkpoint", str(run_to_write), "--data", str(videos), *QUICK, "--predictions", "npz"]
    scores = []
    for precision in ("32", "bf16-mixed"):
        assert main([*words, "--precision", precision]) == 0
        with np.load(run_to_write / "test" / "predictions.npz") as stored:
            scores.append(torch.from_numpy(stored["scores"]))
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0.05)
    assert not torch.equal(scores[0], scores[1])
