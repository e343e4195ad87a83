"""How labels and class files are read: one reading for a file, numbers by value, doubt refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nonlocal_nn.data.labels import decide_labels, read_class_file
from nonlocal_nn.data.manifest import read_manifest
from nonlocal_nn.data.records import Manifest


def _classes_of(labels: Sequence[str], classes: Sequence[str] | None, **known: int) -> dict[str, str]:
    """Each label with the name of the class it is read as."""
    reading = decide_labels(labels, classes, source="list.txt", **known)
    return {label: reading.classes[index] for label, index in reading.indices.items()}


def _note(labels: Sequence[str], classes: Sequence[str] | None) -> str:
    return decide_labels(labels, classes, source="list.txt").note or ""


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([f"{n}.0" for n in (0, 1, 10, 2, 3)], ["0", "1", "2", "3", "10"]),  # as pandas sorts and writes them
        ([f"{n:02d}" for n in range(1, 13)], [str(n) for n in range(1, 12)]),
        (["-1", "0", "1"], ["-1.0", "0.0", "1.0"]),
        (["10", "20", "30"], ["30", "010", "2e1"]),
        (["0.5", "1.5", "2"], ["2.0", "0.50", "1.5"]),
    ],
)
def test_numbers_are_compared_with_names_by_value(names: list[str], labels: list[str]) -> None:
    for label, name in _classes_of(labels, names).items():
        assert float(label) == float(name)
    assert len(_classes_of(labels, names)) == len(labels)


@pytest.mark.parametrize(
    ("names", "labels", "both"),
    [
        ([str(n) for n in range(12)], [str(n) for n in range(1, 13)], "12 is the class 11"),
        ([str(n) for n in range(1, 13)], [str(n) for n in range(12)], "0 is the class 1"),
        (
            ["1", "run", "walk"],
            ["0", "1", "2"],
            "1 is the name of a class, and counted from 0 it is the class run",
        ),
        (["7", "8", "9"], ["0", "1", "2"], "0 is the class 7"),
    ],
)
def test_two_readings_are_refused_and_shown(names: list[str], labels: list[str], both: str) -> None:
    with pytest.raises(ValueError, match="can be read two ways") as caught:
        decide_labels(labels, names, source="list.txt")
    assert both in str(caught.value)
    assert "list.txt" in str(caught.value)


@pytest.mark.parametrize("count", [2, 3, 12])
def test_labels_from_one_are_recognised(count: int) -> None:
    names = [f"class {letter}" for letter in "abcdefghijkl"[:count]]
    labels = [str(n) for n in range(1, count + 1)]
    assert _classes_of(labels, names) == dict(zip(labels, names, strict=True))
    assert f"labels 1 to {count} for {count} classes: counted from 1" in _note(labels, names)
    assert _classes_of(labels, None) == {label: label for label in labels}  # no class 0 that nothing has
    # a part of the list, against a class file with numbers
    assert _classes_of(["1"], names, first=1) == {"1": names[0]}


def test_a_gap_at_zero_is_said() -> None:
    assert "0, which no video has, is a" in _note(["1", "2"], ["a", "b", "c"])
    assert "no video has label 0" in _note(["2", "3"], None)
    assert not _note(["0", "2"], ["a", "b", "c"])


def test_names_and_numbers_in_one_file_are_names() -> None:
    assert _classes_of(["walk", "1"], None) == {"walk": "walk", "1": "1"}
    assert "not all are numbers" in _note(["walk", "1"], None)
    assert _classes_of(["walk", "1"], ["run", "walk"]) == {"walk": "walk"}  # 1 is not the second class
    assert _classes_of(["1", "01", "1.0", "walk"], None)["1.0"] == "1"


def test_labels_that_are_no_utf8_are_named() -> None:
    with pytest.raises(ValueError, match=r"the label 'caf\?' is not UTF-8"):
        decide_labels(["caf\udce9"], None, source="list.txt")


def _videos(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def _read(
    root: Path, text: str, name: str = "list.txt", encoding: str = "utf-8", **options: object
) -> Manifest:
    (root / name).write_bytes(text.encode(encoding))
    return read_manifest(root / name, **options)  # type: ignore[arg-type]


def _shown(manifest: Manifest) -> dict[str, str]:
    return {Path(r.path).name: manifest.classes[r.labels[0]] for r in manifest.records}


def test_a_label_that_is_no_class_is_an_error_and_no_bad_video(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    manifest = _read(tmp_path, "a.mp4 0\nb.mp4 1\nc.mp4 5\n", classes=["run", "walk"])
    with pytest.raises(ValueError, match=r"label 5 is outside 0 \.\. 1: 1 row, the first in line 3"):
        manifest.require_known_labels()
    names = _read(
        tmp_path, "path,label\na.mp4,run\nb.mp4,walk\nc.mp4,wlak\n", "l.csv", classes=["run", "walk"]
    )
    with pytest.raises(ValueError, match=r"unknown class 'wlak' \(nearest: walk\)"):
        names.require_known_labels()
    with pytest.raises(ValueError, match="no usable videos: 1, 2, 3, 4"):
        _read(tmp_path, "a.mp4 0\nb.mp4 5\n").require_every_class("list.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, ends: str) -> None:
    _videos(tmp_path, "a b.mp4", "c.mp4")
    for name, text in (
        ("l.txt", "a b.mp4 red\nc.mp4 blue\n"),
        ("l.csv", "path,label\na b.mp4,red\nc.mp4,blue\n"),
        ("l.tsv", "filename\tlabel\na b.mp4\tred\nc.mp4\tblue\n"),
        ("s.csv", "path;label\na b.mp4;red\nc.mp4;blue\n"),
    ):
        read = _read(tmp_path, text.replace("\n", ends), name, encoding)
        assert _shown(read) == {"a b.mp4": "red", "c.mp4": "blue"}, name


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('path,label\na.mp4,red\nb.mp4,"blue\nc.mp4,red\n', 3),
        ('path,label\n"a.mp4,red\nb.mp4,blue\n', 2),
        ('path,label\na.mp4,"red\nb.mp4,blue\nc.mp4,"red\n', 2),
        ('path,label,text\na.mp4,red,x\nb.mp4,blue,"y\nc.mp4,red,z\n', 3),
    ],
)
def test_an_open_quote_is_named_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    with pytest.raises(ValueError, match=rf"l\.csv, line {line}: a quote that opens there"):
        _read(tmp_path, text, "l.csv")


def test_paths_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _videos(tmp_path, "x, y.mp4", "#1.mp4", "#s/z.mp4", "sub/w.mp4", "v.mp4", "home/h.mp4", "it's.mp4")
    lines = (
        '"x, y.mp4",red\n#1.mp4 red\n#s/z.mp4 red\n# v.mp4 blue\n'
        "sub\\w.mp4 blue\nD:\\data\\sub\\v.mp4 blue\n~/h.mp4 blue\nit's.mp4 red\n"
    )
    read = _read(tmp_path, lines)
    assert _shown(read) == {
        **dict.fromkeys(("x, y.mp4", "#1.mp4", "z.mp4", "it's.mp4"), "red"),
        **dict.fromkeys(("w.mp4", "v.mp4", "h.mp4"), "blue"),
    }
    lost = _read(tmp_path, f"v.mp4 0\n{'n' * 300}.mp4 1\nE:\\q.mp4 1\n", classes=2)
    assert [problem.reason.split(" (")[0] for problem in lost.problems] == [
        "cannot be looked for: File name too long",
        "no such file: a path of a Windows machine; say where the videos lie",
    ]
    assert all("list.txt, line" in problem.reason for problem in lost.problems)


def test_a_name_that_is_not_utf8_is_found(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.mp4").write_bytes(b"")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.mp4 0\n")
    assert [r.path for r in read_manifest(tmp_path / "list.txt").records] == [str(tmp_path / "caf\udce9.mp4")]


@pytest.mark.parametrize(
    "lines", ["a.mp4 20 0\nb.mp4 31 1\n", "a.mp4 1 20 0\nb.mp4 1 31 1\n", "a.mp4 0 1\nb.mp4 1 0\n"]
)
def test_columns_before_the_label_are_no_labels(tmp_path: Path, lines: str) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(
        ValueError, match=r"list\.txt: each line has . numbers after the path \(line 1: a\.mp4"
    ):
        _read(tmp_path, lines)
    read = _read(tmp_path, "a.mp4 20 0\nb.mp4 31 1\n", classes=["red", "blue"])  # 20 can be no class
    assert _shown(read) == {"a.mp4": "red", "b.mp4": "blue"}
    assert "the last is the label" in read.notes[0]
    assert _read(tmp_path, "a.mp4 0,1\nb.mp4 1,0\n").multi_label  # commas say it


@pytest.mark.parametrize("header", ["path label", "filename\tlabel", "video class", "vid y", "Name,Target"])
def test_a_header_is_no_video(tmp_path: Path, header: str) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4")
    separator = next(letter for letter in "\t, " if letter in header)
    lines = f"{header}\na.mp4{separator}0\nb.mp4{separator}10\n"
    read = _read(tmp_path, lines)
    assert read.num_classes == 11
    assert _shown(read) == {"a.mp4": "0", "b.mp4": "10"}
    assert not read.problems


def test_two_labels_of_one_video(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    for name, text in (
        ("l.txt", "a.mp4 red\nb.mp4 blue\na.mp4 blue\nc.mp4 red\nc.mp4 red\n"),
        ("l.csv", "path,label\na.mp4,red\nb.mp4,blue\n./a.mp4,blue\nc.mp4,red\nc.mp4,red\n"),
    ):
        read = _read(tmp_path, text, name)
        assert _shown(read) == {"b.mp4": "blue", "c.mp4": "red"}
        assert len(read) == 3
        assert [p.reason.split(" in ")[0] for p in read.problems] == ["has 2 labels"]
        assert "red (line" in read.problems[0].reason
    spans = (
        "path,label,start_seconds,end_seconds\na.mp4,red,0,1\na.mp4,blue,1,2\na.mp4,blue,0,1\nb.mp4,red,,\n"
    )
    assert [(r.start_seconds, r.labels) for r in _read(tmp_path, spans, "s.csv").records] == [
        (1, (0,)),
        (None, (1,)),
    ]


def test_seconds_of_a_plain_csv_are_exact_and_an_empty_end_is_the_end(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4")
    rows = "a.mp4,red,0,1\na.mp4,red,5,\nb.mp4,blue,,2\nb.mp4,blue,nan,2\nb.mp4,blue,5,2\nb.mp4,blue,-1,2\n"
    read = _read(tmp_path, f"path,label,start_seconds,end_seconds\n{rows}", "s.csv")
    assert [(r.start_seconds, r.end_seconds, r.exact_seconds) for r in read.records] == [
        (0, 1, True),
        (5, None, True),
        (None, 2, True),
    ]
    assert [p.reason.split(" (")[0] for p in read.problems] == [
        "start_seconds 'nan' is not a number of seconds",
        "the stretch from 5 to 2 s is empty",
        "start_seconds -1 is before the video begins",
    ]


def test_missing_numbers_of_a_csv_are_no_class(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    for gap in ("", "nan", "NaN"):
        read = _read(tmp_path, f"path,label\na.mp4,0.0\nb.mp4,1.0\nc.mp4,{gap}\n", "l.csv")
        assert (read.classes, len(read)) == (("0", "1"), 2)
        assert [p.reason.split(" (")[0] for p in read.problems] == ["no label"]


def test_folders_of_the_system_are_no_classes(tmp_path: Path) -> None:
    _videos(tmp_path, "run/a.mp4", "walk/b.mp4", "__MACOSX/run/a.mp4", ".Trash/c.mp4", "@eaDir/d.mp4")
    _videos(tmp_path, "walk/__MACOSX/e.mp4", "walk/.cache/f.mp4")
    read = read_manifest(tmp_path)
    assert _shown(read) == {"a.mp4": "run", "b.mp4": "walk"}
    assert read.notes == (f"{tmp_path}: hidden and system folders are no classes: .Trash, @eaDir, __MACOSX",)


def test_folders_called_by_numbers(tmp_path: Path) -> None:
    _videos(tmp_path / "train", *(f"{n:02d}/{n}.mp4" for n in range(1, 13)))
    classes = read_manifest(tmp_path / "train").classes
    _videos(tmp_path / "test", *(f"{n}/{n}.mp4" for n in range(1, 12)))
    assert _shown(read_manifest(tmp_path / "test", classes=classes)) == {
        f"{n}.mp4": f"{n:02d}" for n in range(1, 12)
    }


@pytest.mark.parametrize("suffix", ["h264", "F4V", "dv", "y4m", "rmvb", "mjpeg", "hevc", "ivf", "m1v", "nut"])
def test_suffixes_that_ffmpeg_reads(tmp_path: Path, suffix: str) -> None:
    _videos(tmp_path, f"run/a.{suffix}", "walk/b.mp4")
    assert len(read_manifest(tmp_path)) == 2
    assert _shown(_read(tmp_path, f"run/a.{suffix} x\nwalk/b.mp4 y\n"))[f"a.{suffix}"] == "x"


def test_files_of_unknown_kinds_are_counted(tmp_path: Path) -> None:
    _videos(tmp_path, "run/a.mp4", "run/b.xyz", "walk/b.mp4", "walk/c.xyz", "walk/c.txt", "walk/d.raw")
    assert read_manifest(tmp_path).notes == (
        f"{tmp_path}: left out, since their suffix is none of a video: 1 .raw, 2 .xyz",
    )


@pytest.mark.parametrize(
    ("text", "names", "first"),
    [
        ("1 Archery\n2 Biking\n3 Diving board\n", ("Archery", "Biking", "Diving board"), 1),
        ("0,walk\n2,jump\n1,run\n", ("walk", "run", "jump"), 0),
        ("2\tb\n1\ta\n", ("a", "b"), 1),
        ("walk\nriding a horse\n\n", ("walk", "riding a horse"), None),
        ("2 hands\n2 feet\n", ("2 hands", "2 feet"), None),
        ("1\n2\n3\n", ("1", "2", "3"), None),
        ('{"jump": 1, "\\"run\\"": 0}', ("run", "jump"), 0),
        ('["run", "jump"]', ("run", "jump"), None),
    ],
)
def test_class_files(tmp_path: Path, text: str, names: tuple[str, ...], first: int | None) -> None:
    (tmp_path / "c.txt").write_text(text)
    read = read_class_file(tmp_path / "c.txt")
    assert (read.names, read.first) == (names, first)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3 a\n5 b\n", "numbered 3, 5; expected 0, 1, 2"),
        ("a\nb\na\n", "class names occur twice: a"),
        ("{broken", "begins like JSON"),
        ('{"a": 0.5}', "expected a JSON list of names"),
    ],
)
def test_class_files_that_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"c\.txt.*{reason}"):
        read_class_file(tmp_path / "c.txt")


def test_a_list_without_labels_takes_them_from_folders(tmp_path: Path) -> None:
    _videos(tmp_path, "Archery/a.mp4", "Biking/b.mp4")
    read = _read(tmp_path, "Archery/a.mp4\nBiking/b.mp4\n", classes=["Archery", "Biking"])
    assert _shown(read) == {"a.mp4": "Archery", "b.mp4": "Biking"}
    assert "the folder of each video is read as its class" in read.notes[0]


def test_an_unreadable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    _videos(tmp_path, "run/a.mp4", "run/closed/c.mp4", "walk/b.mp4")
    closed = str(tmp_path / "run" / "closed")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, whom no mode keeps out
    read = read_manifest(tmp_path)
    assert _shown(read) == {"a.mp4": "run", "b.mp4": "walk"}
    assert [str(p) for p in read.problems] == [f"{closed}: cannot be read: Permission denied"]


def test_groups_of_a_csv(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4")
    table = "path,label,Pair\na.mp4,x,7\nb.mp4,y,7\n"
    assert [r.group for r in _read(tmp_path, table, "l.csv", group_by="Pair").records] == ["7", "7"]
    assert [r.group for r in _read(tmp_path, table, "l.csv").records] == [None, None]
    with pytest.raises(ValueError, match="has no column scene"):
        _read(tmp_path, table, "l.csv", group_by="scene")
    with pytest.raises(ValueError, match="names a column of a plain csv"):
        _read(tmp_path, "a.mp4 x\nb.mp4 y\n", group_by="Pair")
