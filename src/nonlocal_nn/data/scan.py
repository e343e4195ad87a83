"""`nonlocal scan`: find the broken, short and odd videos before a training run does.

Every file is opened and decoded to its end, in several processes. Nothing heavy is imported before that.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from nonlocal_nn._cores import available_cores
from nonlocal_nn._files import open_text, write_whole
from nonlocal_nn._progress import counted
from nonlocal_nn._ray import RayChoice, on_ray
from nonlocal_nn.data.isolated import run_isolated
from nonlocal_nn.data.records import ManifestKind

if TYPE_CHECKING:
    from nonlocal_nn.data.decode import VideoInfo
    from nonlocal_nn.data.video_index import Looked

__all__ = ["Finding", "ScanConfig", "ScanReport", "findings_of", "scan", "scan_command"]

Severity = Literal["broken", "short", "odd"]
# Pixels that differ from squares by less are as good as square (PAL and NTSC: 1.09, 0.91).
_SQUARE = 1.1
_KEEP_SECONDS = 60.0
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


class Finding(NamedTuple):
    """Something to know about a file.

    Attributes:
        path: the file, or the folder without videos.
        severity: "broken": training and testing skip it. "short": its clips wrap around. "odd": it works, but
            check that it shows what you think.
        reason: why, in one line.
        info: what is known of the video; None where it cannot be opened.
    """

    path: str
    severity: Severity
    reason: str
    info: VideoInfo | None = None


@dataclass(frozen=True)
class ScanReport:
    """What a scan found.

    Attributes:
        videos: the number of files scanned.
        looked_at: how many of them were decoded; the others are in the index as they are.
        findings: broken ones first, then short, then odd; a file may be both short and odd.
        ignored: other files in the folder, by suffix.
    """

    videos: int
    findings: tuple[Finding, ...]
    ignored: tuple[tuple[str, int], ...] = ()
    looked_at: int = 0

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """List what is broken, short or odd among videos, or in a COCO json and its images, before training.

    Every video is decoded to its end. Broken: training and testing would skip it. Short: shorter than a clip,
    so that its clips repeat frames. Odd: usable, but rotated, of variable frame rate, of odd size, with
    several video streams, with a wrong header or with damaged frames. Exit code 0 if nothing is broken, 1 if
    something is, 2 if nothing was scanned.

    Of a COCO json every annotation is checked and every image decoded; then categories, keypoints and sizes
    are counted, and which boxes a detector's anchors can reach.
    """

    source: str
    """A folder (searched at any depth), one video, a list or csv of videos, or a COCO json."""
    kind: ManifestKind = "auto"
    """Form of a list: auto looks at its first line."""
    root: str | None = None
    """Folder that the paths in a list or csv start from; none: the folder the list lies in."""
    where: str | None = None
    """Rows of a csv to scan, such as "set==1 and sequence in 1,2"; none: all."""
    images: str | None = None
    """Folder of the images of a COCO json, at any depth; none: the json's, or the one above "annotations"."""
    detector: str = "faster_rcnn_r50"
    """Detector whose anchors are tried on the boxes of a COCO json; `nonlocal models` lists them."""
    min_frames: int = 64
    """Call a video short that has fewer frames: a clip of 32 frames, every second one, takes 64."""
    index: str | None = None
    """Keep what is found of every video in this file (.npz): scanned again, only new and changed videos are
    looked at, and train and test start faster with it (--data.index, --index)."""
    ray: RayChoice | None = None
    """Scan on a Ray cluster: auto, the one that runs, or local, one of its own on this machine."""
    workers: int | None = None
    """Processes that decode; none: one for each core, of the whole cluster with --ray."""
    out: str | None = None
    """Write the findings to this file as well: .csv or .json."""
    json: bool = False
    """Print JSON for scripts instead of tables."""
    progress: bool = True
    """Show a progress bar."""


