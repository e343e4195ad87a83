"""Shards hold the samples of the plain files, and a broken shard is a problem of its videos alone."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nonlocal_nn.cli import main
from nonlocal_nn.data.dataset import ClipDataset, SampleKey, Skipped, ViewDataset, ViewSample
from nonlocal_nn.data.decode import VideoError, VideoReader
from nonlocal_nn.data.manifest import read_manifest
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.data.shards import INDEX, MemberFile
from nonlocal_nn.data.table import Member
from nonlocal_nn.data.transforms import TrainTransform, ViewTransform

from .made_videos import write_video

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    for number, name in enumerate(("run/a.mp4", "run/b c.mkv", "run/d.avi", "walk/a.mp4", "walk/e.webm")):
        (root / name).parent.mkdir(exist_ok=True)
        codec = {"webm": "libvpx", "avi": "mpeg4"}.get(name.rpartition(".")[2], "libx264")
        write_video(root / name, 12 + number, codec=codec)
    return root


@pytest.fixture
def shards(source: Path, tmp_path: Path) -> Path:
    assert main(["shard", str(source), str(tmp_path / "shards"), "--size", "20kB"]) == 0
    return tmp_path / "shards"


def _clips(manifest: Manifest) -> ClipDataset:
    transform = TrainTransform(crop=32, jitter=(36, 40))
    return ClipDataset(manifest, clip_frames=4, frame_stride=2, transform=transform, seed=3)


def _views(manifest: Manifest) -> ViewDataset:
    transform = ViewTransform(short_side=36, crop=32, crops=3)
    return ViewDataset(manifest, clip_frames=4, frame_stride=2, clips=2, transform=transform)


def test_samples_are_those_of_the_files(source: Path, shards: Path) -> None:
    plain, packed = read_manifest(source), read_manifest(shards)
    assert len(list(shards.glob("*.tar"))) > 1
    assert packed.classes == plain.classes
    assert packed.kind == "folders"
    assert [r.labels for r in packed.records] == [r.labels for r in plain.records]
    names = [record.path.partition(".tar/")[2] for record in packed.records]
    assert names == [str(Path(record.path).relative_to(source)) for record in plain.records]
    for index in range(len(plain)):
        one, other = _clips(plain)[SampleKey(1, index)], _clips(packed)[SampleKey(1, index)]
        assert torch.equal(one.video, other.video)
        assert torch.equal(one.labels, other.labels)
        tested, again = _views(plain)[index], _views(packed)[index]
        assert isinstance(tested, ViewSample)
        assert isinstance(again, ViewSample)
        assert torch.equal(tested.views, again.views)


def test_the_index_is_small(source: Path, tmp_path: Path) -> None:
    lines = [f"{path} {number % 400}" for number, path in enumerate([source / "run/a.mp4"] * 1)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    many = tmp_path / "many"
    many.mkdir()
    text = "".join(f"v{number:06d}.mp4 {number % 400}\n" for number in range(2000))
    for number in range(2000):
        (many / f"v{number:06d}.mp4").write_bytes(b"x" * (number % 700))
    (many / "list.txt").write_text(text)
    assert main(["shard", str(many / "list.txt"), str(tmp_path / "out"), "--size", "300kB"]) == 0
    assert (tmp_path / "out" / INDEX).stat().st_size < 100 * 2000


def test_other_programs_read_them(shards: Path, source: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    found = {json.loads(sample["json"])["name"]: sample for sample in samples}
    assert len(found) == 5
    assert found["run/b c.mkv"]["mkv"] == (source / "run/b c.mkv").read_bytes()
    assert json.loads(found["walk/e.webm"]["json"])["rows"] == [{"labels": [1], "classes": ["walk"]}]


def test_an_interrupted_call_goes_on_with_the_same_bytes(
    source: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {path.name: path.read_bytes() for path in shards.iterdir()}
    names = sorted(whole)
    (shards / INDEX).unlink()
    (shards / "shard-000001.tar").unlink()
    kept = (shards / "shard-000000.tar").stat().st_mtime_ns
    assert main(["shard", str(source), str(shards), "--size", "20kB"]) == 0
    assert sorted(path.name for path in shards.iterdir()) == names
    assert {name: (shards / name).read_bytes() for name in names if name != INDEX} == {
        name: whole[name] for name in names if name != INDEX
    }
    assert (shards / "shard-000000.tar").stat().st_mtime_ns == kept
    assert "were there already" in capsys.readouterr().out
    assert main(["shard", str(source), str(shards), "--size", "2MB"]) == 2
    assert "shards of other videos, or of another --size" in capsys.readouterr().err


def test_a_video_of_several_rows_is_held_once(source: Path, tmp_path: Path) -> None:
    (source / "rows.csv").write_text(
        "path,label,start_seconds,end_seconds\nrun/a.mp4,x,0,0.2\nwalk/a.mp4,y,,\nrun/a.mp4,y,0.2,0.4\n"
    )
    assert main(["shard", str(source / "rows.csv"), str(tmp_path / "out")]) == 0
    plain, packed = read_manifest(source / "rows.csv"), read_manifest(tmp_path / "out")
    (source / "rows.csv").unlink()
    assert [r[1:5] for r in packed.records] == [r[1:5] for r in plain.records]
    members = [record.member for record in packed.records]
    assert members[0] == members[2] != members[1]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        names = tar.getnames()
    assert names == ["000000000.mp4", "000000000.json", "000000001.mp4", "000000001.json"]


def test_classes_go_by_name(shards: Path) -> None:
    assert [r.labels for r in read_manifest(shards, classes=["walk", "run", "sit"]).records] == [
        (1,),
        (1,),
        (1,),
        (0,),
        (0,),
    ]
    few = read_manifest(shards, classes=["walk"])
    assert len(few) == 2
    with pytest.raises(ValueError, match=r"unknown class 'run'.*3 videos"):
        few.require_known_labels()


def test_broken_shards_are_problems_of_their_videos(shards: Path) -> None:
    tars = sorted(shards.glob("*.tar"))
    whole = read_manifest(shards)
    last = [record for record in whole.records if record.member and record.member.shard == str(tars[0])][-1]
    assert last.member is not None
    with tars[0].open("r+b") as file:
        file.truncate(last.member.offset + last.member.size - 1)
    cut = read_manifest(shards)
    assert [problem.path for problem in cut.problems] == [last.path]
    assert "is cut off at byte" in cut.problems[0].reason
    assert len(cut) == len(whole) - 1
    tars[-1].unlink()
    gone = read_manifest(shards)
    assert "its shard is missing" in {problem.reason for problem in gone.problems}
    # cut off after the list was read
    with pytest.raises(VideoError, match="is cut off: the video ends at byte"):
        MemberFile(last.member, last.path)
    skipped = _views(Manifest(whole.records, whole.classes))[len(whole) - 1]
    assert isinstance(skipped, Skipped)
    assert "cannot be opened: No such file" in skipped.problem.reason


def test_a_shard_that_changed_since_it_was_indexed(shards: Path) -> None:
    record = read_manifest(shards).records[1]
    assert record.member is not None
    path = Path(record.member.shard)
    data = bytearray(path.read_bytes())
    data[record.member.offset - 400] ^= 1  # in its header
    path.write_bytes(data)
    skipped = _views(read_manifest(shards))[1]
    assert isinstance(skipped, Skipped)
    assert "has changed since it was indexed" in skipped.problem.reason


def test_an_index_that_is_none(shards: Path) -> None:
    (shards / INDEX).write_bytes(b"no index")
    with pytest.raises(ValueError, match="cannot be read"):
        read_manifest(shards)


def test_a_member_is_a_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(2000)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("x")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    with MemberFile(Member(str(tmp_path / "a.tar"), 512, 2000), "x") as member:
        assert member.read() == data
        assert member.read(5) == b""
        assert member.seek(-10, io.SEEK_END) == 1990
        assert member.read(100) == data[-10:]
        member.seek(3)
        assert (member.read(4), member.tell()) == (data[3:7], 7)
        with pytest.raises(ValueError, match="no byte -1"):
            member.seek(-1)


def test_the_reader_takes_bytes_and_file_objects(source: Path) -> None:
    for path in sorted(source.rglob("*.*")):
        if path.is_dir():
            continue
        with VideoReader(path) as plain:
            expected = plain.read(range(plain.num_frames)).frames
        for data in (path.read_bytes(), path.open("rb")):
            with VideoReader("named", data=data) as reader:
                assert np.array_equal(reader.read(range(reader.num_frames)).frames, expected)
                assert np.array_equal(reader.read([5, 0]).frames, expected[[5, 0]])
    for data, reason in ((b"", "empty"), (b"plain words", "plain text"), (b"\0" * 99, "not a video")):
        with pytest.raises(VideoError, match=f"^named: .*{reason}"):
            VideoReader("named", data=data)


@pytest.mark.parametrize("words", [["one"], ["a", "b", "c"]])
def test_two_places_are_needed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard", *words]) == 2
    assert "nonlocal shard SOURCE OUT" in capsys.readouterr().err
