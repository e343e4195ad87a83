"""Index rules: what must be true of every clip, crop and draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonlocal_nn.data.sampling import (
    clip_indices,
    clip_window,
    crop_offsets,
    random_crop,
    random_start,
    resized_size,
    sample_generator,
    uniform_starts,
)

sizes = st.integers(1, 40)


@given(frames=st.integers(1, 200), clip_frames=sizes, stride=st.integers(1, 8), index=st.integers(0, 99))
def test_a_random_clip_lies_in_the_video(frames: int, clip_frames: int, stride: int, index: int) -> None:
    start = random_start(frames, clip_frames, stride, sample_generator(0, 0, index))
    numbers = clip_indices(start, clip_frames, stride, frames)
    assert len(numbers) == clip_frames
    assert numbers.min() >= 0
    assert numbers.max() < frames
    if frames >= clip_window(clip_frames, stride):
        assert np.all(np.diff(numbers) == stride)  # nothing wraps in a video that is long enough
        assert start + clip_window(clip_frames, stride) <= frames


@given(frames=st.integers(1, 500), clip_frames=sizes, stride=st.integers(1, 8), clips=st.integers(2, 30))
def test_uniform_clips_span_the_video_evenly(frames: int, clip_frames: int, stride: int, clips: int) -> None:
    starts = uniform_starts(frames, clip_frames, stride, clips)
    last = max(0, frames - clip_window(clip_frames, stride))
    assert (starts[0], starts[-1]) == (0, last)
    exact = last * np.arange(clips) / (clips - 1)
    assert np.all(np.abs(starts - exact) <= 0.5)
    gaps = np.diff(starts)
    assert gaps.max() - gaps.min() <= 1
    # one clip is the centre of all
    assert abs(int(uniform_starts(frames, clip_frames, stride, 1)[0]) - last / 2) <= 0.5


def test_every_start_of_a_training_clip_is_equally_likely() -> None:
    starts = [random_start(68, 32, 2, sample_generator(7, epoch, 3)) for epoch in range(2000)]
    counts = np.bincount(starts)
    assert len(counts) == 5
    assert np.all(np.abs(counts - 400) < 5 * np.sqrt(400))


def test_draws_depend_on_seed_epoch_index_and_attempt_alone() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    draws = {key: sample_generator(*key).random() for key in keys}
    assert len(set(draws.values())) == len(keys)
    np.random.seed(5)
    assert {key: sample_generator(*key).random() for key in reversed(keys)} == draws
    with pytest.raises(ValueError, match="0 or more"):
        sample_generator(-1, 0, 0)


@given(height=st.integers(1, 700), width=st.integers(1, 700), side=st.integers(1, 400))
def test_resizing_sets_the_shorter_side_and_keeps_the_aspect(height: int, width: int, side: int) -> None:
    new_height, new_width = resized_size(height, width, side)
    assert min(new_height, new_width) == side
    scale = side / min(height, width)
    assert abs(new_height - height * scale) <= 0.5
    assert abs(new_width - width * scale) <= 0.5


@given(height=st.integers(48, 400), width=st.integers(48, 400))
def test_three_crops_reach_both_ends_of_the_longer_side(height: int, width: int) -> None:
    (top0, left0), (top1, left1), (top2, left2) = crop_offsets(height, width, 48, crops=3)
    assert crop_offsets(height, width, 48, crops=1) == ((top1, left1),)
    if width >= height:
        assert (left0, left2) == (0, width - 48)
        assert top0 == top1 == top2
        assert abs((left0 + left2) / 2 - left1) <= 0.5
    else:
        assert (top0, top2) == (0, height - 48)
        assert left0 == left1 == left2
        assert abs((top0 + top2) / 2 - top1) <= 0.5


@given(height=st.integers(8, 500), width=st.integers(8, 500), index=st.integers(0, 99))
def test_a_random_crop_is_a_square_inside_the_frame(height: int, width: int, index: int) -> None:
    box = random_crop(height, width, 224, (256, 320), sample_generator(0, 0, index))
    assert box.height == box.width
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width
    short = min(height, width)
    assert 224 * short / 320 - 0.5 <= box.height <= 224 * short / 256 + 0.5


def test_jitter_and_place_of_the_crop_use_their_whole_range() -> None:
    boxes = [random_crop(256, 340, 224, (256, 320), sample_generator(0, 0, n)) for n in range(3000)]
    sides = [box.height for box in boxes]
    assert (min(sides), max(sides)) == (179, 224)  # 224 * 256 / 320 and 224
    assert min(box.left for box in boxes) == 0
    assert any(box.left + box.width == 340 for box in boxes)
    assert any(box.top + box.height == 256 for box in boxes)
    scale = np.array([224 * 256 / side for side in sides])
    assert abs(scale.mean() - 288) < 3 * 18.8 / np.sqrt(3000) + 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_indices(5, 4, 2, 5), r"start 5 lies outside the video's frames 0 \.\. 4"),
        (lambda: clip_indices(0, 4, 2, 0), "num_frames must be 1 or more, not 0"),
        (lambda: clip_window(0, 2), "not 0 and 2"),
        (lambda: uniform_starts(10, 4, 2, 0), "clips must be 1 or more, not 0"),
        (lambda: crop_offsets(40, 60, 48), "crop of 48 does not fit a frame of 40 x 60"),
        (lambda: crop_offsets(50, 60, 48, crops=2), "1 .centre. or 3 .*not 2"),
        (lambda: random_crop(50, 60, 48, (40, 60), sample_generator(0, 0, 0)), "crop 48 and jitter"),
        (lambda: resized_size(0, 60, 48), "height 0"),
    ],
)
def test_impossible_requests_say_the_offending_value(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
