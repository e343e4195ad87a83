"""Records to samples: random clips for training, all views of a video for testing.

A sample depends on (seed, epoch, index) alone. A broken video never stops a loader: training draws another
in its place, testing hands back `Skipped`, and both say which file it was and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.data.errors import Problem, UnavailableError, VideoError
from nonlocal_nn.data.records import ClipLabels, Manifest
from nonlocal_nn.data.sampling import CropBox, clip_indices, random_start, sample_generator, uniform_starts
from nonlocal_nn.data.shards import open_member
from nonlocal_nn.data.steady import AtWork
from nonlocal_nn.data.table import VideoRecord
from nonlocal_nn.data.transforms import TrainTransform, ViewTransform
from nonlocal_nn.data.video_index import KnownVideos

__all__ = [
    "ClipBatch",
    "ClipDataset",
    "Sample",
    "SampleKey",
    "Skipped",
    "ViewDataset",
    "ViewSample",
    "collate_samples",
    "collate_views",
]


class SampleKey(NamedTuple):
    """What a training sampler hands to `ClipDataset`: with the index alone every epoch would be the same."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used here


class Sample(NamedTuple):
    """One training clip.

    Attributes:
        video: uint8 (3, frames, height, width), for `transforms.normalize`.
        labels: int64 scalar, or float (classes,) of zeros and ones where videos have several labels.
        index: position in the manifest of the video shown (not always the one asked for: see `skipped`).
        skipped: broken videos that others took the place of.
    """

    video: Tensor
    labels: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used here
    skipped: tuple[Problem, ...]


class ClipBatch(NamedTuple):
    """Several samples.

    Attributes:
        video: uint8 (batch, 3, frames, height, width), for `transforms.normalize`.
        labels: int64 (batch,), or float (batch, classes).
        indices: int64 (batch,), positions in the manifest.
        skipped: broken videos that others took the place of.
    """

    video: Tensor
    labels: Tensor
    indices: Tensor
    skipped: tuple[Problem, ...]


class Skipped(NamedTuple):
    """A video that cannot be tested.

    Attributes:
        index: position in the manifest.
        problem: the file and the reason.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used here
    problem: Problem


class ViewSample(NamedTuple):
    """All views of one video, each frame held once however many views share it.

    Attributes:
        frames: uint8 (3, distinct frames, height, width), resized.
        clips: int64 (clips, frames of a clip), positions in `frames`.
        boxes: the crops of every clip.
        index: position in the manifest.
        labels: as in `Sample`; an empty int64 tensor where the video has none.
    """

    frames: Tensor
    clips: Tensor
    boxes: tuple[CropBox, ...]
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used here
    labels: Tensor

    @property
    def num_views(self) -> int:
        """Clips times crops."""
        return len(self.clips) * len(self.boxes)

    @property
    def views(self) -> Tensor:
        """All views, uint8 (clips * crops, 3, frames, height, width); the crops of a clip are neighbours."""
        return self._views(0, self.num_views)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the views in order, at most `size` at a time, so that 30 of them need not fit in memory."""
        if size < 1:
            raise ValueError(f"size must be 1 or more, not {size}")
        for begin in range(0, self.num_views, size):
            yield self._views(begin, min(begin + size, self.num_views))

    def _views(self, begin: int, end: int) -> Tensor:
        frames = self.frames.permute(
            1, 2, 3, 0
        ).numpy()  # as they lie in memory, so that rows are copied whole
        clips = self.clips.numpy()
        height, width = self.boxes[0][2:]
        out = torch.empty(end - begin, clips.shape[1], height, width, 3, dtype=torch.uint8)
        for row, number in enumerate(range(begin, end)):
            clip, crop = divmod(number, len(self.boxes))
            top, left = self.boxes[crop][:2]
            out.numpy()[row] = frames[:, top : top + height, left : left + width][clips[clip]]
        return out.permute(0, 4, 1, 2, 3)


class _OfManifest:
    """What both data sets are to a loader whose processes may die; see `steady.Isolating`."""

    def __init__(self, manifest: Manifest, known: KnownVideos | None) -> None:
        self.manifest = manifest
        self._known = known
        # Remembered by each worker, so that a broken file is opened once and not in every epoch.
        self._broken: dict[int, Problem] = {} if known is None else known.broken()
        self.at_work: AtWork | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def path_of(self, video: int) -> str:
        """The file of a video."""
        return self.manifest.records.paths[video]

    def _open(self, video: int, record: VideoRecord, threads: int) -> VideoReader:
        """The video of a record, a file or part of a shard; raises VideoError."""
        table = None if self._known is None else self._known.table(video)
        return VideoReader(record.path, threads=threads, data=open_member(record), table=table)

    def leave_out(self, video: int, problem: Problem) -> None:
        """Treat a video as broken from now on."""
        self._broken[video] = problem


