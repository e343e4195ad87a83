"""Centres, nearest positions and cells, against a plain count over every pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonlocal_nn.explain.capture.geometry import Axis, GridGeometry

numbers = st.floats(-20, 20, allow_subnormal=False)
steps = st.floats(0.25, 32)


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    first=st.tuples(numbers, numbers, numbers),
    step=st.tuples(steps, steps, steps),
    point=st.tuples(*[st.floats(-50, 150)] * 3),
)
def test_the_nearest_position_has_the_nearest_centre_and_its_cell_holds_the_point(shape, first, step, point):
    grid = GridGeometry(shape, first, step)
    found = grid.nearest(*point)
    distance = np.abs(grid.centres() - point)
    assert (distance[found] <= distance.min(axis=0) + 1e-9).all()
    box = np.array(grid.cell(found)).reshape(3, 2)
    np.testing.assert_allclose(box.mean(axis=1), grid.centres()[found], atol=1e-9)
    np.testing.assert_allclose(box[:, 1] - box[:, 0], step)
    inside = (np.array(point) > np.array(first) - np.array(step) / 2) & (
        np.array(point) < np.array(first) + np.array(step) * (np.array(shape) - 0.5)
    )
    if inside.all():
        assert (box[:, 0] <= np.array(point) + 1e-6).all()
        assert (np.array(point) <= box[:, 1] + 1e-6).all()


def test_flat_positions_count_columns_fastest():
    grid = GridGeometry((2, 3, 4))
    assert grid.centres().tolist() == [[t, r, c] for t in range(2) for r in range(3) for c in range(4)]
    assert grid.nearest(1, 2, 3) == 23
    assert grid.nearest(-5, 0.4, 9) == 3


def test_a_position_that_is_not_there():
    with pytest.raises(ValueError, match=r"position 24 is not one of the 24 of a map \(2, 3, 4\)"):
        GridGeometry((2, 3, 4)).cell(24)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [(17, 3, 2, 1, 1), (16, 4, 4, 0, 1), (20, 3, 1, 2, 2), (9, 1, 2, 0, 1)],
)
def test_windows_are_centred_where_a_list_of_pixels_says(size, kernel, stride, padding, dilation):
    axis = Axis(1, size).window(kernel, stride, padding, dilation)
    starts = range(-padding, size + padding - dilation * (kernel - 1), stride)
    windows = [[start + dilation * tap for tap in range(kernel)] for start in starts]
    assert axis.size == len(windows)
    assert [axis.first + axis.step * n for n in range(axis.size)] == [np.mean(window) for window in windows]
    assert axis.receptive == windows[0][-1] - windows[0][0] + 1
