"""What a view means in a capture."""

from __future__ import annotations

import re

import pytest

from nonlocal_nn.explain.queries import chosen_frames
from tests.explain.captures import block_of, captured_of, rows_of


def test_frames_are_spread_evenly_and_hold_the_query():
    captured = captured_of(block_of(rows_of("gaussian")), frames=32)
    assert chosen_frames(captured, None, [0]) == [0, 6, 12, 19, 25, 31]
    assert chosen_frames(captured, None, [14.4]) == [0, 6, 14, 19, 25, 31]
    assert chosen_frames(captured, 1, [9]) == [9]
    assert chosen_frames(captured, None, [14, 2, 16]) == [2, 6, 14, 16, 25, 31]
    assert chosen_frames(captured, 2, [3, 5, 9]) == [3, 5]
    assert chosen_frames(captured, [31, 0, 4], [9]) == [0, 4, 31]
    assert chosen_frames(captured_of(block_of(rows_of("gaussian"))), None, [3]) == list(range(8))
    for wrong, message in ((0, "frames = 0"), (33, "frames = 33: the clip has 32"), ([0, 32], "0 .. 31")):
        with pytest.raises(ValueError, match=re.escape(message)):
            chosen_frames(captured, wrong, [0])