class ClipDataset(_OfManifest, Dataset[Sample]):
    """Random training clips of the videos of a manifest.

    >>> dataset = ClipDataset(Manifest.of_paths(["absent.mp4"], labels=[0]), clip_frames=8, frame_stride=2,
    ...                       transform=TrainTransform(), seed=0)
    >>> dataset[SampleKey(epoch=0, index=0)]
    Traceback (most recent call last):
    nonlocal_nn.data.errors.VideoError: absent.mp4: no such file (and no other could take its place)

    Args:
        manifest: the videos. Every record needs exactly one label unless manifest.multi_label.
        clip_frames: frames in a clip.
        frame_stride: every n-th frame of the clip's window is kept.
        transform: from decoded frames to the network's size.
        seed: with (epoch, index), decides everything random.
        max_attempts: videos to try for one sample before giving up.
        labels: of a sample, where they belong to stretches of a video: those within the "clip", or all of the
            "video".
        decode_threads: threads of the decoder.
        known: what an index knows of the videos. The clips are the same without it.

    Raises:
        ValueError: an empty manifest, or a record with other than one label.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        clip_frames: int,
        frame_stride: int,
        transform: TrainTransform,
        seed: int,
        max_attempts: int = 10,
        labels: ClipLabels = "clip",
        decode_threads: int = 1,
        known: KnownVideos | None = None,
    ) -> None:
        if not len(manifest):
            raise ValueError("the manifest holds no videos")
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be 1 or more, not {max_attempts}")
        crowded = manifest.records.first_without_one_label()
        if crowded is not None and not manifest.multi_label:
            raise ValueError(
                f"{crowded.path}: {len(crowded.labels)} labels; training needs one for each video "
                "(or a manifest with multi_label)"
            )
        clip_indices(0, clip_frames, frame_stride, 1)  # raises where they make no clip
        super().__init__(manifest, known)
        self.clip_frames = clip_frames
        self.frame_stride = frame_stride
        self.transform = transform
        self.seed = seed
        self.max_attempts = max_attempts
        self.labels = labels
        self.decode_threads = decode_threads

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return a random clip of video key.index, or of another where that one is broken.

        The n-th replacement is drawn by (seed, epoch, index, n): the same on every worker and after every
        restart.

        Raises:
            VideoError: `max_attempts` videos in a row are broken.
        """
        epoch, index = key
        skipped: list[Problem] = []
        candidate = index
        for attempt in range(self.max_attempts):
            generator = sample_generator(self.seed, epoch, index, attempt)
            if attempt:
                candidate = int(generator.integers(len(self.manifest)))
            problem = self._broken.get(candidate)
            if problem is None:
                if self.at_work is not None:
                    self.at_work.note(epoch, index, candidate)
                try:
                    video, seconds = self._random_clip(candidate, generator)
                except VideoError as error:
                    problem = error.problem
                    if not isinstance(error, UnavailableError):
                        self._broken[candidate] = problem
                else:
                    labels = self._labels_of(candidate, seconds)
                    if self.at_work is not None:
                        self.at_work.done()
                    return Sample(video, labels, candidate, tuple(skipped))
            if problem not in skipped:
                skipped.append(problem)
        raise VideoError(skipped[0].path, f"{skipped[0].reason} (and no other could take its place)")

    def read_again(self, epoch: int, index: int) -> Sample:
        """The sample of this key; see `steady.Isolating`."""
        return self[SampleKey(epoch, index)]

    def _labels_of(self, index: int, seconds: tuple[float, float]) -> Tensor:
        record = self.manifest.records[index]
        if self.labels == "video" or not record.actions:
            return _label_tensor(self.manifest, index)
        return _hot(record.labels_between(*seconds), self.manifest.num_classes)

    def _random_clip(self, index: int, generator: np.random.Generator) -> tuple[Tensor, tuple[float, float]]:
        """A clip, and the seconds of the file from its first frame to its last."""
        record = self.manifest.records[index]
        with self._open(index, record, self.decode_threads) as reader:
            first, count = _frame_span(reader, record)
            start = random_start(count, self.clip_frames, self.frame_stride, generator)
            frames = first + clip_indices(start, self.clip_frames, self.frame_stride, count)
            clip = reader.read(frames)
            times = reader.frame_seconds[[frames.min(), frames.max()]] - reader.frame_seconds[0]
        return self.transform(clip, generator), (float(times[0]), float(times[1]))


