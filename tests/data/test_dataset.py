"""Samples and views: the same whoever makes them, and broken videos never stop a loader."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from nonlocal_nn.data import dataset as dataset_module
from nonlocal_nn.data.dataset import (
    ClipBatch,
    ClipDataset,
    SampleKey,
    Skipped,
    ViewDataset,
    ViewSample,
    collate_samples,
    collate_views,
)
from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.data.errors import VideoError
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.data.table import RecordTable, VideoRecord
from nonlocal_nn.data.transforms import TrainTransform, ViewTransform
from tests.data.made_videos import numbers_shown, write_video

PLAIN = TrainTransform(crop=48, jitter=(48, 48), flip=0.0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{n}.mp4", 40, options={"g": "10"}) for n in range(4)]


def _dataset(paths: list[Path], transform: TrainTransform = PLAIN, **options: int) -> ClipDataset:
    manifest = Manifest.of_paths(paths, labels=[n % 3 for n in range(len(paths))], classes=["a", "b", "c"])
    settings = {"clip_frames": 8, "frame_stride": 2, "seed": 0} | options
    return ClipDataset(manifest, transform=transform, **settings)


class _Epochs:
    """Batches of keys for two epochs."""

    def __init__(self, videos: int) -> None:
        self.videos = videos

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for epoch in range(2):
            for first in range(0, self.videos, 2):
                yield [SampleKey(epoch, index) for index in range(first, min(first + 2, self.videos))]


def _batches(dataset: ClipDataset, workers: int) -> list[ClipBatch]:
    loader = DataLoader(
        dataset,
        batch_sampler=_Epochs(len(dataset)),
        collate_fn=collate_samples,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return list(loader)


def test_a_clip_is_consecutive_frames_of_its_stride(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wide.mp4", 40)
    starts = set()
    for epoch in range(30):
        transform = TrainTransform(crop=64, jitter=(64, 64), flip=0.0)
        square = (
            write_video(tmp_path / "square.mp4", 40, size=(64, 64)) if epoch == 0 else tmp_path / "square.mp4"
        )
        sample = _dataset([square], transform)[SampleKey(epoch, 0)]
        numbers = numbers_shown(sample.video.permute(1, 2, 3, 0).numpy())
        assert np.all(np.diff(numbers) == 2)
        assert numbers[-1] <= 39
        starts.add(numbers[0])
    assert len(starts) > 10
    assert _dataset([path])[SampleKey(0, 0)].video.shape == (3, 8, 48, 48)


def test_a_sample_depends_on_seed_epoch_and_index_alone(videos: list[Path]) -> None:
    transform = TrainTransform(crop=32, jitter=(36, 48))
    dataset = _dataset(videos, transform)
    keys = [SampleKey(epoch, index) for epoch in range(2) for index in range(4)]
    forwards = {key: dataset[key].video for key in keys}
    again = pickle.loads(pickle.dumps(_dataset(videos, transform)))
    np.random.seed(3)
    torch.manual_seed(3)
    for key in reversed(keys):
        assert torch.equal(again[key].video, forwards[key])
    assert not torch.equal(forwards[SampleKey(0, 1)], forwards[SampleKey(1, 1)])
    assert not torch.equal(_dataset(videos, transform, seed=1)[keys[0]].video, forwards[keys[0]])


def test_workers_give_what_the_main_process_gives(videos: list[Path], broken) -> None:
    dataset = _dataset(
        [*videos[:2], broken["text"][0], *videos[2:]], TrainTransform(crop=32, jitter=(36, 48))
    )
    for alone, worked in zip(_batches(dataset, 0), _batches(dataset, 2), strict=True):
        assert torch.equal(alone.video, worked.video)
        assert torch.equal(alone.labels, worked.labels)
        assert torch.equal(alone.indices, worked.indices)
        assert alone.skipped == worked.skipped


def test_a_batch_is_uint8_and_lies_in_memory_as_decoded(videos: list[Path]) -> None:
    batch = _batches(_dataset(videos), 0)[0]
    assert batch.video.dtype == torch.uint8
    assert batch.video.shape == (2, 3, 8, 48, 48)
    assert batch.video.is_contiguous(memory_format=torch.channels_last_3d)
    assert batch.labels.tolist() == [0, 1]
    assert batch.labels.dtype == torch.int64
    assert batch.indices.tolist() == [0, 1]
    assert batch.skipped == ()


def test_a_broken_video_is_replaced_and_reported(videos: list[Path], broken) -> None:
    for path, reason in broken.values():
        if path.is_dir():
            continue
        # 32 frames of every second: a clip reaches into the damaged part
        dataset = _dataset([path, *videos], clip_frames=30)
        sample = dataset[SampleKey(0, 0)]
        assert sample.index != 0
        assert sample.labels == (sample.index % 3)
        assert [problem.path for problem in sample.skipped] == [str(path)]
        assert reason in sample.skipped[0].reason
        again = _dataset([path, *videos], clip_frames=30)[SampleKey(0, 0)]
        assert again.index == sample.index
        assert torch.equal(again.video, sample.video)


def test_a_broken_video_is_opened_once(videos: list[Path], broken, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Counting(VideoReader):
        def __init__(self, path, threads=1, data=None, table=None):
            opened.append(str(path))
            super().__init__(path, threads, data, table)

    monkeypatch.setattr(dataset_module, "VideoReader", Counting)
    path = broken["text"][0]
    dataset = _dataset([path, *videos])
    samples = [dataset[SampleKey(epoch, 0)] for epoch in range(5)]
    assert opened.count(str(path)) == 1
    # and what it gives does not depend on whether it was known
    fresh = [_dataset([path, *videos])[SampleKey(epoch, 0)] for epoch in range(5)]
    assert [s.index for s in samples] == [s.index for s in fresh]
    assert [s.skipped for s in samples] == [s.skipped for s in fresh]


def test_nothing_but_broken_videos_is_an_error(broken) -> None:
    with pytest.raises(VideoError, match=r"empty \(0 bytes\) \(and no other could take its place\)"):
        _dataset([broken["empty"][0]])[SampleKey(0, 0)]


def test_a_short_video_starts_over(tmp_path: Path) -> None:
    path = write_video(tmp_path / "three.mp4", 3, size=(64, 64))
    sample = _dataset([path], TrainTransform(crop=64, jitter=(64, 64), flip=0.0))[SampleKey(0, 0)]
    assert numbers_shown(sample.video.permute(1, 2, 3, 0).numpy()) == [0, 2, 1, 0, 2, 1, 0, 2]
    one = write_video(tmp_path / "one.mp4", 1, size=(64, 64))
    assert _dataset([one])[SampleKey(0, 0)].video.shape == (3, 8, 48, 48)


def test_several_labels_become_zeros_and_ones(videos: list[Path]) -> None:
    records = RecordTable([VideoRecord(str(videos[0]), (0, 2)), VideoRecord(str(videos[1]), ())])
    manifest = Manifest(records, ("a", "b", "c"), multi_label=True)
    dataset = ClipDataset(manifest, clip_frames=2, frame_stride=1, transform=PLAIN, seed=0)
    batch = _batches(dataset, 0)[0]
    assert batch.labels.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert batch.labels.dtype == torch.float32


def test_what_cannot_be_trained_on_is_refused(videos: list[Path]) -> None:
    with pytest.raises(ValueError, match="holds no videos"):
        _dataset([])
    with pytest.raises(ValueError, match=r"0\.mp4: 0 labels; training needs one"):
        ClipDataset(Manifest.of_paths(videos), clip_frames=8, frame_stride=2, transform=PLAIN, seed=0)
    with pytest.raises(ValueError, match="not 0 and 2"):
        _dataset(videos, clip_frames=0)
    with pytest.raises(ValueError, match="max_attempts must be 1 or more, not 0"):
        _dataset(videos, max_attempts=0)


# Views


def _views(paths: list[Path], clips: int = 3, transform: ViewTransform | None = None) -> ViewDataset:
    return ViewDataset(
        Manifest.of_paths(paths, labels=[1] * len(paths), classes=["a", "b"]),
        clip_frames=4,
        frame_stride=2,
        clips=clips,
        transform=transform or ViewTransform(short_side=48, crop=40, crops=3),
    )


def test_views_are_every_crop_of_every_clip(videos: list[Path]) -> None:
    sample = _views(videos, clips=10)[2]
    assert isinstance(sample, ViewSample)
    assert (sample.num_views, sample.index, sample.labels.item()) == (30, 2, 1)
    views = sample.views
    assert views.shape == (30, 3, 4, 40, 40)
    starts = [0, 4, 7, 11, 14, 18, 21, 25, 28, 32]  # of 40 frames; a window is 8 frames
    with VideoReader(videos[2]) as reader:
        for number, view in enumerate(views):
            clip, crop = divmod(number, 3)
            frames = reader.read([starts[clip] + 2 * n for n in range(4)]).frames
            left = (0, 12, 24)[crop]
            expected = frames[:, 4:44, left : left + 40]
            assert np.array_equal(view.permute(1, 2, 3, 0).numpy(), expected)
    for size in (1, 7, 30, 50):
        assert torch.equal(torch.cat(list(sample.batches(size))), views)
    with pytest.raises(ValueError, match="size must be 1 or more, not 0"):
        next(sample.batches(0))


def test_shared_frames_are_held_once(videos: list[Path]) -> None:
    sample = _views(videos, clips=30)[0]
    assert isinstance(sample, ViewSample)
    assert sample.frames.shape[1] <= 40
    assert sample.num_views == 90


def test_the_full_frame_is_one_view_of_each_clip(videos: list[Path]) -> None:
    sample = _views(videos, clips=1, transform=ViewTransform(short_side=48, crop=None, crops=1))[0]
    assert isinstance(sample, ViewSample)
    assert sample.views.shape == (1, 3, 4, 48, 64)
    assert numbers_shown(sample.views[0].permute(1, 2, 3, 0).numpy()) == [16, 18, 20, 22]


def test_a_broken_video_is_skipped_by_name(videos: list[Path], broken) -> None:
    paths = [path for path, _ in broken.values()]
    reasons = [reason for _, reason in broken.values()]
    loader = DataLoader(
        _views([*paths, videos[0]], clips=10), batch_size=1, collate_fn=collate_views, num_workers=1
    )
    *skipped, good = loader
    assert isinstance(good, ViewSample)
    for number, item in enumerate(skipped):
        assert isinstance(item, Skipped)
        assert item.index == number
        assert item.problem.path == str(paths[number])
        assert reasons[number] in item.problem.reason


def test_each_video_is_opened_and_read_once(videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Counting(VideoReader):
        def __init__(self, path, threads=1, data=None, table=None):
            calls.append("open")
            super().__init__(path, threads, data, table)

        def read(self, indices, prepare=None):
            calls.append("read")
            return super().read(indices, prepare)

    monkeypatch.setattr(dataset_module, "VideoReader", Counting)
    _ = _views(videos, clips=10)[0]
    assert calls == ["open", "read"]


def test_an_uncut_video_gives_its_labelled_seconds(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "uncut.mp4", 250))  # ten seconds
    whole = ViewTransform(short_side=48, crop=None, crops=1)

    def shown(start: float, end: float) -> list[int]:
        manifest = Manifest(RecordTable([VideoRecord(path, (0,), start, end)]), ("a",))
        sample = ViewDataset(manifest, clip_frames=2, frame_stride=1, clips=2, transform=whole)[0]
        assert isinstance(sample, ViewSample), sample
        return [n for clip in sample.views for n in numbers_shown(clip.permute(1, 2, 3, 0).numpy())]

    assert shown(2.0, 4.0) == [50, 51, 98, 99]
    assert shown(100.0, 110.0) == [0, 1, 248, 249]  # ten seconds of a longer video: cut already
    manifest = Manifest(RecordTable([VideoRecord(path, (0,), 20.0, 22.0)]), ("a",))
    skipped = ViewDataset(manifest, clip_frames=2, frame_stride=1, clips=2, transform=whole)[0]
    assert isinstance(skipped, Skipped)
    assert skipped.problem.reason == "no frame between 20 and 22 s: the video lasts 10.00 s"


def test_videos_are_tested_one_at_a_time(videos: list[Path]) -> None:
    with pytest.raises(ValueError, match="batch_size must be 1, not 2"):
        collate_views([_views(videos)[0], _views(videos)[1]])


def test_real_labelled_clips(shared_data: Path) -> None:
    from nonlocal_nn.data.manifest import read_manifest

    manifest = read_manifest(
        shared_data / "video_labelled" / "ut_interaction" / "labels.csv", where="sequence == 3"
    )
    dataset = ClipDataset(
        manifest, clip_frames=8, frame_stride=4, transform=TrainTransform(112, (128, 160)), seed=0
    )
    batch = collate_samples([dataset[SampleKey(0, index)] for index in range(len(manifest))])
    assert batch.video.shape == (len(manifest), 3, 8, 112, 112)
    assert batch.skipped == ()
    assert batch.video.float().std() > 20


@pytest.mark.parametrize("size", [(640, 2), (2, 640), (1280, 4)])
def test_a_strip_is_refused_before_it_fills_the_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    path = str(write_video(tmp_path / "strip.mp4", 3, "libx264", size=size, pix_fmt="yuv444p"))
    manifest = Manifest(RecordTable([VideoRecord(path, (0,))]), ("a",))
    views = ViewDataset(
        manifest,
        clip_frames=2,
        frame_stride=1,
        clips=1,
        transform=ViewTransform(short_side=256, crop=256, crops=3),
    )
    skipped = views[0]
    assert isinstance(skipped, Skipped)
    assert skipped.problem.path == path
    assert "would become" in skipped.problem.reason
    train = ClipDataset(
        manifest, clip_frames=2, frame_stride=1, transform=TrainTransform(crop=32, jitter=(32, 40)), seed=0
    )
    assert train[SampleKey(0, 0)].video.shape == (3, 2, 32, 32)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_a_condition_of_the_machine_is_not_remembered_as_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = str(write_video(tmp_path / "a.mp4", 8))
    manifest = Manifest(RecordTable([VideoRecord(path, (0,))]), ("a",))
    train = ClipDataset(
        manifest, clip_frames=2, frame_stride=1, transform=TrainTransform(crop=32, jitter=(32, 40)), seed=0
    )
    opened = av.open

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(VideoError, match=os.strerror(number)) as caught:
        train[SampleKey(0, 0)]
    assert "damaged" not in str(caught.value)
    monkeypatch.setattr(av, "open", opened)
    assert train[SampleKey(0, 0)].video.shape == (3, 2, 32, 32)