def scan(
    source: str | Path,
    *,
    kind: ManifestKind = "auto",
    root: str | Path | None = None,
    where: str | None = None,
    min_frames: int = ScanConfig.min_frames,
    index: str | Path | None = None,
    ray: RayChoice | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> ScanReport:
    """Decode every video of a folder, a list or a csv, or a single one, and report what is wrong.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.mp4").write_text("no video at all")
    ...     report = scan(folder, workers=1)
    >>> [(finding.severity, finding.reason.split(":")[0]) for finding in report.findings]
    [('broken', 'not a video')]

    A file on which a process of the scan dies is reported as broken, and the scan goes on. Processes are
    started afresh ("spawn"): a script that calls this does so under `if __name__ == "__main__":`.

    Args:
        source: what to scan; `kind`, `root` and `where` as in `manifest.read_manifest`.
        kind: form of a list.
        root: folder that its paths start from.
        where: rows of a csv.
        min_frames: videos with fewer frames are short.
        index: file that keeps what is found; videos that it knows as they are now are not looked at again.
            It is written about once a minute, so that a scan that is cut off goes on from there.
        ray: a Ray cluster to scan on; None for processes of this machine.
        workers: processes; None for one a core.
        progress: show a bar on stderr, if that is a terminal.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: no video in it, a number below 1, an index that is none, or no Ray cluster.
        ModuleNotFoundError: Ray is asked for and not installed.
    """
    if min_frames < 1 or (workers is not None and workers < 1):
        raise ValueError(f"min_frames and workers must be 1 or more, not {min_frames} and {workers}")
    paths, findings, ignored = _gather(Path(source), kind, root, where)
    if not paths and not findings:
        others = ", ".join(f"{count} {suffix}" for suffix, count in ignored) or "nothing"
        raise ValueError(f"no videos in {source}: it holds {others}")
    kept = _Kept(index)
    again, known = kept.split(paths)
    looked = itertools.chain(known, kept.keep(_look_at(again, workers, ray, progress)))
    for one in looked:
        findings += findings_of(one, min_frames)
    order = {severity: rank for rank, severity in enumerate(SEVERITIES)}
    findings.sort(key=lambda finding: (order[finding.severity], finding.path))
    return ScanReport(len(paths), tuple(findings), ignored, len(again))


def findings_of(looked: Looked, min_frames: int) -> list[Finding]:
    """What is wrong or unusual in a video that was looked at."""
    path, check = looked.path, looked.check
    if check is None:
        return [Finding(path, "broken", looked.reason)]
    info = check.info
    findings = []
    if info.frames < min_frames:
        number = "1 frame" if info.frames == 1 else f"{info.frames} frames"
        findings.append(
            Finding(path, "short", f"{number}, fewer than {min_frames}: its clips wrap around", info)
        )
    odd = []
    if info.rotation_degrees:
        odd.append(f"rotated by {info.rotation_degrees} degrees (shown upright)")
    if info.mirrored:
        odd.append("mirrored left to right by its header (shown so)")
    if not 1 / _SQUARE <= info.pixel_aspect <= _SQUARE:
        shown = round(info.width * info.pixel_aspect)
        odd.append(
            f"pixels {info.pixel_aspect:.3g} times as wide as high: players show {shown}x{info.height}, "
            f"networks see {info.width}x{info.height}"
        )
    if info.variable_frame_rate:
        odd.append("variable frame rate")
    if info.video_streams > 1:
        odd.append(f"{info.video_streams} video streams ({info.width}x{info.height} is used)")
    if info.width % 2 or info.height % 2:
        odd.append(f"odd size {info.width}x{info.height}")
    if check.sizes > 1:
        odd.append(f"{check.sizes} frame sizes (the first is used)")
    if info.header_frames not in (0, info.frames):
        odd.append(f"the header says {info.header_frames} frames, there are {info.frames}")
    if check.decoded < info.frames:
        odd.append(
            f"{info.frames - check.decoded} of {info.frames} frames do not decode (neighbours are shown)"
        )
    if check.damaged:
        odd.append(f"{check.damaged} damaged frames")
    if odd:
        findings.append(Finding(path, "odd", "; ".join(odd), info))
    return findings


def _gather(
    source: Path,
    kind: ManifestKind,
    root: str | Path | None,
    where: str | None,
) -> tuple[list[str], list[Finding], tuple[tuple[str, int], ...]]:
    """Return the files to decode, what is wrong without decoding, and how many other files there are."""
    from nonlocal_nn.data.manifest import read_manifest
    from nonlocal_nn.data.records import is_system_folder, look_through

    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    if source.is_dir():
        inside = look_through(source)
        findings = [Finding(problem.path, "broken", problem.reason) for problem in inside.problems]
        if inside.paths:
            unreadable = {Path(problem.path) for problem in inside.problems}
            known = unreadable | {parent for video in inside.videos for parent in video.parents}
            findings += [
                Finding(str(folder), "broken", "this folder holds no videos")
                for folder in sorted(source.iterdir())
                if folder not in known and not is_system_folder(folder.name) and folder.is_dir()
            ]
        return list(inside.paths), findings, inside.others
    if kind == "auto" and not _is_text(source):
        return [str(source)], [], ()
    manifest = read_manifest(source, kind=kind, root=root, where=where, allow_empty=True)
    sys.stderr.writelines(f"{note}\n" for note in manifest.notes)
    paths = list(dict.fromkeys(record.path for record in manifest.records))
    return paths, [Finding(problem.path, "broken", problem.reason) for problem in manifest.problems], ()


def _is_text(path: Path) -> bool:
    """Tell a list from a video by its suffix, or, where that says nothing, by its bytes."""
    from nonlocal_nn._text import first_bytes_are_text
    from nonlocal_nn.data.records import VIDEO_SUFFIXES

    if path.suffix.lower() in VIDEO_SUFFIXES:
        return False
    if path.suffix.lower() in {".txt", ".csv", ".tsv", ".list", ".lst"}:
        return True
    return first_bytes_are_text(path)


def _look_at(
    paths: Sequence[str], workers: int | None, ray: RayChoice | None, progress: bool
) -> Iterator[Looked]:
    from nonlocal_nn.data.video_index import look

    if ray is None:
        found = run_isolated(look, paths, workers=workers or available_cores(), crashed=_crashed)
    else:
        found = on_ray(
            ray,
            partial(_ByNumber, paths),
            range(len(paths)),
            died=lambda number: _crashed(paths[number]),
            called=lambda number: paths[number],
            workers=workers,
        )
    return counted(found, len(paths), "scanning", shown=progress)


class _ByNumber:
    """A look at each path by its number."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __call__(self, number: int, /) -> Looked:
        from nonlocal_nn.data.video_index import look

        return look(self._paths[number])


def _crashed(path: str) -> Looked:
    from nonlocal_nn.data.video_index import Looked

    # Without a stamp: no index keeps it, since the machine may have been short of memory.
    return Looked(path, None, "the decoder crashed on it, and took its process along")


class _Kept:
    """The index of a scan, or none: what it holds already, and what is found now."""

    def __init__(self, file: str | Path | None) -> None:
        from nonlocal_nn.data.video_index import VideoIndex

        self._file = None if file is None else Path(file)
        held = self._file is not None and self._file.exists()
        self._index = VideoIndex.read(self._file) if held and self._file is not None else VideoIndex.of([])

    def split(self, paths: Sequence[str]) -> tuple[list[str], Iterator[Looked]]:
        """The videos to look at, and those that the index knows as they are; the others it forgets.

        Videos of the index that are not among the paths stay in it, but for those that are gone.
        """
        from nonlocal_nn.data.video_index import absolute, stamp

        rows = {name: row for row, name in enumerate(self._index.names)}
        again, known = [], []
        for path in paths:
            row = rows.pop(absolute(path), None)
            if row is not None and stamp(path) == self._index.stamp(row):
                known.append((row, path))
            else:
                again.append(path)
        others = [row for name, row in rows.items() if stamp(name) is not None]
        index = self._index
        self._index = index.take([*(row for row, _ in known), *others])
        return again, (index[row]._replace(path=path) for row, path in known)

    def keep(self, found: Iterable[Looked]) -> Iterator[Looked]:
        """Pass on what is found, and write it into the index: once a minute, and whatever ends the scan."""
        waiting: list[Looked] = []
        written = time.monotonic()
        try:
            for looked in found:
                waiting.append(looked)
                yield looked
                if time.monotonic() - written > _KEEP_SECONDS:
                    self._write(waiting)
                    waiting, written = [], time.monotonic()
        finally:
            self._write(waiting)

    def _write(self, found: list[Looked]) -> None:
        from nonlocal_nn.data.video_index import VideoIndex

        if self._file is not None:
            self._index = self._index.then(VideoIndex.of(found))
            self._index.write(self._file)


def scan_command(config: ScanConfig) -> int:
    """Scan, print, write; return 0 if nothing is broken, 1 if something is.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: no video in it, a number below 1, an index that is none, or an output that is neither
            .csv nor .json.
    """
    if config.index is not None and Path(config.index).suffix != ".npz":
        raise ValueError(f"index must end in .npz, not {config.index!r}")
    if config.out is not None and Path(config.out).suffix not in {".csv", ".json"}:
        raise ValueError(f"out must end in .csv or .json, not {config.out!r}")
    report = scan(
        config.source,
        kind=config.kind,
        root=config.root,
        where=config.where,
        min_frames=config.min_frames,
        index=config.index,
        ray=config.ray,
        workers=config.workers,
        progress=config.progress,
    )
    if config.json:
        json.dump(_as_json(report), sys.stdout, indent=2)
        print()
    else:
        _print(report)
        if config.index is not None:
            kept = report.videos - report.looked_at
            print(f"index: {config.index} ({report.looked_at} looked at now, {kept} known already)")
    if config.out is not None:
        out = Path(config.out)
        write_whole(out, lambda partial: _write(report, partial, as_json=out.suffix == ".json"))
    return 1 if report.of("broken") else 0


def _print(report: ScanReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    titles = {
        "broken": "broken: skipped in training and testing",
        "short": "short: clips wrap around",
        "odd": "odd: usable",
    }
    for severity in SEVERITIES:
        findings = report.of(severity)
        if not findings:
            continue
        if console.is_terminal:
            table = Table(title=f"{titles[severity]} ({len(findings)})", title_justify="left")
            table.add_column("video", overflow="fold")
            table.add_column("reason", overflow="fold")
            for finding in findings:
                table.add_row(escape(finding.path), escape(finding.reason))
            console.print(table)
        else:  # one line each, for grep
            for finding in findings:
                print(f"{severity}\t{finding.path}\t{finding.reason}")
    counts = ", ".join(f"{len(report.of(severity))} {severity}" for severity in SEVERITIES)
    ignored = sum(count for _, count in report.ignored)
    kinds = ", ".join(suffix for suffix, _ in report.ignored)
    print(
        f"{report.videos} videos: {counts}"
        + (f"; {ignored} other files ignored ({kinds})" if ignored else "")
    )


def _as_json(report: ScanReport) -> dict[str, object]:
    return {
        "videos": report.videos,
        "looked_at": report.looked_at,
        **{severity: len(report.of(severity)) for severity in SEVERITIES},
        "ignored": dict(report.ignored),
        "findings": [
            {
                "path": finding.path,
                "severity": finding.severity,
                "reason": finding.reason,
                "info": None if finding.info is None else asdict(finding.info),
            }
            for finding in report.findings
        ],
    }


def _write(report: ScanReport, path: Path, *, as_json: bool) -> None:
    with open_text(path) as file:
        if as_json:
            json.dump(_as_json(report), file, indent=2)
        else:
            writer = csv.writer(file)
            writer.writerow(["path", "severity", "reason", "frames", "width", "height", "fps", "codec"])
            for finding in report.findings:
                info = finding.info
                known = (info.frames, info.width, info.height, info.fps, info.codec) if info else ("",) * 5
                writer.writerow([finding.path, finding.severity, finding.reason, *known])
