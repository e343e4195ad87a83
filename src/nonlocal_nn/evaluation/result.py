"""What a test found: the figures, and the scores behind them as files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn._files import open_text, write_whole
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.evaluation.metrics import mean_average_precision, mean_class_accuracy, topk_accuracy


@dataclass(frozen=True)
class EvaluationResult:
    """The figures of a test, accuracies in percent.

    >>> scores = np.array([[0.9, 0.1], [0.6, 0.4]])
    >>> result = summarise(scores, ((0,), (1,)), (0, 1), view_ranks=np.array([0, 1]), views=2, skipped=())
    >>> result.video_top1, result.video_top5
    (50.0, None)

    A figure that the test does not have is None: `clip_*`, `video_*` and `mean_class` where videos have
    several labels, `map` where they have one, top-5 with five classes or fewer (it would be 100 whatever
    the model does). `clip_*` count every view by itself; `video_*`, `mean_class` and `map` the mean over a
    video's views. `classes_left_out`: indices of the classes no tested video belongs to; `mean_class` and
    `map` are means over the others. `views`: how many in all. `skipped`: the videos that could not be read,
    in no figure. `scores` (videos, classes), `log_scores` (the mean over a video's views of their
    logarithms: differences are those of mean logits), `labels` and `indices` (place in the set) are those of
    the tested videos.
    """

    clip_top1: float | None
    clip_top5: float | None
    video_top1: float | None
    video_top5: float | None
    mean_class: float | None
    map: float | None
    classes_left_out: tuple[int, ...]
    videos: int
    views: int
    skipped: tuple[Problem, ...]
    scores: NDArray[np.float64] = field(repr=False, compare=False)
    log_scores: NDArray[np.float64] = field(repr=False, compare=False)
    labels: tuple[tuple[int, ...], ...] = field(repr=False, compare=False)
    indices: tuple[int, ...] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The figures and the skipped videos as plain values; the scores have a file of their own.

        >>> scores = np.array([[0.9, 0.1], [0.6, 0.4]])
        >>> result = summarise(scores, ((0,), (1,)), (0, 1), view_ranks=np.array([0, 1]), views=2, skipped=())
        >>> result.to_json()["video_top1"], result.to_json()["skipped"]
        (50.0, [])
        """
        return {
            "clip_top1": self.clip_top1,
            "clip_top5": self.clip_top5,
            "video_top1": self.video_top1,
            "video_top5": self.video_top5,
            "mean_class": self.mean_class,
            "map": self.map,
            "classes_left_out": list(self.classes_left_out),
            "videos": self.videos,
            "views": self.views,
            "skipped": [problem._asdict() for problem in self.skipped],
        }


def summarise(
    scores: NDArray[np.float64],
    labels: tuple[tuple[int, ...], ...],
    indices: tuple[int, ...],
    *,
    view_ranks: NDArray[np.int64] | None,
    views: int,
    skipped: tuple[Problem, ...],
    log_scores: NDArray[np.float64] | None = None,
) -> EvaluationResult:
    """The figures of scores (videos, classes).

    >>> scores = np.array([[0.9, 0.1], [0.6, 0.4]])
    >>> several = summarise(scores, ((0,), (0, 1)), (0, 1), view_ranks=None, views=2, skipped=())
    >>> several.map, several.video_top1
    (100.0, None)

    `view_ranks` (views in all,): the place of the true class in each single view (see
    `metrics.label_ranks`); none where videos may have several labels, then only `map` is measured.
    `log_scores`: none where every video has one view; then they are the logarithms of `scores`.
    """
    classes = scores.shape[1]
    clip_top1 = clip_top5 = video_top1 = video_top5 = None
    if view_ranks is not None:
        truth = np.array([label for (label,) in labels], dtype=np.int64)
        clip_top1, video_top1 = 100.0 * float((view_ranks < 1).mean()), topk_accuracy(scores, truth, 1)
        if classes > 5:
            clip_top5, video_top5 = 100.0 * float((view_ranks < 5).mean()), topk_accuracy(scores, truth, 5)
        per_class = mean_class_accuracy(scores, truth)
    else:
        per_class = mean_average_precision(scores, targets_of(labels, classes))
    return EvaluationResult(
        clip_top1=clip_top1,
        clip_top5=clip_top5,
        video_top1=video_top1,
        video_top5=video_top5,
        mean_class=per_class.percent if view_ranks is not None else None,
        map=per_class.percent if view_ranks is None else None,
        classes_left_out=per_class.left_out,
        videos=len(labels),
        views=views,
        skipped=skipped,
        scores=scores,
        log_scores=np.log(scores.clip(min=np.finfo(np.float64).tiny)) if log_scores is None else log_scores,
        labels=labels,
        indices=indices,
    )


def write_predictions(
    result: EvaluationResult, paths: Sequence[str], classes: Sequence[str], file: str | Path
) -> None:
    """The scores of every tested video: a .csv to read, or a .npz to compute with.

    `paths`: of the whole set, by index. csv: path, labels (class names, `|` between several), predicted,
    then one score a column, in 9 digits, from which the log odds can be had. npz: path, labels (videos,
    classes) of 0 and 1, scores and log_scores (videos, classes), classes.
    Raises ValueError for another ending, and for a number of classes that is not that of the scores.
    """
    file = Path(file)
    if len(classes) != result.scores.shape[1]:
        raise ValueError(f"{len(classes)} class names for scores of {result.scores.shape[1]} classes")
    names = [str(paths[index]) for index in result.indices]
    if file.suffix == ".npz":
        write_whole(file, lambda partial: _write_npz(result, names, classes, partial))
    elif file.suffix == ".csv":
        write_whole(file, lambda partial: _write_csv(result, names, classes, partial))
    else:
        raise ValueError(f"{file}: predictions are written as .csv or .npz")


def _write_npz(result: EvaluationResult, names: list[str], classes: Sequence[str], file: Path) -> None:
    with file.open("wb") as stream:
        np.savez(
            stream,
            path=np.array(names),
            labels=targets_of(result.labels, len(classes)).astype(np.uint8),
            scores=result.scores,
            log_scores=result.log_scores,
            classes=np.array(classes),
        )


def _write_csv(result: EvaluationResult, names: list[str], classes: Sequence[str], file: Path) -> None:
    with open_text(file) as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "labels", "predicted", *classes])
        for name, labels, row in zip(names, result.labels, result.scores, strict=True):
            truth = "|".join(classes[label] for label in labels)
            writer.writerow([name, truth, classes[int(row.argmax())], *(f"{score:.9g}" for score in row)])


def targets_of(labels: Sequence[tuple[int, ...]], classes: int) -> NDArray[np.bool_]:
    """(videos, classes), true where a video has the label."""
    targets = np.zeros((len(labels), classes), dtype=bool)
    for row, those in enumerate(labels):
        targets[row, list(those)] = True
    return targets