class ViewDataset(_OfManifest, Dataset["ViewSample | Skipped"]):
    """All test views of each video of a manifest; each video is opened and decoded once.

    Args:
        manifest: the videos; labels may be absent.
        clip_frames: frames in a clip.
        frame_stride: every n-th frame of the clip's window is kept.
        clips: clips spread evenly along the video (the paper: 10).
        transform: from decoded frames to the crops of one clip.
        decode_threads: threads of the decoder.
        known: what an index knows of the videos. The views are the same without it.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        clip_frames: int,
        frame_stride: int,
        clips: int,
        transform: ViewTransform,
        decode_threads: int = 1,
        known: KnownVideos | None = None,
    ) -> None:
        uniform_starts(1, clip_frames, frame_stride, clips)  # raises where they make no clip
        super().__init__(manifest, known)
        self.clip_frames = clip_frames
        self.frame_stride = frame_stride
        self.clips = clips
        self.transform = transform
        self.decode_threads = decode_threads

    def __getitem__(self, index: int) -> ViewSample | Skipped:
        """Return the views of video `index`, or what is wrong with it."""
        if index in self._broken:
            return Skipped(index, self._broken[index])
        if self.at_work is not None:
            self.at_work.note(0, index, index)
        sample = self._views(index)
        if self.at_work is not None:
            self.at_work.done()
        return sample

    def read_again(self, epoch: int, index: int) -> ViewSample | Skipped:  # noqa: ARG002 - of every epoch
        """The views of a video; see `steady.Isolating`."""
        return self[index]

    def _views(self, index: int) -> ViewSample | Skipped:
        record = self.manifest.records[index]
        try:
            with self._open(index, record, self.decode_threads) as reader:
                first, count = _frame_span(reader, record)
                starts = uniform_starts(count, self.clip_frames, self.frame_stride, self.clips)
                numbers = np.stack(
                    [clip_indices(int(s), self.clip_frames, self.frame_stride, count) for s in starts]
                )
                distinct, positions = np.unique(numbers, return_inverse=True)
                clip = reader.read(first + distinct, prepare=self.transform.resize)
        except VideoError as error:
            return Skipped(index, error.problem)
        frames, boxes = self.transform(clip)
        clips = torch.from_numpy(positions.reshape(numbers.shape))
        return ViewSample(frames, clips, boxes, index, _label_tensor(self.manifest, index))


def _frame_span(reader: VideoReader, record: VideoRecord) -> tuple[int, int]:
    """Return (first frame, number of frames) of the record's segment of the video.

    Public copies of Kinetics are cut to the labelled seconds already, uncut ones are not; the length of the
    file tells them apart. Other lists mean the seconds that they give (`exact_seconds`).
    """
    start, end = record.start_seconds, record.end_seconds
    if start is None and end is None:
        return 0, reader.num_frames
    start = 0.0 if start is None else start
    if not record.exact_seconds and end is not None and reader.duration_seconds <= end - start + 1.0:
        return 0, reader.num_frames
    seconds = reader.frame_seconds - reader.frame_seconds[0]
    first = int(np.searchsorted(seconds, start, side="left"))
    beyond = reader.num_frames if end is None else int(np.searchsorted(seconds, end, side="left"))
    if first >= beyond:
        asked = f"from {start:g} s on" if end is None else f"between {start:g} and {end:g} s"
        raise VideoError(record.path, f"no frame {asked}: the video lasts {reader.duration_seconds:.2f} s")
    return first, beyond - first


def _label_tensor(manifest: Manifest, index: int) -> Tensor:
    labels = manifest.records.labels_of(index)
    if manifest.multi_label:
        return _hot(labels, manifest.num_classes)
    return torch.tensor(labels[0] if len(labels) == 1 else labels, dtype=torch.int64)


def _hot(labels: Sequence[int], classes: int) -> Tensor:
    hot = torch.zeros(classes)
    hot[list(labels)] = 1.0
    return hot


def collate_samples(samples: Sequence[Sample]) -> ClipBatch:
    """Stack training samples; for `DataLoader(collate_fn=...)`."""
    # Stacked in the order they lie in memory, (frames, height, width, channels): plain copies.
    video = torch.stack([sample.video.permute(1, 2, 3, 0) for sample in samples]).permute(0, 4, 1, 2, 3)
    return ClipBatch(
        video=video,
        labels=torch.stack([sample.labels for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        skipped=tuple(dict.fromkeys(problem for sample in samples for problem in sample.skipped)),
    )


def collate_views(samples: Sequence[ViewSample | Skipped]) -> ViewSample | Skipped:
    """Pass one video through; for `DataLoader(batch_size=1, collate_fn=...)`. Videos differ in size.

    Raises:
        ValueError: a batch of other than one video.
    """
    if len(samples) != 1:
        raise ValueError(f"videos are tested one at a time: batch_size must be 1, not {len(samples)}")
    return samples[0]
