"""The official count of Charades: against the script in plain words, and beside the two other counts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import multilabel_average_precision

from nonlocal_nn.evaluation.charades import charades_map, write_submission
from nonlocal_nn.evaluation.metrics import mean_average_precision


def official(scores: list[list[float]], targets: list[list[bool]]) -> tuple[float, float]:
    """The script, line by line: the mean, and the mean by positives, over classes that have some."""
    scores = [
        row if any(truth) else [-math.inf] * len(row) for row, truth in zip(scores, targets, strict=True)
    ]
    values, counts = [], []
    for c in range(len(scores[0])):
        order = sorted(range(len(scores)), key=lambda video: -scores[video][c])  # stable
        right = wrong = 0
        precisions = []
        for video in order:
            if targets[video][c]:
                right += 1
                precisions.append(right / (right + wrong))
            else:
                wrong += 1
        if precisions:
            values.append(100 * sum(precisions) / len(precisions))
            counts.append(len(precisions))
    if not values:
        return math.nan, math.nan
    weighted = sum(v * n for v, n in zip(values, counts, strict=True)) / sum(counts)
    return sum(values) / len(values), weighted


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Few values, so that many tie; videos without labels, classes without positives, missing videos."""
    videos, classes = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    cells = videos * classes
    scores = np.array(draw(st.lists(st.integers(0, 4), min_size=cells, max_size=cells))) / 4.0
    truth = np.array(draw(st.lists(st.booleans(), min_size=cells, max_size=cells)))
    table, targets = scores.reshape(videos, classes), truth.reshape(videos, classes)
    for video in draw(st.lists(st.integers(0, videos - 1), max_size=3)):
        table[video] = -np.inf
    for video in draw(st.lists(st.integers(0, videos - 1), max_size=3)):
        targets[video] = False
    return table, targets


@given(tables())
@settings(max_examples=300, deadline=None)
def test_it_is_the_script(table: tuple[np.ndarray, np.ndarray]) -> None:
    scores, targets = table
    found = charades_map(scores, targets)
    mean, weighted = official(scores.tolist(), targets.tolist())
    assert set(found.left_out) == {c for c in range(targets.shape[1]) if not targets[:, c].any()}
    if math.isnan(mean):
        assert found.percent is None
        assert found.weighted is None
    else:
        assert found.percent == pytest.approx(mean, rel=1e-12)
        assert found.weighted == pytest.approx(weighted, rel=1e-12)


@pytest.mark.parametrize("decimals", [None, 2])
def test_three_counts_of_one_set(decimals: int | None) -> None:
    """As large as the set of the paper; each count against its own reference, and in this order."""
    rng = np.random.default_rng(0)
    videos, classes = 1863, 157
    targets = rng.random((videos, classes)) < 0.04
    targets[rng.choice(videos, 135, replace=False)] = False
    targets[:, rng.choice(classes, 16, replace=False)] = False
    scores = rng.random((videos, classes)) * 0.7 + 0.3 * targets * rng.random((videos, classes))
    if decimals is not None:
        scores = scores.round(decimals)
    seen = targets.any(axis=0)
    ours = charades_map(scores, targets).percent
    labelled = mean_average_precision(scores, targets).percent
    assert ours == pytest.approx(official(scores.tolist(), targets.tolist())[0], rel=1e-9)
    each = [average_precision_score(targets[:, c], scores[:, c]) for c in np.flatnonzero(seen)]
    assert labelled == pytest.approx(100 * np.mean(each), rel=1e-9)
    theirs = 100 * float(
        multilabel_average_precision(
            torch.from_numpy(scores), torch.from_numpy(targets).long(), num_labels=classes, average="macro"
        ).nan_to_num()
    )
    assert ours is not None
    assert labelled is not None
    assert ours > labelled > theirs
    assert theirs == pytest.approx(labelled * seen.mean(), rel=1e-3)


def test_a_missing_video_comes_last() -> None:
    targets = np.array([[True], [True], [True]])
    assert charades_map(np.array([[0.5], [0.4], [-np.inf]]), targets).percent == 100.0
    targets = np.array([[True, True], [False, True], [True, False]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [-np.inf, -np.inf]])
    assert charades_map(scores, targets).percent == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1.0) / 2)


def test_what_is_no_score() -> None:
    truth = np.array([[True]])
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="row 0 are not all numbers"):
            charades_map(np.array([[wrong]]), truth)
    with pytest.raises(ValueError, match=r"both \(videos, classes\)"):
        charades_map(np.zeros((2, 3)), np.zeros((3, 2), bool))


def test_a_submission_keeps_ties_and_order(tmp_path: Path) -> None:
    scores = np.random.default_rng(1).random((4, 5))
    scores[1] = scores[0]
    write_submission(tmp_path / "s.txt", [f"videos/V{n}.mp4" for n in range(4)], scores)
    rows = [line.split(" ") for line in (tmp_path / "s.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == ["V0", "V1", "V2", "V3"]
    assert rows[0][1:] == rows[1][1:]
    np.testing.assert_allclose(np.array([row[1:] for row in rows], dtype=float), scores, rtol=1e-8)
