"""`nonlocal scan`: every defect found, named, and no crash of a decoder stops it."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest

from nonlocal_nn.data.isolated import run_isolated
from nonlocal_nn.data.scan import Finding, ScanConfig, findings_of, scan, scan_command
from nonlocal_nn.data.video_index import look
from tests.data.made_videos import write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, broken: dict[str, tuple[Path, str]]) -> Path:
    """Three good videos, one short, three odd, all broken ones, an empty class folder, a text."""
    root = tmp_path_factory.mktemp("scan")
    for number in range(3):
        write_video(root / "good" / f"{number}.mp4", 70)
    write_video(root / "short" / "one.mp4", 1)
    write_video(root / "odd" / "turned.mp4", 70, turned=90)
    write_video(root / "odd" / "size.mp4", 70, size=(63, 47), pix_fmt="yuv444p")
    times = [40 * n + (500 if n > 50 else 0) for n in range(70)]
    write_video(root / "odd" / "vfr.mkv", 70, times_ms=times)
    (root / "bad").mkdir()
    for kind, (path, _) in broken.items():
        if path.is_file():
            (root / "bad" / f"{kind}{path.suffix}").write_bytes(path.read_bytes())
    (root / "empty class").mkdir()
    (root / "notes.txt").write_text("not a video")
    return root


def test_every_defect_is_found(folder: Path, broken: dict[str, tuple[Path, str]]) -> None:
    report = scan(folder, workers=2)
    bad = {kind: reason for kind, (path, reason) in broken.items() if path.is_file()}
    assert report.videos == 7 + len(bad)
    found = {Path(finding.path).stem: finding.reason for finding in report.of("broken")}
    assert found.pop("empty class") == "this folder holds no videos"
    assert found.keys() == bad.keys()
    for kind, reason in bad.items():
        assert reason in found[kind]
    assert [(Path(f.path).name, f.reason) for f in report.of("short")] == [
        ("one.mp4", "1 frame, fewer than 64: its clips wrap around")
    ]
    assert [(Path(f.path).name, f.reason) for f in report.of("odd")] == [
        ("size.mp4", "odd size 63x47"),
        ("turned.mp4", "rotated by 90 degrees (shown upright)"),
        ("vfr.mkv", "variable frame rate"),
    ]
    assert all(finding.info is not None and finding.info.frames == 70 for finding in report.of("odd"))
    assert report.ignored == ((".txt", 1),)
    order = [("broken", "short", "odd").index(finding.severity) for finding in report.findings]
    assert order == sorted(order)


def test_a_list_is_scanned_with_its_absent_files(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_text("good/0.mp4 0\nabsent.mp4 1\nshort/one.mp4 1\ngood/0.mp4 0\n")
    report = scan(source, root=folder, workers=1, min_frames=1)
    assert report.videos == 2  # a file listed twice is decoded once
    assert [(f.severity, f.path) for f in report.findings] == [("broken", "absent.mp4")]
    source.write_text("absent.mp4 1\n")
    assert len(scan(source, workers=1).of("broken")) == 1


def test_a_single_file_is_scanned_whatever_its_name(folder: Path, tmp_path: Path) -> None:
    nameless = tmp_path / "video"
    nameless.write_bytes((folder / "good" / "0.mp4").read_bytes())
    assert scan(nameless, workers=1).findings == ()


def test_damage_at_the_end_is_found(folder: Path) -> None:
    (finding,) = findings_of(look(str(folder / "bad" / "damaged.mp4")), 1)
    assert finding.severity == "broken"
    assert finding.reason.startswith("decoding fails after frame ")


def _die_of_some(path: str) -> str:
    if "deadly" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    return f"{path} read"


def test_a_decoder_that_crashes_takes_down_one_file_only() -> None:
    paths = [f"{n} deadly" if n in (2, 7) else str(n) for n in range(12)]
    results = list(run_isolated(_die_of_some, paths, workers=2, crashed=lambda path: f"{path} crashed"))
    assert sorted(results) == sorted(f"{path} {'crashed' if 'deadly' in path else 'read'}" for path in paths)


def test_the_command_prints_writes_and_tells_by_its_exit_code(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "findings.csv"
    assert scan_command(ScanConfig(source=str(folder), workers=2, out=str(out))) == 1
    printed = capsys.readouterr().out.splitlines()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(printed) - 1
    assert rows[0]["severity"] == "broken"
    assert rows[-1]["frames"] == "70"
    assert printed[-1].startswith(
        f"{len(rows) + 2} videos: 10 broken, 1 short, 3 odd; 1 other files ignored (.txt)"
    )
    assert all(len(line.split("\t")) == 3 for line in printed[:-1])

    out = tmp_path / "findings.json"
    good = ScanConfig(source=str(folder / "good"), workers=1, json=True, out=str(out))
    assert scan_command(good) == 0
    printed_json = json.loads(capsys.readouterr().out)
    assert printed_json == json.loads(out.read_text())
    assert (printed_json["videos"], printed_json["broken"], printed_json["findings"]) == (3, 0, [])


def test_impossible_requests_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no videos in .*: it holds nothing"):
        scan(folder / "empty class")
    with pytest.raises(ValueError, match="must be 1 or more, not 64 and 0"):
        scan(folder, workers=0)
    with pytest.raises(ValueError, match=r"out must end in \.csv or \.json"):
        scan_command(ScanConfig(source=str(folder), out="findings.txt"))


def test_real_odd_files_are_sorted_out(shared_data: Path) -> None:
    report = scan(shared_data / "video_odd", workers=2)
    found = {(Path(f.path).name, f.severity) for f in report.findings}
    assert found == {
        ("corrupted.mp4", "broken"),
        ("empty_258_bytes.mp4", "broken"),
        ("hevc_128x128.mp4", "short"),
        ("odd_160x150_mpeg4.mp4", "short"),
        ("rotation_0.mov", "short"),
        ("rotation_90.mov", "short"),
        ("short_13_frames_40x30.mp4", "short"),
        ("nasa_multistream.mp4", "odd"),
        ("rotation_90.mov", "odd"),
    }
    (finding,) = scan(shared_data / "video_odd" / "audio_only.wav", workers=1).findings
    assert finding == Finding(finding.path, "broken", "no video stream: the file holds only audio")
