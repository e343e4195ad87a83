"""The files a test leaves behind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from nonlocal_nn.data.errors import Problem
from nonlocal_nn.evaluation.result import EvaluationResult, summarise, write_predictions


def result_of_three() -> EvaluationResult:
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
    return summarise(
        scores,
        ((0,), (1,), (1,)),
        (0, 2, 3),
        view_ranks=np.array([0, 1, 0]),
        views=3,
        skipped=(Problem("b.mp4", "is empty"),),
    )


def test_json_is_plain_and_complete() -> None:
    written = json.loads(json.dumps(result_of_three().to_json()))
    assert written == {
        "clip_top1": pytest.approx(200 / 3),
        "clip_top5": None,
        "video_top1": pytest.approx(200 / 3),
        "video_top5": None,
        "mean_class": 75.0,
        "map": None,
        "classes_left_out": [2],
        "videos": 3,
        "views": 3,
        "skipped": [{"path": "b.mp4", "reason": "is empty"}],
    }


def test_csv_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    names = ['a, "quoted".mp4', "b.mp4", "c.mp4", "d.mp4"]
    write_predictions(result_of_three(), names, ["run", "walk", "jump"], file)
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["path"], row["labels"], row["predicted"]) for row in rows] == [
        ('a, "quoted".mp4', "run", "run"),
        ("c.mp4", "walk", "jump"),
        ("d.mp4", "walk", "walk"),
    ]
    assert float(rows[1]["jump"]) == 0.7


def test_npz_reads_back(tmp_path: Path) -> None:
    result, file = result_of_three(), tmp_path / "predictions.npz"
    write_predictions(result, list("abcd"), ["run", "walk", "jump"], file)
    with np.load(file) as stored:  # plain arrays: no pickle
        assert stored["path"].tolist() == ["a", "c", "d"]
        assert stored["labels"].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
        assert np.array_equal(stored["scores"], result.scores)
        assert stored["classes"].tolist() == ["run", "walk", "jump"]


def test_refuses_other_endings_and_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.csv or \.npz"):
        write_predictions(result_of_three(), list("abcd"), ["run", "walk", "jump"], tmp_path / "p.txt")
    with pytest.raises(ValueError, match="2 class names for scores of 3"):
        write_predictions(result_of_three(), list("abcd"), ["run", "walk"], tmp_path / "p.csv")
