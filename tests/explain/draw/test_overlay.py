"""What lies over the frames, against values worked out by hand."""

from __future__ import annotations

import numpy as np

from nonlocal_nn.explain.draw.overlay import heat, largest, weight_by_frame
from tests.explain.captures import KEYS


def test_heat_is_the_weight_at_a_keys_centre_and_linear_between():
    row = np.random.default_rng(0).random(24)
    shown = heat(row, KEYS, frame=3, size=(16, 24))
    nearest = row.reshape(4, 2, 3)[2]  # of key frames 0, 2, 4, 6 the one at 4 takes frame 3
    rows, columns = KEYS.axis_centres()[1:]
    assert rows.tolist() == [3.5, 11.5]
    np.testing.assert_allclose(shown[3:5, 3:5].mean(), nearest[0, 0], atol=0.1)
    np.testing.assert_allclose(shown[0, 0], nearest[0, 0])
    np.testing.assert_allclose(shown[15, 23], nearest[1, 2])
    np.testing.assert_allclose(np.interp(columns, np.arange(24), shown[0]), nearest[0], atol=0.1)
    quarter = shown[0, 6]  # 2.5 of 8 pixels from the first column of keys to the second
    np.testing.assert_allclose(quarter, nearest[0, 0] + (nearest[0, 1] - nearest[0, 0]) * 2.5 / 8)


def test_shares_by_frame_and_the_largest_links():
    row = np.array([0, 0, -3, 0, 0, 0, 1, 0, 0, 0, 0, 1] + [0] * 12, dtype=np.float32)
    np.testing.assert_allclose(weight_by_frame(row, KEYS), [0.6, 0.4, 0, 0])
    assert weight_by_frame(row * 0, KEYS).tolist() == [0, 0, 0, 0]
    assert [(target.key, target.weight) for target in largest(row, KEYS, 5)] == [(2, -3), (6, 1), (11, 1)]
