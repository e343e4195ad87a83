"""The long-range set: what a quartet shares, what the dials do, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.data.handwriting import handwritings
from nonlocal_nn.data.long_range import LongRange, _pieces, ties_from, write_long_range
from nonlocal_nn.data.manifest import read_manifest

pytest.importorskip("sklearn")

Rows = list[dict[str, str]]


def _read(labels: Path) -> Rows:
    with labels.open(newline="") as file:
        return list(csv.DictReader(file))


def _frames(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.read(range(reader.num_frames)).frames.astype(int)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = LongRange(
        space=(38, 0, 20), time=(0, 6, 3), classes=6, distractors=2, train_videos=24, test_videos=12
    )
    return write_long_range(tmp_path_factory.mktemp("set"), options, workers=1)


def test_rows_are_balanced_in_labels_and_distances(made: Path) -> None:
    rows = _read(made)
    assert list(rows[0]) == ["path", "label", "set", "quartet", "distance_pixels", "distance_frames"]
    for part, count in (("train", 24), ("test", 12)):
        mine = [row for row in rows if row["set"] == part]
        assert len(mine) == count
        for distance in (("38", "0"), ("0", "6"), ("20", "3")):
            there = [r for r in mine if (r["distance_pixels"], r["distance_frames"]) == distance]
            assert sorted(row["label"] for row in there) == sorted(["different", "same"] * (count // 6))
    manifest = read_manifest(made, where="set == train")
    assert len(manifest.records) == 24
    assert manifest.classes == ("different", "same")


def test_what_holds_one_piece_is_seen_as_often_under_either_label(made: Path) -> None:
    """Every window of 29 pixels in a frame (38 pixels apart), and every frame (6 and 3 frames apart)."""
    rows = _read(made)
    for quartet in sorted({row["quartet"] for row in rows}):
        mine = [row for row in rows if row["quartet"] == quartet]
        same, different = (
            [_frames(made.parent / row["path"]) for row in mine if row["label"] == label]
            for label in ("same", "different")
        )
        assert len(same) == len(different) == 2
        far = mine[0]["distance_pixels"] == "38"
        corners = [(y, x) for y in (0, 9, 19) for x in (0, 9, 19)] if far else [(0, 0)]
        side = 29 if far else 48
        for t in range(8):
            for y, x in corners:
                window = np.s_[t, y : y + side, x : x + side]
                assert sorted(clip[window].tobytes() for clip in same) == sorted(
                    clip[window].tobytes() for clip in different
                )


@pytest.mark.parametrize(("space", "time"), [(38, 0), (0, 6), (24, 3), (10, 0)])
def test_the_distance_is_the_one_that_was_set(tmp_path: Path, space: int, time: int) -> None:
    options = LongRange(space=(space,), time=(time,), train_videos=16, test_videos=4)
    labels = write_long_range(tmp_path / "set", options, workers=1)
    for quartet in range(4):
        aa, ab, ba, bb = (_frames(tmp_path / f"set/train/{quartet:05d}_{place}.mp4") for place in range(4))
        second, first = np.abs(aa - ab).sum(-1), np.abs(aa - ba).sum(-1)  # where the two pieces differ
        assert np.array_equal(np.abs(ba - bb).sum(-1), second)
        at = [np.argwhere(place > 0) for place in (first, second)]
        starts = [where[:, 0].min() for where in at]
        assert starts[1] - starts[0] == time
        assert all(where[:, 0].max() - where[:, 0].min() == 1 for where in at)
        boxes = [np.stack([where[:, 1:].min(0), where[:, 1:].max(0)]) for where in at]
        assert all((box[1] - box[0] < options.token_pixels).all() for box in boxes)
        apart = np.abs(boxes[0].mean(0) - boxes[1].mean(0)).max()
        assert abs(apart - space) <= 4  # pieces do not fill their squares
    assert len(_read(labels)) == 20


def test_a_set_is_a_function_of_its_options(tmp_path: Path) -> None:
    options = LongRange(train_videos=4, test_videos=4, distractors=1)
    first = write_long_range(tmp_path / "a", options, workers=1)
    second = write_long_range(tmp_path / "b", options, workers=2)
    for row in _read(first):
        assert (first.parent / row["path"]).read_bytes() == (second.parent / row["path"]).read_bytes()
    (first.parent / "train/00000_0.mp4").write_bytes(b"mine")
    write_long_range(tmp_path / "a", options)  # there already: left as it is
    assert (first.parent / "train/00000_0.mp4").read_bytes() == b"mine"
    write_long_range(tmp_path / "a", LongRange(train_videos=8, test_videos=4), workers=1)
    assert (first.parent / "train/00000_0.mp4").read_bytes() != b"mine"
    (first.parent / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        write_long_range(tmp_path / "a", options)


@pytest.mark.parametrize("token", ["ink", "digit"])
def test_test_videos_are_of_other_handwriting(token: Any) -> None:
    kept = {int(piece) for digit in range(10) for piece in handwritings(digit, held_out=True)}
    for seed in range(20):
        for part in ("train", "test"):
            pieces, inks = _pieces(LongRange(token=token, classes=4), part, np.random.default_rng(seed))
            drawn = [int(piece) for which in pieces for piece in which]
            assert len(set(drawn)) == 4
            assert all((piece in kept) == (part == "test") for piece in drawn)
            same = [np.array_equal(inks[0][kind], inks[1][kind]) for kind in range(2)]
            assert same == [True, True]
            assert np.array_equal(inks[0][0], inks[0][1]) == (token == "digit")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"space": (39,)}, "space = 39: .* at most 38"),
        ({"space": (0,), "time": (7,)}, "time = 7: .* at most 6"),
        ({"space": (5,)}, "space = 5 with time = 0: the pieces would cover each other"),
        ({"space": (0,), "time": (1,)}, "at least 10 pixels or 2 frames"),
        ({"classes": 13}, "classes = 13: from 2 to 12 inks"),
        ({"classes": 11, "token": "digit"}, "from 2 to 10 digits"),
        ({"classes": 1}, "classes = 1"),
        ({"token": "shape"}, "token = 'shape'"),
        ({"space": (12, 20), "time": (0, 1, 2)}, "space has 2 distances and time 3"),
        ({"space": (20, 20)}, "name a distance twice"),
        ({"train_videos": 6}, "train_videos = 6: .* multiple of 4"),
        ({"space": (12, 20, 38), "test_videos": 16}, "test_videos = 16: .* multiple of 12"),
        ({"distractors": -1}, "distractors = -1"),
        ({"side_pixels": 47}, "side_pixels = 47"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LongRange(**options)


def test_ties_from() -> None:
    assert [ties_from(reach, 10) for reach in (1, 25)] == [10, 34]
