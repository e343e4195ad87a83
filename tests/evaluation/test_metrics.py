"""The measures against scikit-learn and torchmetrics where these mean the same, by hand where they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy, multilabel_average_precision

from nonlocal_nn.evaluation.metrics import (
    average_precision,
    label_ranks,
    mean_average_precision,
    mean_class_accuracy,
    topk_accuracy,
)


def random_scores(videos: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((videos, classes))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_topk_is_torchmetrics_micro_average(k: int) -> None:
    scores = random_scores(101, 7)
    labels = np.random.default_rng(1).integers(0, 7, 101)
    expected = multiclass_accuracy(
        torch.from_numpy(scores), torch.from_numpy(labels), num_classes=7, top_k=k, average="micro"
    )
    assert topk_accuracy(scores, labels, k) == pytest.approx(100 * float(expected), abs=1e-4)


def test_top_all_is_always_right() -> None:
    assert topk_accuracy(random_scores(9, 4), np.arange(9) % 4, k=4) == 100.0


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_ties_stand_in_class_order(rows: list[list[int]], label: int) -> None:
    scores = np.array(rows, dtype=float)
    order = [sorted(range(4), key=lambda c, row=row: (-row[c], c)) for row in rows]
    assert label_ranks(scores, np.full(len(rows), label)).tolist() == [o.index(label) for o in order]


def test_a_constant_scorer_gets_no_more_than_one_class() -> None:
    assert topk_accuracy(np.zeros((4, 4)), np.arange(4)) == 25.0


def test_mean_class_is_balanced_accuracy() -> None:
    scores = random_scores(60, 5, seed=2)
    labels = np.random.default_rng(3).choice([0, 1, 3, 4], 60, p=[0.7, 0.1, 0.1, 0.1])
    # scikit-learn too leaves out classes without a sample (and warns of class 2)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, scores.argmax(1))
    measured = mean_class_accuracy(scores, labels)
    assert measured.percent == pytest.approx(100 * expected)
    assert measured.classes == 4
    assert measured.left_out == (2,)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns(ties: bool) -> None:
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 6, 80) / 5 if ties else rng.random(80)
    positive = rng.random(80) < 0.2
    assert average_precision(scores, positive) == pytest.approx(
        100 * average_precision_score(positive, scores)
    )
    shuffle = rng.permutation(80)
    assert average_precision(scores[shuffle], positive[shuffle]) == pytest.approx(
        average_precision(scores, positive), abs=1e-12
    )


def test_map_is_torchmetrics_when_every_class_has_a_positive() -> None:
    rng = np.random.default_rng(5)
    scores, targets = rng.random((50, 6)), rng.random((50, 6)) < 0.3
    assert targets.any(0).all()
    expected = multilabel_average_precision(
        torch.from_numpy(scores), torch.from_numpy(targets).long(), num_labels=6, average="macro"
    )
    assert mean_average_precision(scores, targets).percent == pytest.approx(100 * float(expected), abs=1e-4)


def test_map_leaves_out_classes_without_positives() -> None:
    rng = np.random.default_rng(6)
    scores, targets = rng.random((50, 6)), rng.random((50, 6)) < 0.3
    targets[:, 2] = False
    keep = [0, 1, 3, 4, 5]
    measured = mean_average_precision(scores, targets)
    assert measured.left_out == (2,)
    assert measured.classes == 5
    assert measured.percent == mean_average_precision(scores[:, keep], targets[:, keep]).percent


def test_nothing_to_measure_is_none_not_zero() -> None:
    assert mean_average_precision(random_scores(3, 2), np.zeros((3, 2), bool)).percent is None


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), "row 1 is 3.*0 to 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "row 0 is -1"),
        (np.zeros((2, 3)), np.array([0]), "2 integers"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "float64"),
        (np.zeros(3), np.array([0]), r"\(videos, classes\)"),
        (np.array([[0.0, np.nan]]), np.array([0]), "row 0 are not all finite"),
        (np.zeros((0, 3)), np.array([], int), "at least one"),
    ],
)
def test_refuses(scores: np.ndarray, labels: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        topk_accuracy(scores, labels)


@pytest.mark.parametrize("k", [0, 4])
def test_refuses_k(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k}"):
        topk_accuracy(np.zeros((2, 3)), np.array([0, 1]), k)
