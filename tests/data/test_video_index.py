"""The index of a scan: what it keeps is what the files hold, and it changes no clip."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nonlocal_nn.cli import main
from nonlocal_nn.data import decode
from nonlocal_nn.data.dataset import ClipDataset, SampleKey, Skipped, ViewDataset
from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.data.scan import ScanReport, scan
from nonlocal_nn.data.transforms import TrainTransform, ViewTransform
from nonlocal_nn.data.video_index import KnownVideos, Looked, VideoIndex, look
from tests.data.made_videos import remux_front, write_video


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, video: Path, broken: dict[str, tuple[Path, str]]) -> Path:
    """A folder with videos of every kind of frame table, and every broken file."""
    root = tmp_path_factory.mktemp("kinds") / "videos"
    root.mkdir()
    shutil.copy(video, root / "even.mp4")
    remux_front(video, root / "front.mp4")
    write_video(root / "uneven.mkv", 40, times_ms=[40 * n + (500 if n > 20 else 0) for n in range(40)])
    write_video(root / "one.mp4", 1)
    write_video(root / "untimed.avi", 30, "mpeg4")
    write_video(root / "hidden.webm", 30, "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "10"})
    write_video(root / "stream.ts", 30, "mpeg2video")
    for kind, (path, _) in broken.items():
        if path.is_file():
            shutil.copy(path, root / f"broken {kind}{path.suffix}")
    return root


def _paths(root: Path) -> list[str]:
    return sorted(map(str, root.iterdir()))


def _equal(one: Looked, other: Looked) -> bool:
    if (one.table is None) != (other.table is None) or one._replace(table=None) != other._replace(table=None):
        return False
    names = () if one.table is None else one.table.__slots__
    return all(np.array_equal(getattr(one.table, name), getattr(other.table, name)) for name in names)


def test_what_is_read_is_what_was_written(kinds: Path, tmp_path: Path) -> None:
    found = [look(path) for path in _paths(kinds)]
    assert {looked.table.exact for looked in found if looked.table} == {True, False}
    assert sum(looked.check is None for looked in found) == 9
    VideoIndex.of(found).write(tmp_path / "index.npz")
    index = VideoIndex.read(tmp_path / "index.npz")
    assert all(_equal(one, other) for one, other in zip(index, found, strict=True))
    turned = index.take(range(len(found))[::-1]).take([0, 2]).then(index.take([5]))
    assert all(_equal(turned[row], found[number]) for row, number in enumerate((-1, -3, 5)))
    VideoIndex.of([]).write(tmp_path / "none.npz")
    assert list(VideoIndex.read(tmp_path / "none.npz")) == []


def test_every_frame_is_that_of_a_reader_without_it(kinds: Path) -> None:
    read = 0
    for path in _paths(kinds):
        table = look(path).table
        if table is None:
            continue
        with VideoReader(path) as plain:
            count = plain.num_frames
        for numbers in ([0], [count - 1], [count // 2, 0], list(range(count))):
            with VideoReader(path) as plain, VideoReader(path, table=table) as known:
                assert known.num_frames == count
                if "damaged" in path:
                    continue
                one, other = plain.read(numbers), known.read(numbers)
                again = known.read(numbers)
            assert np.array_equal(one.frames, other.frames)
            assert np.array_equal(one.frames, again.frames)
            assert np.array_equal(one.pts_seconds, other.pts_seconds)
            read += 1
    assert read == 4 * 7


def _counting(report: ScanReport) -> tuple[int, int]:
    return report.videos, report.looked_at


def test_only_what_changed_is_looked_at_again(kinds: Path, tmp_path: Path) -> None:
    root, index = tmp_path / "videos", tmp_path / "index.npz"
    shutil.copytree(kinds, root)
    plain = scan(root, workers=2)
    first = scan(root, workers=2, index=index)
    assert first == plain
    again = scan(root, workers=2, index=index)
    assert again.findings == plain.findings
    assert _counting(again) == (16, 0)
    # shorter clips make fewer videos short, without another look
    assert len(scan(root, workers=2, index=index, min_frames=35).of("short")) < len(plain.of("short"))
    shutil.copy(root / "uneven.mkv", root / "one.mp4")
    os.utime(root / "front.mp4", (1, 1))
    (root / "even.mp4").unlink()
    write_video(root / "new.mp4", 3)
    changed = scan(root, workers=1, index=index)
    assert _counting(changed) == (16, 3)
    assert changed.findings == scan(root, workers=2).findings
    assert [Path(name).name for name in VideoIndex.read(index).names].count("even.mp4") == 0
    # one folder after the other in one index
    write_video(tmp_path / "other" / "a.mp4", 3)
    assert _counting(scan(tmp_path / "other", workers=1, index=index)) == (1, 1)
    assert _counting(scan(root, workers=1, index=index)) == (16, 0)
    # videos and index moved together
    (tmp_path / "elsewhere").mkdir()
    for name in ("videos", "other", "index.npz"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = tmp_path / "elsewhere"
    assert _counting(scan(moved / "videos", workers=1, index=moved / "index.npz")) == (16, 0)


def test_a_scan_that_is_cut_off_goes_on(kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index.npz"

    def four(*arguments: object, **options: object) -> Iterator[Looked]:
        yield from map(look, _paths(kinds)[:4])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nonlocal_nn.data.scan._look_at", four)
        with pytest.raises(KeyboardInterrupt):
            scan(kinds, index=index)
    assert _counting(scan(kinds, workers=1, index=index)) == (16, 12)


def test_samples_are_those_without_an_index(
    kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(kinds, workers=2, index=tmp_path / "index.npz")
    paths = _paths(kinds)
    manifest = Manifest.of_paths(paths, labels=[0] * len(paths), classes=["all"])
    known = KnownVideos.of(tmp_path / "index.npz", manifest)
    assert known.changes == ""
    assert len(known.broken()) == 8  # the one damaged within is no such
    crop = TrainTransform(crop=32, jitter=(36, 40))
    views = ViewTransform(short_side=36, crop=32, crops=1)
    plain, indexed = (
        (
            ClipDataset(manifest, clip_frames=4, frame_stride=2, transform=crop, seed=1, known=one),
            ViewDataset(manifest, clip_frames=4, frame_stride=2, clips=2, transform=views, known=one),
        )
        for one in (None, known)
    )
    keys = [SampleKey(epoch, index) for epoch in range(2) for index in range(len(paths))]
    expected = [plain[0][key] for key in keys], [plain[1][index] for index in range(len(paths))]
    monkeypatch.setattr(decode, "read_frame_table", None)  # nobody goes through a file
    for key, one in zip(keys, expected[0], strict=True):
        other = indexed[0][key]
        assert torch.equal(one.video, other.video)
        assert (one.index, one.labels, one.skipped) == (other.index, other.labels, other.skipped)
    for index, view in enumerate(expected[1]):
        seen = indexed[1][index]
        if isinstance(view, Skipped) or isinstance(seen, Skipped):
            assert view == seen
        else:
            assert torch.equal(view.frames, seen.frames)
            assert torch.equal(view.clips, seen.clips)


def test_an_index_older_than_its_files_is_said_and_not_used(kinds: Path, tmp_path: Path) -> None:
    root, index = tmp_path / "videos", tmp_path / "index.npz"
    root.mkdir()
    for name in ("even.mp4", "uneven.mkv"):
        shutil.copy(kinds / name, root / name)
    scan(root, workers=1, index=index)
    shutil.copy(root / "uneven.mkv", root / "even.mp4")
    write_video(root / "new.mp4", 3)
    manifest = Manifest.of_paths(_paths(root))
    known = KnownVideos.of(index, manifest)
    assert known.changes == "1 of 3 videos is not in it and 1 of 3 has changed since it was made"
    assert "--index" in known.note("index.npz")[0]
    assert [known.table(number) is None for number in range(3)] == [True, True, False]
    (root / "uneven.mkv").write_bytes(b"changed while training")
    assert known.table(2) is None


@pytest.mark.parametrize("held", ["text", "arrays", "later"])
def test_what_is_no_index_is_one_line(
    held: str, kinds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index.npz"
    if held == "text":
        index.write_text("no index")
    elif held == "arrays":
        np.savez(index, a=np.zeros(3))
    else:
        np.savez(index, version=np.array(2))
    with pytest.raises(ValueError, match=r"index\.npz cannot be read as an index of videos") as error:
        VideoIndex.read(index)
    assert ("of version 2" in str(error.value)) == (held == "later")
    assert main(["scan", str(kinds), "--index", str(index)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(FileNotFoundError, match="no such index"):
        VideoIndex.read(tmp_path / "absent.npz")
    assert main(["scan", str(kinds), "--index", "index.csv"]) == 2
    assert "must end in .npz" in capsys.readouterr().err
