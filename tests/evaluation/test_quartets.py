"""Forced choice by quartet: ties where nothing is related, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from nonlocal_nn.evaluation.quartets import forced_choice

MATCHING = [True, False, False, True]


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("seed", range(3))
def test_a_sum_of_two_parts_ties_in_float32(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    u, v = (size * rng.normal(size=(2, 50, 2))).astype(np.float32)
    odds = (u[:, :, None] + v[:, None, :]).reshape(-1)
    odds = (odds + np.float32(0.3)) - np.float32(0.3)  # a difference of logits that nearly cancel
    names = [f"q{n}" for n in range(50) for _ in range(4)]
    order = rng.permutation(200)
    found = forced_choice(odds[order], np.tile(MATCHING, 50)[order].tolist(), [names[n] for n in order])
    assert (found.percent, found.ties_percent, found.quartets) == (50.0, 100.0, 50)


def test_right_wrong_and_tied_quartets() -> None:
    odds = [2.0, 0.0, 0.0, 2.0, -2.0, 0.0, 0.0, -2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, -0.5]
    names = [number for number in range(4) for _ in range(4)]
    found = forced_choice(odds, MATCHING * 4, names)
    assert (found.percent, found.ties_percent) == (62.5, 25.0)


@pytest.mark.parametrize(
    ("odds", "matching", "names", "reason"),
    [
        ([1.0] * 3, [True, False, True], ["a"] * 3, "quartet 'a' has 2 matching and 1 other"),
        ([1.0] * 4, [True] * 4, [7] * 4, "quartet 7 has 4 matching and 0 other"),
        ([1.0] * 4, MATCHING, ["a"] * 3, "4 log odds, 4 labels and 3 quartets"),
        ([], [], [], "at least one video"),
    ],
)
def test_incomplete_quartets_are_named(
    odds: list[float], matching: list[bool], names: list[object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        forced_choice(odds, matching, names)  # type: ignore[arg-type]
