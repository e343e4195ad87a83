"""The figures of a test by groups of videos: forced choice by quartet, and both for parts of the set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nonlocal_nn.evaluation.metrics import topk_accuracy
from nonlocal_nn.evaluation.quartets import ForcedChoice, forced_choice
from nonlocal_nn.evaluation.result import EvaluationResult

_QUARTET = 4


@dataclass(frozen=True)
class PartOfTest:
    """What a part of the videos gave.

    Attributes:
        values: what its videos have in the columns that the set was broken down by.
        videos: how many were tested.
        video_top1: percent of them whose class is right.
        quartets: the forced choice, None where nobody asked.
    """

    values: tuple[str, ...]
    videos: int
    video_top1: float
    quartets: ForcedChoice | None

    def to_json(self, columns: Sequence[str]) -> dict[str, Any]:
        """Plain values, for results.json."""
        found: dict[str, Any] = dict(zip(columns, self.values, strict=True))
        found |= {"videos": self.videos, "video_top1": self.video_top1}
        return found | quartets_to_json(self.quartets)


def quartets_to_json(quartets: ForcedChoice | None) -> dict[str, Any]:
    """Plain values, for results.json; nothing for None."""
    if quartets is None:
        return {}
    return {
        "quartets": quartets.quartets,
        "quartets_right": quartets.percent,
        "quartets_tied": quartets.ties_percent,
    }


def check_quartets(groups: Sequence[str | None], labels: Sequence[tuple[int, ...]], column: str) -> None:
    """Say what is wrong with quartets before anything is tested.

    >>> check_quartets(["a"] * 4, [(0,), (1,), (1,), (0,)], "quartet")
    >>> check_quartets(["a"] * 3, [(0,), (1,), (1,)], "quartet")
    Traceback (most recent call last):
    ValueError: quartet 'a' has 3 videos, 1 of class 0 and 2 of class 1; forced choice needs two of each

    Raises:
        ValueError: a group that is not two videos of one class and two of another.
    """
    members: dict[str | None, list[tuple[int, ...]]] = defaultdict(list)
    for group, of_video in zip(groups, labels, strict=True):
        members[group].append(of_video)
    for group, those in members.items():
        counts = Counter(those)
        if sorted(counts.values()) != [2, 2]:
            found = " and ".join(
                f"{count} of class {'|'.join(map(str, label))}" for label, count in sorted(counts.items())
            )
            raise ValueError(
                f"{column} {group!r} has {len(those)} videos, {found}; forced choice needs two of each"
            )


def check_parts(groups: Sequence[str | None], parts: Sequence[tuple[str, ...]]) -> None:
    """Raise ValueError where the videos of one group are in several parts."""
    first: dict[str | None, tuple[str, ...]] = {}
    for group, part in zip(groups, parts, strict=True):
        if first.setdefault(group, part) != part:
            raise ValueError(
                f"the videos of group {group!r} are in several parts ({', '.join(first[group])}; "
                f"{', '.join(part)}): break the set down by a column that they share"
            )


def choose_by_quartet(
    result: EvaluationResult, groups: Sequence[str | None], among: Sequence[int] | None = None
) -> ForcedChoice | None:
    """The forced choice of all tested quartets; None where none was tested as a whole.

    groups: of every video of the set, by index. A quartet with a video that could not be read is left out.
    among: rows of the result; None: all.
    """
    among = range(len(result.indices)) if among is None else among
    tested = Counter(groups[result.indices[row]] for row in among)
    rows = [row for row in among if tested[groups[result.indices[row]]] == _QUARTET]
    if not rows:
        return None
    odds = result.log_scores[rows, 1] - result.log_scores[rows, 0]
    return forced_choice(
        odds,
        [result.labels[row] == (1,) for row in rows],
        [groups[result.indices[row]] for row in rows],
    )


def break_down(
    result: EvaluationResult, parts: Sequence[tuple[str, ...]], groups: Sequence[str | None] | None
) -> list[PartOfTest]:
    """The figures of every part, in order of its values, numbers by size.

    parts, groups: of every video of the set, by index; groups None: no quartets.
    """
    rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, index in enumerate(result.indices):
        rows[parts[index]].append(row)
    in_order = sorted(rows, key=lambda values: [_order(value) for value in values])
    return [_part(values, rows[values], result, groups) for values in in_order]


def _part(
    values: tuple[str, ...], rows: list[int], result: EvaluationResult, groups: Sequence[str | None] | None
) -> PartOfTest:
    return PartOfTest(
        values=values,
        videos=len(rows),
        video_top1=topk_accuracy(result.scores[rows], np.array([result.labels[row][0] for row in rows])),
        quartets=None if groups is None else choose_by_quartet(result, groups, rows),
    )


def _order(text: str) -> tuple[bool, float, str]:
    try:
        return (False, float(text), "")
    except ValueError:
        return (True, 0.0, text)
