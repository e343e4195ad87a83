"""The stream of samples: complete epochs, equal shares, and the same from whichever step it starts."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonlocal_nn.training.sampler import SampleStream, StepBatches


@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 1000))
def test_every_epoch_has_every_video_once(videos: int, epochs: int, seed: int) -> None:
    keys = SampleStream(videos, seed)[0 : videos * epochs]
    assert sorted(keys) == [(epoch, index) for epoch in range(epochs) for index in range(videos)]


@given(
    st.integers(3, 30),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 6),
    st.integers(0, 100),
)
def test_started_anywhere_it_gives_what_a_whole_run_gives_from_there(
    videos: int, part: int, accumulate: int, processes: int, start: int, seed: int
) -> None:
    size = part * accumulate * processes
    for rank in range(processes):
        whole = StepBatches(SampleStream(videos, seed), size, 7, 0, accumulate, rank, processes)
        rest = StepBatches(SampleStream(videos, seed), size, 7, start, accumulate, rank, processes)
        assert list(rest) == list(islice(whole, start * accumulate, None))
        assert len(rest) == len(list(whole))  # Lightning counts from the beginning


@given(st.integers(5, 30), st.integers(1, 3), st.integers(1, 3))
def test_parts_and_processes_share_out_the_step_of_a_single_process(
    videos: int, accumulate: int, processes: int
) -> None:
    size = 2 * accumulate * processes
    single = list(StepBatches(SampleStream(videos, 0), size, 5))
    shared = [
        list(StepBatches(SampleStream(videos, 0), size, 5, 0, accumulate, rank, processes))
        for rank in range(processes)
    ]
    for step in range(5):
        parts = [own[step * accumulate + part] for own in shared for part in range(accumulate)]
        assert all(len(part) == 2 for part in parts)
        assert [key for part in parts for key in part] == single[step]


def test_order_differs_between_epochs_and_seeds() -> None:
    stream, other = SampleStream(50, seed=0), SampleStream(50, seed=1)
    first, second = [[key.index for key in stream[s : s + 50]] for s in (0, 50)]
    assert first != second
    assert first != [key.index for key in other[0:50]]


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size 10 .* 4 processes x 1 parts: take a multiple of 4"):
        StepBatches(SampleStream(50, 0), 10, 5, processes=4)


def test_groups_stay_together_and_shuffle() -> None:
    groups = [number // 4 for number in range(40)]
    stream = SampleStream(40, 0, groups)
    epochs = [[key.index for key in stream[40 * e : 40 * (e + 1)]] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(40))
        for first in range(0, 40, 4):
            assert len({groups[index] for index in epoch[first : first + 4]}) == 1
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({tuple(index % 4 for index in epoch[:4]) for epoch in epochs}) > 1  # within a group, too
    assert stream[57:63] == SampleStream(40, 0, groups)[57:63]
    with pytest.raises(ValueError, match="3 groups for 40 videos"):
        SampleStream(40, 0, ["a", "b", "c"])
