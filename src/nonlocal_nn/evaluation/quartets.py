"""Forced choice by quartet: a figure that a network which cannot relate two places has by a tie, exactly.

A quartet is four videos over one background, AA', AB', BA' and BB', of two things early (A, B) and two
late (A', B'); in AA' and BB' they match. A network whose features never hold both has a log odds
l = u(early) + v(late) for "they match", and then

    l(AA') + l(BB')  =  u(A) + u(B) + v(A') + v(B')  =  l(AB') + l(BA'):

whatever its weights, the two sums are equal. The accuracy of single videos has no such bound: right in three
videos of four is possible without relating anything.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

# Sums are equal where they differ by less than this share of the quartet's mean |l|, or by less than what
# float32 leaves of logits that nearly cancel (seen: 5e-8).
TIE = 1e-4
ROUNDING = 1e-6


@dataclass(frozen=True)
class ForcedChoice:
    """How many quartets are decided rightly.

    Attributes:
        percent: right quartets, a tie counted half.
        ties_percent: the share of ties.
        quartets: how many in all.
        decisions: of each quartet, in order of first appearance: 1 right, 0 wrong, one half a tie.
    """

    percent: float
    ties_percent: float
    quartets: int
    decisions: tuple[float, ...] = field(default=(), repr=False, compare=False)


def forced_choice(
    log_odds: ArrayLike, matching: Sequence[bool], quartets: Sequence[Hashable]
) -> ForcedChoice:
    """Whether the sum of the log odds of the two matching videos is the larger one, quartet by quartet.

    >>> forced_choice([2.0, -1.0, 0.5, 1.0], [True, False, False, True], ["q"] * 4)
    ForcedChoice(percent=100.0, ties_percent=0.0, quartets=1)
    >>> forced_choice([3.0, 1.0, 0.0, -2.0], [True, False, False, True], ["q"] * 4)      # u + v
    ForcedChoice(percent=50.0, ties_percent=100.0, quartets=1)

    Args:
        log_odds: of "they match", one for each video: logit(match) - logit(no match).
        matching: the truth.
        quartets: which quartet each video belongs to.

    Raises:
        ValueError: no videos, unequal lengths, or a quartet that is not two matching and two other videos.
    """
    odds = np.asarray(log_odds, dtype=np.float64)
    if not len(odds) or not len(odds) == len(matching) == len(quartets):
        raise ValueError(
            f"{len(odds)} log odds, {len(matching)} labels and {len(quartets)} quartets: one of each for "
            "every video, and at least one video"
        )
    members: dict[Hashable, list[int]] = {}
    for place, quartet in enumerate(quartets):
        members.setdefault(quartet, []).append(place)
    decisions = []
    for quartet, places in members.items():
        match = [odds[place] for place in places if matching[place]]
        other = [odds[place] for place in places if not matching[place]]
        if len(match) != 2 or len(other) != 2:
            raise ValueError(
                f"quartet {quartet!r} has {len(match)} matching and {len(other)} other videos; there must be "
                "two of each"
            )
        difference = sum(match) - sum(other)
        if abs(difference) <= max(ROUNDING, TIE * float(np.mean(np.abs(match + other)))):
            decisions.append(0.5)
        else:
            decisions.append(float(difference > 0))
    count = len(members)
    return ForcedChoice(
        100.0 * sum(decisions) / count, 100.0 * decisions.count(0.5) / count, count, tuple(decisions)
    )
