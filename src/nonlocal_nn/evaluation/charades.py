"""Mean average precision as the official script of Charades counts it, and the file that the script reads.

>>> scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.7, 0.2]])
>>> targets = np.array([[True, False], [False, False], [True, True]])
>>> charades_map(scores, targets).percent   # the video in the middle has no label: it is no false positive
100.0

The count (Charades_v1_classify.m), in words: a video without labels, or missing from the submission, has a
score of -inf for every class; each class is sorted by falling score, ties in the order of the csv; average
precision is the mean, over the positives, of the precision at each one's own place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn._files import write_whole
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.evaluation.result import EvaluationResult, targets_of

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class CharadesMap:
    """Of a whole set, in percent.

    Attributes:
        percent: the mean over the classes that have a positive; None where none has. (The script gives no
            number where a class has none.)
        weighted: the mean over classes by their number of positives.
        left_out: classes without a positive.
    """

    percent: float | None
    weighted: float | None
    left_out: tuple[int, ...]


def charades_map(scores: Scores, targets: NDArray[np.bool_]) -> CharadesMap:
    """The official mean average precision.

    Args:
        scores: (videos, classes), in the order of the csv; a row of -inf for a video that is missing.
        targets: (videos, classes), true where the video has the label.

    Raises:
        ValueError: shapes that do not match, a score that is NaN or +inf.
    """
    table: NDArray[np.float64] = np.array(scores, dtype=np.float64)
    targets = np.asarray(targets, dtype=bool)
    if table.ndim != 2 or table.shape != targets.shape:
        raise ValueError(
            f"scores and targets are both (videos, classes), not {table.shape} and {targets.shape}"
        )
    wrong = (np.isnan(table) | (table == np.inf)).any(axis=1)
    if wrong.any():
        raise ValueError(f"the scores of row {int(wrong.argmax())} are not all numbers below infinity")
    table[~targets.any(axis=1)] = -np.inf
    counts = targets.sum(axis=0)
    seen = np.flatnonzero(counts)
    left_out = tuple(np.flatnonzero(counts == 0).tolist())
    if not len(seen):
        return CharadesMap(None, None, left_out)
    each = np.array([_average_precision(table[:, c], targets[:, c]) for c in seen])
    return CharadesMap(float(each.mean()), float(np.average(each, weights=counts[seen])), left_out)


def _average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    truth = positive[np.argsort(-scores, kind="stable")]
    places = np.flatnonzero(truth) + 1
    return 100.0 * float((np.arange(1, len(places) + 1) / places).mean())


def rows_of_csv(result: EvaluationResult, manifest: Manifest) -> tuple[Scores, NDArray[np.bool_]]:
    """Scores and targets of all rows of a csv in its order, for `charades_map`.

    A row of -inf for each video that could not be read, and for each that is not there.
    """
    classes = result.scores.shape[1]
    absent = np.full(classes, -np.inf)
    scored = dict(zip(result.indices, result.scores, strict=True))
    rows = [
        (index, 1, scored.get(index, absent), record.labels) for index, record in enumerate(manifest.records)
    ]
    rows += [(before, 0, absent, record.labels) for before, record in manifest.missing]
    rows.sort(key=lambda row: row[:2])  # what is missing stands before the record of its place
    return np.stack([scores for *_, scores, _ in rows]), targets_of([row[3] for row in rows], classes)


def write_submission(file: str | Path, paths: Sequence[str], scores: Scores) -> None:
    """The file that the official script reads: a line a video, its id and a score for each class.

    The id is the file's name without its ending. Nine digits, so that ties stay ties and no others arise.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "submission.txt"
    >>> write_submission(file, ["videos/AB12C.mp4"], np.array([[0.25, 0.5]]))
    >>> file.read_text()
    'AB12C 0.25 0.5\\n'
    """
    lines = [
        " ".join([PurePath(path).stem, *(f"{score:.9g}" for score in row)])
        for path, row in zip(paths, scores, strict=True)
    ]
    text = "\n".join(lines) + "\n"
    write_whole(Path(file), lambda partial: partial.write_text(text, encoding="utf-8"))
