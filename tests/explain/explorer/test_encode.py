"""Rows as codes and back: how far a weight may be off, and what is kept of those that are left out."""

from __future__ import annotations

import numpy as np
import pytest

from nonlocal_nn.explain.explorer.encode import Plan, encode, quantise, restore, shares, space_bin_pixels
from tests.explain.scene import all_rows, noisy_block


@pytest.mark.parametrize("levels", [255, 127, 63, 31])
@pytest.mark.parametrize("signed", [False, True])
def test_no_weight_is_off_by_more_than_the_bound(levels: int, signed: bool) -> None:
    generator = np.random.default_rng(levels)
    rows = (generator.normal(size=(64, 500)) ** 3).astype(np.float32)
    if not signed:
        rows = np.abs(rows)
    plan = Plan(levels, signed=signed)
    off = np.abs(restore(*quantise(rows, plan), plan) - rows).max(axis=1)
    reach = np.abs(rows).max(axis=1) if signed else np.ptp(rows, axis=1)
    assert (off <= plan.error * reach * 1.0001).all()
    assert (off >= 0.3 * plan.error * reach).any()  # the bound is no idle one


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_an_even_row_stays_even(signed: bool, value: float) -> None:
    rows = np.full((2, 9), value, np.float32)
    plan = Plan(255, signed=signed)
    assert np.array_equal(restore(*quantise(rows, plan), plan), rows)


@pytest.mark.parametrize("signed", [False, True])
def test_of_a_row_cut_short_the_sum_of_each_cell_is_kept(signed: bool) -> None:
    block = noisy_block(2, 96, 8, "dot_product" if signed else "embedded_gaussian")
    rows = all_rows(block)[:50]
    plan = Plan(255, top=8, cells=2, signed=signed)
    arrays = encode(rows, block.keys.shape, plan)
    rest = rows.copy()
    order = np.argsort(-np.abs(rows), axis=1)[:, :8]
    np.put_along_axis(rest, order, 0, axis=1)
    sums = rest.reshape(50, 2, 2, 3, 2, 3).sum(axis=(3, 5)).reshape(50, -1)
    kept = restore(arrays["rest_scale"], arrays["rest_codes"], plan)
    reach = np.abs(sums).max(axis=1) if signed else np.ptp(sums, axis=1)
    assert (np.abs(kept - sums).max(axis=1) <= plan.error * reach * 1.001 + 1e-7).all()
    assert np.array_equal(
        (arrays["gap_low"] + 256 * arrays["gap_high"]).cumsum(axis=1), np.sort(order, axis=1)
    )


def test_shares_add_up_the_weight_by_frame_and_by_distance() -> None:
    block = noisy_block(3, 48, 8, "dot_product")
    rows = all_rows(block)[40:50]
    places = block.queries.centres()[40:50, 1:]
    centres = block.keys.centres()
    width = space_bin_pixels(48, 48)
    parts = shares(
        rows, block.keys.shape, places.astype(np.float32), centres[:9, 1:].astype(np.float32), width, 9
    )
    for row, place, by_frame, by_space in zip(
        rows, places, parts["frame_shares"], parts["space_shares"], strict=True
    ):
        size = np.abs(row) / np.abs(row).sum()
        for frame in range(3):
            assert abs(by_frame[frame] / 255 - size[centres[:, 0] == frame].sum()) <= 0.5001 / 255
        distance = np.hypot(*(centres[:, 1:] - place).T)
        for number in range(9):
            inside = (distance >= number * width) & (distance < (number + 1) * width)
            assert abs(by_space[number] / 255 - size[inside].sum()) <= 0.5001 / 255
