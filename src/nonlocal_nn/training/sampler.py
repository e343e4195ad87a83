"""Which clips make up each batch, as a function of the seed and the step: training can start from any of
them.

The epochs, each a fresh permutation of all videos, are laid end to end into one stream; step s takes the
samples s * batch_size to (s + 1) * batch_size of it. No video is dropped or repeated within an epoch,
whatever the batch size; a batch may hold the end of one epoch and the beginning of the next.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from nonlocal_nn.data.dataset import SampleKey


class SampleStream:
    """The endless stream of (epoch, index) pairs.

    >>> stream = SampleStream(videos=3, seed=0)
    >>> keys = stream[0:6]
    >>> sorted(key.index for key in keys[:3]), {key.epoch for key in keys[3:]}
    ([0, 1, 2], {1})
    >>> stream[4:5] == keys[4:5]
    True

    With `groups`, one value for each video, videos of the same value follow each other in every epoch: the
    groups are shuffled, and the videos in each. What such videos share then has both (or all) labels in one
    batch, so that its part of the gradient cancels instead of adding noise.

    >>> [key.index // 2 for key in SampleStream(6, seed=1, groups=["a", "a", "b", "b", "c", "c"])[0:6]]
    [0, 0, 1, 1, 2, 2]
    """

    def __init__(self, videos: int, seed: int, groups: Sequence[Hashable] | None = None) -> None:
        if groups is not None and len(groups) != videos:
            raise ValueError(f"{len(groups)} groups for {videos} videos")
        self.videos = videos
        self.seed = seed
        numbers: dict[Hashable, int] = {}
        self._groups = None
        if groups is not None:
            self._groups = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
        self._orders: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}

    def __getitem__(self, span: slice) -> list[SampleKey]:
        keys = []
        for position in range(span.start, span.stop):
            epoch, place = divmod(position, self.videos)
            keys.append(SampleKey(epoch, int(self._order(epoch)[place])))
        return keys

    def _order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if epoch not in self._orders:
            while len(self._orders) > 1:  # a batch needs two epochs at most, but for tiny sets
                self._orders.pop(next(iter(self._orders)))
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(self.videos)
            if self._groups is not None:
                rank = generator.permutation(self._groups.max(initial=-1) + 1)
                order = order[np.argsort(rank[self._groups[order]], kind="stable")]
            self._orders[epoch] = order
        return self._orders[epoch]


class StepBatches:
    """Batch sampler of one process: `accumulate` lists of keys for each step from `start_step` to
    `stop_step`.

    >>> stream = SampleStream(videos=8, seed=0)
    >>> whole = next(iter(StepBatches(stream, batch_size=4, stop_step=2)))
    >>> halves = [StepBatches(stream, batch_size=4, stop_step=2, rank=r, processes=2) for r in (0, 1)]
    >>> next(iter(halves[0])) + next(iter(halves[1])) == whole
    True

    Each process takes an equal share of the global batch, so that the mean over processes of their mean
    losses is the mean over the batch.

    Its length counts the lists from step 0, as Lightning does, wherever the iteration starts.
    """

    def __init__(
        self,
        stream: SampleStream,
        batch_size: int,
        stop_step: int,
        start_step: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        parts = processes * accumulate
        if batch_size % parts:
            raise ValueError(
                f"optim.batch_size {batch_size} is the number of clips of a whole step; it cannot be shared "
                f"out evenly over {processes} processes x {accumulate} parts: take a multiple of {parts}"
            )
        self.stream = stream
        self.batch_size = batch_size
        self.start_step = start_step
        self.stop_step = stop_step
        self.accumulate = accumulate
        self.rank = rank
        self.part = batch_size // parts

    def __len__(self) -> int:
        return self.stop_step * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.lists_from(0)

    def lists_from(self, first: int) -> Iterator[list[SampleKey]]:
        """The lists without the `first` ones, counted from `start_step`."""
        begin = self.start_step * self.accumulate + first
        for number in range(begin, self.stop_step * self.accumulate):
            step, part = divmod(number, self.accumulate)
            at = step * self.batch_size + (self.rank * self.accumulate + part) * self.part
            yield self.stream[at : at + self.part]
