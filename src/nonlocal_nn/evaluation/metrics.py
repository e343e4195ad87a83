"""Accuracies from scores: top-k, mean per class, mean average precision; all in percent.

>>> import numpy as np
>>> scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])          # (videos, classes)
>>> topk_accuracy(scores, np.array([0, 1]), k=1), topk_accuracy(scores, np.array([0, 1]), k=2)
(50.0, 100.0)

These are the paper's measures: top-1 and top-5 on Kinetics, mean average precision on Charades. What
libraries leave open is defined here: equal scores, empty classes, scores that are not numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class ClassMean:
    """A mean over the classes that could be measured.

    >>> ClassMean(percent=62.5, classes=4, left_out=(2,))
    ClassMean(percent=62.5, classes=4, left_out=(2,))

    `percent` is None when no class could be measured; `classes` counts those that were, `left_out` has the
    indices of those that were not: nothing in the set belongs to them (torchmetrics counts them as 0).
    """

    percent: float | None
    classes: int
    left_out: tuple[int, ...]


def label_ranks(scores: Scores, labels: Labels) -> NDArray[np.int64]:
    """The place of the true class in each row's order of scores, 0 for the highest.

    >>> label_ranks(np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]), np.array([0, 1])).tolist()
    [0, 1]

    scores (videos, classes), labels (videos,) in [0, classes) -> ranks (videos,). Equal scores stand in the
    order of their class index, as in `argmax`: a row never has two classes in one place.
    Raises ValueError for shapes that do not match, labels outside the range, and scores that are not finite.
    """
    scores = _checked_scores(scores)
    labels = np.asarray(labels)
    videos, classes = scores.shape
    if labels.shape != (videos,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be {videos} integers, one for each row of scores, "
            f"not {labels.dtype} of shape {labels.shape}"
        )
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"the label of row {row} is {int(labels[row])}, but the scores have classes 0 to {classes - 1}"
        )
    own = scores[np.arange(videos), labels][:, None]
    earlier = np.arange(classes)[None, :] < labels[:, None]
    ranks: NDArray[np.int64] = ((scores > own) | ((scores == own) & earlier)).sum(axis=1, dtype=np.int64)
    return ranks


def topk_accuracy(scores: Scores, labels: Labels, k: int = 1) -> float:
    """The share of videos whose true class is among the k highest scores, in percent.

    >>> topk_accuracy(np.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]]), np.array([1, 2]), k=1)
    50.0

    scores (videos, classes), labels (videos,). Every video counts once (the micro average). Equal scores: see
    `label_ranks`.
    Raises ValueError for no videos, k outside [1, classes], and what `label_ranks` refuses.
    """
    ranks = label_ranks(scores, labels)
    classes = np.asarray(scores).shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k = {k}: with {classes} classes it can be 1 to {classes}")
    if len(ranks) == 0:
        raise ValueError("no videos: an accuracy needs at least one")
    return 100.0 * float((ranks < k).mean())


def mean_class_accuracy(scores: Scores, labels: Labels) -> ClassMean:
    """Top-1 accuracy of each class by itself, then their mean: a rare class counts as much as any.

    >>> scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.7, 0.3, 0.0], [0.4, 0.6, 0.0]])
    >>> mean_class_accuracy(scores, np.array([0, 0, 1, 1]))
    ClassMean(percent=75.0, classes=2, left_out=(2,))

    scores (videos, classes), labels (videos,). Classes without a video are left out and named.
    Raises ValueError for what `label_ranks` refuses.
    """
    right = label_ranks(scores, labels) == 0
    classes = np.asarray(scores).shape[1]
    videos_of = np.bincount(labels, minlength=classes)
    right_of = np.bincount(labels, weights=right, minlength=classes)
    seen = videos_of > 0
    percent = 100.0 * float((right_of[seen] / videos_of[seen]).mean()) if seen.any() else None
    return ClassMean(percent, int(seen.sum()), tuple(np.flatnonzero(~seen).tolist()))


def average_precision(scores: Scores, positive: NDArray[np.bool_]) -> float:
    """The mean, over the positives, of the precision at each one's score; in percent.

    >>> round(average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True])), 2)
    83.33

    scores (videos,), positive (videos,) of one class. Not interpolated: the sum over thresholds of (rise of
    recall) times precision. Videos of equal score share one threshold, so their order does not matter.
    Raises ValueError when nothing is positive: the measure does not exist then.
    """
    scores = np.asarray(scores)
    positive = np.asarray(positive, dtype=bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise ValueError(
            f"one class has one score and one truth a video, not shapes {scores.shape} and {positive.shape}"
        )
    if not positive.any():
        raise ValueError("no positive video: average precision does not exist; leave the class out")
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], positive[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    found = np.cumsum(truth)[last_of_tie]
    looked_at = np.arange(1, len(ranked) + 1)[last_of_tie]
    rise = np.diff(found, prepend=0) / found[-1]
    return 100.0 * float((rise * (found / looked_at)).sum())


def mean_average_precision(scores: Scores, targets: NDArray[np.bool_]) -> ClassMean:
    """`average_precision` of each class, then their mean: the measure of Charades (several labels a video).

    >>> scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]])
    >>> mean_average_precision(scores, np.array([[True, False, False], [True, True, False]]))
    ClassMean(percent=100.0, classes=2, left_out=(2,))

    scores (videos, classes), targets (videos, classes) true where the video has the label. Classes without a
    positive video are left out and named.
    Raises ValueError for shapes that do not match and scores that are not finite.
    """
    scores = _checked_scores(scores)
    targets = np.asarray(targets, dtype=bool)
    if targets.shape != scores.shape:
        raise ValueError(f"targets must have the shape of scores {scores.shape}, not {targets.shape}")
    seen = targets.any(axis=0)
    per_class = [average_precision(scores[:, c], targets[:, c]) for c in np.flatnonzero(seen)]
    percent = float(np.mean(per_class)) if per_class else None
    return ClassMean(percent, len(per_class), tuple(np.flatnonzero(~seen).tolist()))


def _checked_scores(scores: Scores) -> Scores:
    scores = np.asarray(scores)
    if scores.ndim != 2:
        raise ValueError(f"scores must be (videos, classes), not of shape {scores.shape}")
    finite = np.isfinite(scores).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"the scores of row {row} are not all finite ({scores[row].tolist()[:8]}): "
            "a NaN would rank anywhere; look at the weights, or test without half precision"
        )
    return scores
