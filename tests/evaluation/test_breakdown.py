"""Figures by quartet and by part of the set."""

from __future__ import annotations

import numpy as np
import pytest

from nonlocal_nn.evaluation.breakdown import break_down, check_parts, check_quartets, choose_by_quartet
from nonlocal_nn.evaluation.result import EvaluationResult, summarise

LABELS = ((1,), (0,), (0,), (1,))


def _result(odds: list[float], indices: tuple[int, ...]) -> EvaluationResult:
    p = 1 / (1 + np.exp(-np.array(odds)))
    return summarise(
        np.stack([1 - p, p], axis=1),
        tuple(LABELS[index % 4] for index in indices),
        indices,
        view_ranks=np.zeros(len(indices), dtype=np.int64),
        views=len(indices),
        skipped=(),
    )


GROUPS = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
PARTS = [("12",)] * 4 + [("2",)] * 8
ODDS = [
    3.0,
    1.0,
    -1.0,
    2.0,
    1.0,
    2.0,
    3.0,
    2.0,
    9.0,
    0.0,
    0.0,
    -9.5,
]  # right, wrong, wrong


def test_quartets_of_a_whole_test() -> None:
    found = choose_by_quartet(_result(ODDS, tuple(range(12))), GROUPS)
    assert found is not None
    assert (found.quartets, found.ties_percent) == (3, 0.0)
    assert found.percent == pytest.approx(100 / 3)


def test_a_quartet_with_an_unread_video_is_left_out() -> None:
    indices = tuple(i for i in range(12) if i != 5)
    found = choose_by_quartet(_result([ODDS[i] for i in indices], indices), GROUPS)
    assert found is not None
    assert found.quartets == 2
    assert choose_by_quartet(_result(ODDS[:3], (0, 1, 2)), GROUPS) is None


def test_parts_come_in_order_of_their_numbers_with_both_figures() -> None:
    parts = break_down(_result(ODDS, tuple(range(12))), PARTS, GROUPS)
    assert [part.values for part in parts] == [("2",), ("12",)]
    assert [part.videos for part in parts] == [8, 4]
    assert parts[1].video_top1 == 75.0  # 3, -1 and 2 are right
    assert parts[1].quartets is not None
    assert parts[1].quartets.percent == 100.0
    assert parts[1].to_json(["distance"]) == {
        "distance": "12",
        "videos": 4,
        "video_top1": 75.0,
        "quartets": 1,
        "quartets_right": 100.0,
        "quartets_tied": 0.0,
    }
    assert break_down(_result(ODDS, tuple(range(12))), PARTS, None)[0].quartets is None


def test_quartets_that_are_none_are_named() -> None:
    labels = [*LABELS, *LABELS]
    check_quartets(["a"] * 4 + ["b"] * 4, labels, "quartet")
    with pytest.raises(ValueError, match="quartet 'b' has 3 videos, 2 of class 0 and 1 of class 1"):
        check_quartets(["a"] * 4 + ["b"] * 3, labels[:7], "quartet")
    with pytest.raises(ValueError, match="number '' has 8 videos"):
        check_quartets([""] * 8, labels, "number")
    with pytest.raises(ValueError, match=r"group 'a' are in several parts \(x; y\)"):
        check_parts(["a", "b", "a"], [("x",), ("x",), ("y",)])
