"""Folders, lists and published csv files: what is read, what is left out, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from nonlocal_nn.data.annotations import CHARADES_CLASSES
from nonlocal_nn.data.manifest import read_classes, read_manifest
from nonlocal_nn.data.records import Manifest, find_videos


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _rows(manifest: Manifest, root: Path) -> list[tuple[str, tuple[int, ...]]]:
    return [(str(Path(record.path).relative_to(root)), record.labels) for record in manifest.records]


# Class folders


def test_class_folders(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "walk/b.MP4",
        "walk/day 2/a.webm",
        "run/c.avi",
        "run/notes.txt",
        "run/.hidden.mp4",
        "loose.mp4",
    )
    (tmp_path / "jump").mkdir()
    manifest = read_manifest(tmp_path)
    assert manifest.classes == ("jump", "run", "walk")
    assert _rows(manifest, tmp_path) == [
        ("run/c.avi", (1,)),
        ("walk/b.MP4", (2,)),
        ("walk/day 2/a.webm", (2,)),
    ]
    assert manifest.counts == (0, 1, 2)
    assert [(Path(p.path).name, p.reason) for p in manifest.problems] == [
        ("jump", "this class folder holds no videos"),
        ("loose.mp4", "lies beside the class folders, not in one"),
    ]


def test_given_classes_fix_the_numbers(tmp_path: Path) -> None:
    _touch(tmp_path, "walk/b.mp4", "swim/a.mp4")
    manifest = read_manifest(tmp_path, classes=("run", "walk", "climb"))
    assert _rows(manifest, tmp_path) == [("walk/b.mp4", (1,))]
    assert [(Path(p.path).name, p.reason) for p in manifest.problems] == [
        ("swim", "this folder is none of the classes")
    ]


def test_a_link_back_up_does_not_loop(tmp_path: Path) -> None:
    _touch(tmp_path, "run/a.mp4")
    (tmp_path / "run" / "up").symlink_to(tmp_path, target_is_directory=True)
    _touch(tmp_path.parent / "elsewhere", "x.mp4")
    (tmp_path / "linked").symlink_to(tmp_path.parent / "elsewhere", target_is_directory=True)
    assert [path.name for path in find_videos(tmp_path)] == ["x.mp4", "a.mp4"]


# Lists


def test_list_of_paths_and_numbers(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "my videos/b 2.mp4", "c.avi", "d.mp4")
    source = _write(
        tmp_path / "train.txt",
        "\ufeffa.mp4 0\n\n# a comment\nmy videos/b 2.mp4 3\nc.avi,1\nd.mp4\t2\r\n"
        "absent.mp4 1\na.mp4 -1\na.mp4\na.mp4 zero\nmy videos 1\n",
    )
    manifest = read_manifest(source, classes=4)
    assert _rows(manifest, tmp_path) == [
        ("a.mp4", (0,)),
        ("my videos/b 2.mp4", (3,)),
        ("c.avi", (1,)),
        ("d.mp4", (2,)),
    ]
    assert manifest.classes == ("0", "1", "2", "3")
    assert not manifest.multi_label
    reasons = [f"{problem.path}: {problem.reason}" for problem in manifest.problems]
    assert reasons == [
        f"{source}:9: no label in 'a.mp4': expected `path label`",
        f"absent.mp4: no such file ({source}, line 7)",
        f"a.mp4: label -1 is outside 0 .. 3 ({source}, line 8)",
        f"a.mp4: unknown class 'zero' ({source}, line 10)",
        f"my videos: is a folder, not a video file ({source}, line 11)",
    ]


def test_list_of_class_names(tmp_path: Path) -> None:
    _touch(tmp_path, "v/a.mp4", "v/b.mp4")
    source = _write(tmp_path / "list.txt", "a.mp4 riding a horse\nb.mp4 archery\n")
    manifest = read_manifest(source, root=tmp_path / "v")
    assert manifest.classes == ("archery", "riding a horse")
    assert _rows(manifest, tmp_path / "v") == [("a.mp4", (1,)), ("b.mp4", (0,))]
    # the same list against the classes of another split
    assert read_manifest(source, root=tmp_path / "v", classes=["riding a horse", "archery"]).records[
        0
    ].labels == (0,)


def test_list_of_several_labels(tmp_path: Path) -> None:
    _touch(tmp_path, "test.mp4", "b.mp4")
    source = _write(tmp_path / "list.txt", "test.mp4 0 3\nb.mp4 4,2,2\ntest.mp4 1\ntest.mp4 1 9\n")
    manifest = read_manifest(source, classes=5)
    assert manifest.multi_label
    assert [labels for _, labels in _rows(manifest, tmp_path)] == [(0, 3), (2, 4), (1,)]
    assert [problem.reason for problem in manifest.problems] == [
        f"label 9 is outside 0 .. 4 ({source}, line 4)"
    ]


def test_multi_label_can_be_said(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4")
    one = _write(tmp_path / "one.txt", "a.mp4 1\n")
    assert read_manifest(one, multi_label=True).multi_label
    several = _write(tmp_path / "several.txt", "a.mp4 0 1\n")
    with pytest.raises(ValueError, match=r"a\.mp4 has 2 labels, but multi_label is False"):
        read_manifest(several, multi_label=False)


def test_paths_of_another_machine_are_found_under_root(tmp_path: Path) -> None:
    _touch(tmp_path, "abseiling/x.mp4", "y.mp4")
    source = _write(tmp_path / "list.txt", "/scratch/k/val/abseiling/x.mp4 0\n/scratch/k/val/zumba/y.mp4 1\n")
    assert _rows(read_manifest(source), tmp_path) == [("abseiling/x.mp4", (0,)), ("y.mp4", (1,))]


def test_real_list_formats(tmp_path: Path, shared_data: Path) -> None:
    formats = shared_data / "annotations" / "mmaction2_formats"
    _touch(tmp_path, "test.mp4")
    assert [r.labels for r in read_manifest(formats / "video_test_list.txt", root=tmp_path).records] == [
        (0,),
        (0,),
    ]
    several = read_manifest(formats / "video_test_list_multi_label.txt", root=tmp_path)
    assert [r.labels for r in several.records] == [(0, 3), (0, 2, 4)]
    assert several.num_classes == 5
    kinetics = shared_data / "annotations" / "kinetics" / "nonlocal_vallist_sample400.txt"
    _touch(tmp_path, "abseiling/0wR5jVB-WPk.mp4", "applauding/-PgjjBi_gqM.mp4")
    manifest = read_manifest(kinetics, root=tmp_path, classes=400)
    assert _rows(manifest, tmp_path) == [
        ("abseiling/0wR5jVB-WPk.mp4", (0,)),
        ("applauding/-PgjjBi_gqM.mp4", (3,)),
    ]
    assert len(manifest.problems) == 398


# csv files


def test_kinetics_csv(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    _touch(videos, "riding mule/aaa_000010_000020.mp4", "bbb.webm", "zumba/ccc.mp4", "riding_mule/ccc.mp4")
    source = _write(
        tmp_path / "train.csv",
        "label,youtube_id,time_start,time_end,split\n"
        "riding mule,aaa,10,20,train\nzumba,bbb,3,13,train\nriding mule,ccc,0,10,val\n"
        "zumba,gone,0,10,train\nzumba,bbb,13,3,train\nzumba,bbb\nzumba,bbb,x,3,train\n",
    )
    manifest = read_manifest(source, root=videos)
    assert manifest.classes == ("riding mule", "zumba")
    assert _rows(manifest, videos) == [
        ("riding mule/aaa_000010_000020.mp4", (0,)),
        ("bbb.webm", (1,)),
        ("riding_mule/ccc.mp4", (0,)),
    ]
    # only a file that may be uncut keeps its stretch
    assert [(r.start_seconds, r.end_seconds) for r in manifest.records] == [(None, None), (3, 13), (0, 10)]
    assert [problem.reason for problem in manifest.problems] == [
        f"the stretch from 13 to 3 s is empty ({source}, line 6)",
        "the line has more or fewer cells than the header",
        f"time_start 'x' is not a number of seconds ({source}, line 8)",
        f"no video named gone_000000_000010 or gone under {videos} ({source}, line 5)",
    ]
    assert len(read_manifest(source, root=videos, where="split == val")) == 1


def test_charades_csv(tmp_path: Path) -> None:
    _touch(tmp_path, "46GP8.mp4", "N11GT.mp4", "0KZ7B.mp4", "BAD00.mp4")
    source = _write(
        tmp_path / "Charades_v1_train.csv",
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
        '46GP8,X1,Kitchen,6,7,Yes,"A person, cooking.",food;stove,,'
        "c092 11.90 21.20;c147 0.00 12.60;c092 1 2,24.83\n"
        "N11GT,X1,Hall,5,7,No,text,bag,,,18.33\n"
        "GONE0,X1,Hall,5,7,No,text,bag,,c001 0.00 1.00,18.33\n"
        "0KZ7B,X1,Hall,5,7,No,text,bag,,c157 0.00 1.00,18.33\n"
        "BAD00,X1,Hall,5,7,No,text,bag,,92 0.00 1.00,18.33\n",
    )
    manifest = read_manifest(source)
    assert manifest.classes == CHARADES_CLASSES
    assert manifest.num_classes == 157
    assert manifest.multi_label
    assert _rows(manifest, tmp_path) == [("46GP8.mp4", (92, 147)), ("N11GT.mp4", ())]
    assert [problem.reason.split(" (")[0] for problem in manifest.problems] == [
        f"no video named GONE0 under {tmp_path}",
        "label 157 is outside 0 .. 156",
        "action '92 0.00 1.00' is not of the form `c092 11.90 21.20`",
    ]


def test_plain_csv_split_by_where_keeps_one_numbering(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    source = _write(
        tmp_path / "labels.csv",
        "path,label,sequence,start_seconds,end_seconds\na.mp4,walk,1,,\nb.mp4,run,2,1.5,4\nc.mp4,jump,11,,\n",
    )
    train = read_manifest(source, where="sequence in 1,2")
    test = read_manifest(source, where="sequence not in 1,2")
    assert train.classes == test.classes == ("jump", "run", "walk")
    assert _rows(train, tmp_path) == [("a.mp4", (2,)), ("b.mp4", (1,))]
    assert (train.records[1].start_seconds, train.records[1].end_seconds) == (1.5, 4)
    assert _rows(test, tmp_path) == [("c.mp4", (0,))]


def test_plain_csv_of_numbers_and_of_several_labels(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "b.mp4")
    source = _write(tmp_path / "n.csv", "path,label\na.mp4,10\nb.mp4,2\na.mp4,-1\n")
    manifest = read_manifest(source)
    assert manifest.num_classes == 11  # by number, not by order of the digits
    assert _rows(manifest, tmp_path) == [("a.mp4", (10,)), ("b.mp4", (2,))]
    several = read_manifest(_write(tmp_path / "m.csv", "path,label\na.mp4,sit;stand\nb.mp4,\n"))
    assert several.multi_label
    assert several.classes == ("sit", "stand")
    assert _rows(several, tmp_path) == [("a.mp4", (0, 1)), ("b.mp4", ())]


def test_real_csv_splits_by_sequence(shared_data: Path) -> None:
    source = shared_data / "video_labelled" / "ut_interaction" / "labels.csv"
    whole = read_manifest(source)
    train = read_manifest(source, where="sequence not in 1, 2, 11, 12")
    test = read_manifest(source, where="sequence in 1, 2, 11, 12")
    assert whole.classes == train.classes == ("handshake", "hug", "kick", "point", "punch", "push")
    assert (len(whole), len(whole.problems)) == (83, 0)
    assert {*train.records, *test.records} == {*whole.records}
    assert not {*train.records} & {*test.records}


# What is refused


def test_nothing_usable_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no class folders \(expected root/<class>/<video>\)"):
        read_manifest(tmp_path / "empty")
    source = _write(tmp_path / "list.txt", "absent.mp4 0\n")
    with pytest.raises(
        ValueError, match=r"no usable video in .*list\.txt \(read as 'list'\): absent\.mp4: no such"
    ):
        read_manifest(source)
    assert len(read_manifest(source, allow_empty=True).problems) == 1
    with pytest.raises(ValueError, match="is empty: expected lines"):
        read_manifest(_write(tmp_path / "nothing.txt", "\n"))


def test_requests_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "run/a.mp4")
    table = _write(tmp_path / "t.csv", "path,label\nrun/a.mp4,run\n")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a folder, which kind='list' is not"):
        read_manifest(tmp_path, kind="list")
    with pytest.raises(ValueError, match="is a file, which kind='folders' is not"):
        read_manifest(table, kind="folders")
    with pytest.raises(ValueError, match="kind must be one of"):
        read_manifest(table, kind="table")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="where='a == 1' chooses rows of a csv"):
        read_manifest(tmp_path, where="a == 1")
    with pytest.raises(ValueError, match="no column 'split'"):
        read_manifest(table, where="split == train")
    with pytest.raises(ValueError, match="has no column youtube_id"):
        read_manifest(table, kind="kinetics_csv")
    with pytest.raises(ValueError, match="class names occur twice: run"):
        read_manifest(table, classes=["run", "run"])


def test_class_lists(tmp_path: Path, shared_data: Path) -> None:
    assert read_classes(_write(tmp_path / "c.txt", "\ufeffwalk\nriding a horse\n\n")) == (
        "walk",
        "riding a horse",
    )
    with pytest.raises(ValueError, match="one class name a line"):
        read_classes(_write(tmp_path / "gap.txt", "walk\n\nrun\n"))
    annotations = shared_data / "annotations"
    assert len(read_classes(annotations / "mmaction2_kinetics_label_map_k400.txt")) == 400
    assert len(read_classes(annotations / "mmaction2_hmdb51_label_map.txt")) == 51
