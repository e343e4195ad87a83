"""Many names of one list: the same answers as one by one, from one listing of each folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nonlocal_nn.data import records
from nonlocal_nn.data.records import FileFinder, find_file

NAMES = ["a.mp4", "in/b.mp4", "./a.mp4", "in//b.mp4", "in/../a.mp4", "in\\b.mp4", "absent.mp4", "in", "in/"]
NAMES += [
    "",
    "link.mp4",
    "dead.mp4",
    "other/in/b.mp4",
    "C:\\data\\in\\b.mp4",
    "~nobody/a.mp4",
    "in/deep/c.mp4",
]
NAMES += ["/elsewhere/in/b.mp4", "absent/a.mp4", "caf\udce9.mp4"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.mp4", "in/b.mp4", "in/deep/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "dead.mp4").symlink_to(tmp_path / "gone.mp4")
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_the_same_as_one_by_one(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (root, Path()):
        monkeypatch.chdir(root)
        for asked in (name, str(root / name) if name else name):
            expected = find_file(asked, place)
            found, absent = FileFinder(place).find(asked)
            assert (found, absent) == (("", expected) if isinstance(expected, str) else (str(expected), ""))


def test_each_folder_is_listed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (root / "in" / f"{number}.mp4").touch()
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(records.os, "scandir", lambda folder: listed.append(str(folder)) or scandir(folder))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: pytest.fail("one stat a file"))
    finder = FileFinder(root)
    assert all(finder.find(f"in/{number}.mp4")[0] == f"{root}/in/{number}.mp4" for number in range(30))
    assert listed == [f"{root}/in"]
