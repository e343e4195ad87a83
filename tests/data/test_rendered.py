"""The rendered set: real files, held-out handwriting, and a label that nothing local gives away."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nonlocal_nn.data import handwriting, rendered
from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.data.rendered import CLASSES, FRAMES, SIDE_PIXELS, RenderedSet, render

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> RenderedSet:
    return render(tmp_path_factory.mktemp("rendered"), train_videos=32, test_videos=16, workers=1)


def _quartets(folder: Path) -> dict[str, dict[int, tuple[str, np.ndarray]]]:
    """{quartet: {place in it: (label, decoded frames)}}."""
    quartets: dict[str, dict[int, tuple[str, np.ndarray]]] = {}
    for path in sorted(folder.rglob("*.mp4")):
        name, place = path.stem.split("_")
        with VideoReader(path) as reader:
            frames = reader.read(range(reader.num_frames)).frames
        quartets.setdefault(name, {})[int(place)] = (path.parent.name, frames)
    return quartets


def test_every_file_is_a_whole_video(small_set: RenderedSet) -> None:
    for folder, count in ((small_set.train, 32), (small_set.test, 16)):
        for label in CLASSES:
            assert len(list((folder / label).glob("*.mp4"))) == count // 2
        for quartet in _quartets(folder).values():
            for _, frames in quartet.values():
                assert frames.shape == (FRAMES, SIDE_PIXELS, SIDE_PIXELS, 3)


def test_no_single_frame_and_no_single_place_tells_the_label(small_set: RenderedSet) -> None:
    """In each quartet both labels show the same frames, and each place the same course over time."""
    for folder in (small_set.train, small_set.test):
        for quartet in _quartets(folder).values():
            by_label: dict[str, list[np.ndarray]] = {"same": [], "different": []}
            for label, frames in quartet.values():
                by_label[label].append(frames)
            same, different = by_label["same"], by_label["different"]
            assert len(same) == len(different) == 2
            for t in range(FRAMES):
                assert sorted(f[t].tobytes() for f in same) == sorted(f[t].tobytes() for f in different)
            for y in range(SIDE_PIXELS):
                for x in range(SIDE_PIXELS):
                    places = [sorted(f[:, y, x].tobytes() for f in videos) for videos in (same, different)]
                    assert places[0] == places[1], f"place {(y, x)} differs between the labels"


def test_no_region_without_both_corners_tells_the_label(small_set: RenderedSet) -> None:
    """Whole halves of the picture, and whole halves of the video, are balanced; only the whole is not."""
    half = SIDE_PIXELS // 2
    for quartet in _quartets(small_set.train).values():
        same = [f for label, f in quartet.values() if label == "same"]
        different = [f for label, f in quartet.values() if label == "different"]
        for region in (
            np.s_[:, :half],
            np.s_[:, half:],
            np.s_[:, :, :half],
            np.s_[:, :, half:],
            np.s_[: FRAMES // 2],
            np.s_[FRAMES // 2 :],
        ):
            seen = [sorted(f[region].tobytes() for f in videos) for videos in (same, different)]
            assert seen[0] == seen[1]
        assert sorted(f.tobytes() for f in same) != sorted(f.tobytes() for f in different)


def test_the_label_says_whether_the_digits_are_the_same() -> None:
    targets = handwriting.digits(8)[1]
    for quartet in rendered._plan(rendered._Recipe(1, 0, 400, 80)):
        (a, b), (a_late, b_late) = quartet.early, quartet.late
        assert targets[a] == targets[a_late]
        assert targets[b] == targets[b_late]
        assert targets[a] != targets[b]
        assert a != a_late, (
            "the same piece of handwriting on both sides would make it a game of matching pixels"
        )
        assert b != b_late


def test_test_videos_show_handwriting_never_trained_on() -> None:
    plan = rendered._plan(rendered._Recipe(1, 0, 400, 80))
    used = {
        folder: {i for q in plan if q.folder == folder for i in (*q.early, *q.late)}
        for folder in ("train", "test")
    }
    assert used["train"]
    assert used["test"]
    assert not used["train"] & used["test"]


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    def contents(name: str, seed: int, workers: int) -> dict[str, bytes]:
        made = render(tmp_path / name, train_videos=8, test_videos=4, seed=seed, workers=workers)
        return {str(p.relative_to(made.train)): p.read_bytes() for p in made.train.rglob("*.mp4")}

    first = contents("a", 0, 1)
    assert contents("b", 0, 2) == first
    assert contents("c", 1, 1) != first


def test_a_finished_set_is_kept_and_an_interrupted_one_made_anew(tmp_path: Path) -> None:
    made = render(tmp_path, train_videos=4, test_videos=4, workers=1)
    victim = made.train / "same" / "quartet00000_0.mp4"
    original = victim.read_bytes()
    victim.write_bytes(b"kept")
    render(tmp_path, train_videos=4, test_videos=4, workers=1)
    assert victim.read_bytes() == b"kept"
    (tmp_path / "rendered.json").unlink()  # as if killed before the end
    render(tmp_path, train_videos=4, test_videos=4, workers=1)
    assert victim.read_bytes() == original
    render(tmp_path, train_videos=8, test_videos=4, workers=1)
    assert json.loads((tmp_path / "rendered.json").read_text())["train_videos"] == 8
    assert len(list(made.train.rglob("*.mp4"))) == 8


def test_progress_counts_every_video(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    render(
        tmp_path,
        train_videos=8,
        test_videos=4,
        workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 12), (8, 12), (12, 12)]


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_videos must be a positive multiple of 4.*got 6"):
        render(tmp_path, train_videos=6)
    with pytest.raises(ValueError, match="test_videos must be"):
        render(tmp_path, test_videos=0)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        render(tmp_path, train_videos=4, test_videos=4)
    assert (tmp_path / "thesis.tex").exists()
