"""Readers of annotation files: `path label` lists and csv files with a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.records import VIDEO_SUFFIXES, Manifest, ManifestKind, VideoRecord, find_videos
from nonlocal_nn.data.where import RowFilter

__all__ = ["CHARADES_CLASSES", "READERS", "guess_kind"]

CHARADES_CLASSES = tuple(f"c{number:03d}" for number in range(157))

Classes = tuple[str, ...] | None
Row = dict[str, str]

# everything up to the last video suffix that is followed by a separator is the path, however many spaces it
# holds
_SUFFIX_PATTERN = "|".join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES))
_PATH_THEN_LABEL = re.compile(
    rf"^(?P<path>.*(?:{_SUFFIX_PATTERN}))(?:\s*,\s*|\s+)(?P<label>.+)$", re.IGNORECASE
)


class _Unusable(Exception):  # noqa: N818 - not an error: the line is left out
    """Why a line cannot be used."""


def guess_kind(path: Path) -> ManifestKind:
    """Tell the kind of an annotation file by its first line.

    Raises:
        ValueError: the file is empty.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        first = next((line for line in file if line.strip()), None)
    if first is None:
        raise ValueError(f"{path} is empty: expected lines `path label`, or a csv with a header")
    columns = {column.strip() for column in next(csv.reader([first]))}
    if "youtube_id" in columns:
        return "kinetics_csv"
    if {"id", "actions"} <= columns:
        return "charades_csv"
    if {"path", "label"} <= columns:
        return "csv"
    return "list"


# -- path label lists
# -----------------------------------------------------------------------------------------------


def _read_list(path: Path, root: Path, classes: Classes, where: str | None) -> Manifest:
    del where  # refused for lists by read_manifest
    problems: list[Problem] = []
    lines: list[tuple[int, str, str]] = []
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            try:
                lines.append((number, *_split_line(text)))
            except _Unusable as reason:
                problems.append(Problem(f"{path}:{number}", str(reason)))
    numbered = all(_numbers(label) is not None for _, _, label in lines)
    if classes is None:
        if numbered:
            top = max((max(_numbers(label) or [0]) for _, _, label in lines), default=-1)
            classes = tuple(str(n) for n in range(top + 1))
        else:
            classes = tuple(sorted({label for _, _, label in lines}))
    multi_label = any(len(_numbers(label) or ()) > 1 for _, _, label in lines if label not in classes)
    records: list[VideoRecord] = []
    for number, name, label in lines:
        try:
            labels = (classes.index(label),) if label in classes else _label_numbers(label, classes)
            records.append(VideoRecord(_existing(name, root), labels))
        except _Unusable as reason:
            problems.append(Problem(name, f"{reason} ({path}, line {number})"))
    return Manifest(tuple(records), classes, multi_label, tuple(problems))


def _split_line(text: str) -> tuple[str, str]:
    match = _PATH_THEN_LABEL.match(text)
    if match:
        return match["path"].strip("\"'"), match["label"].strip().strip("\"'")
    parts = text.rsplit(None, 1)
    if len(parts) == 1 or Path(text).suffix.lower() in VIDEO_SUFFIXES:
        raise _Unusable(f"no label in {text!r}: expected `path label`")
    return parts[0].rstrip(",").strip("\"'"), parts[1].strip("\"'")


def _numbers(label: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in re.split(r"[\s,;]+", label) if part)
    except ValueError:
        return None


def _label_numbers(label: str, classes: tuple[str, ...]) -> tuple[int, ...]:
    numbers = _numbers(label)
    if numbers is None:
        raise _Unusable(f"unknown class {label!r}")
    for number in numbers:
        if not 0 <= number < len(classes):
            raise _Unusable(f"label {number} is outside 0 .. {len(classes) - 1}")
    return tuple(sorted(set(numbers)))


def _existing(name: str, root: Path) -> str:
    path = root / name
    if path.is_file():
        return str(path)
    if Path(name).is_absolute():  # written on another machine
        for parts in (2, 1):
            moved = root.joinpath(*Path(name).parts[-parts:])
            if moved.is_file():
                return str(moved)
    raise _Unusable("is a folder, not a video file" if path.is_dir() else "no such file")


# -- csv files with a header
# ----------------------------------------------------------------------------------------


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, Row | None]]:
    """Yield (line number, row); None for a row with too few or too many cells."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        missing = [column for column in needed if column not in columns]
        if missing:
            raise ValueError(
                f"{path} has no column {' or '.join(missing)}; its header is {', '.join(columns) or 'empty'}"
            )
        for row in reader:
            whole = None not in row and all(value is not None for value in row.values())
            yield reader.line_num, {key: value.strip() for key, value in row.items()} if whole else None


def _read_table(
    path: Path,
    needed: tuple[str, ...],
    where: str | None,
    record: Callable[[Row], VideoRecord],
) -> tuple[list[VideoRecord], list[Problem]]:
    """Turn each row that `where` keeps into a record or a problem."""
    records: list[VideoRecord] = []
    problems: list[Problem] = []
    chosen: RowFilter | None = None
    for number, row in _rows(path, needed):
        if row is None:
            problems.append(Problem(f"{path}:{number}", "the line has more or fewer cells than the header"))
            continue
        if where is not None:
            chosen = chosen or RowFilter(where, row)
            if not chosen(row):
                continue
        try:
            records.append(record(row))
        except _Unusable as reason:
            problems.append(
                Problem(row[needed[0]] or f"{path}:{number}", f"{reason} ({path}, line {number})")
            )
    return records, problems


def _values(path: Path, needed: tuple[str, ...], column: str) -> Iterator[str]:
    """Yield the cells of a column, of all rows."""
    for _, row in _rows(path, needed):
        if row is not None and row[column]:
            yield row[column]


def _seconds(row: Mapping[str, str], column: str) -> float | None:
    text = row.get(column, "")
    try:
        return float(text) if text else None
    except ValueError:
        raise _Unusable(f"{column} {text!r} is not a number of seconds") from None


def _stretch(row: Mapping[str, str], first: str, last: str) -> tuple[float | None, float | None]:
    start, end = _seconds(row, first), _seconds(row, last)
    if start is not None and end is not None and not 0 <= start < end:
        raise _Unusable(f"the stretch from {start:g} to {end:g} s is empty")
    return start, end


def _read_csv(path: Path, root: Path, classes: Classes, where: str | None) -> Manifest:
    needed = ("path", "label")
    # all rows, so that the parts of one file that `where` cuts out agree on the numbers
    cells = list(_values(path, needed, "label"))
    multi_label = any(";" in cell for cell in cells)
    names = {name.strip() for cell in cells for name in cell.split(";")}
    if classes is None and all(_numbers(name) is not None for name in names):
        top = max((int(name) for name in names), default=-1)
        classes = tuple(str(n) for n in range(top + 1))
    known = classes if classes is not None else tuple(sorted(names))

    def record(row: Row) -> VideoRecord:
        parts = [part.strip() for part in row["label"].split(";") if part.strip()]
        if not parts and not multi_label:
            raise _Unusable("no label")
        labels: set[int] = set()
        for part in parts:
            labels.update((known.index(part),) if part in known else _label_numbers(part, known))
        return VideoRecord(
            _existing(row["path"], root),
            tuple(sorted(labels)),
            *_stretch(row, "start_seconds", "end_seconds"),
        )

    records, problems = _read_table(path, needed, where, record)
    return Manifest(tuple(records), known, multi_label, tuple(problems))


class _VideoIndex:
    """Finds videos under a folder by their name without suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_stem: dict[str, list[Path]] = {}
        for video in find_videos(root):
            self._by_stem.setdefault(video.stem, []).append(video)

    def find(self, stems: tuple[str, ...], folder: str = "") -> tuple[str, str]:
        """Return (path, stem) of the first stem there is, if possible from a folder named like its class."""
        for stem in stems:
            videos = self._by_stem.get(stem)
            if videos:
                plain = folder.replace(" ", "_")
                best = next((v for v in videos if v.parent.name.replace(" ", "_") == plain), videos[0])
                return str(best), stem
        raise _Unusable(f"no video named {' or '.join(stems)} under {self.root}")


def _read_kinetics(path: Path, root: Path, classes: Classes, where: str | None) -> Manifest:
    needed = ("youtube_id", "label")
    known = classes if classes is not None else tuple(sorted(set(_values(path, needed, "label"))))
    videos = _VideoIndex(root)

    def record(row: Row) -> VideoRecord:
        if row["label"] not in known:
            raise _Unusable(f"unknown class {row['label']!r}")
        start, end = _stretch(row, "time_start", "time_end")
        name = row["youtube_id"]
        cut = f"{name}_{int(start):06d}_{int(end):06d}" if start is not None and end is not None else name
        found, stem = videos.find((cut, name), folder=row["label"])
        labels = (known.index(row["label"]),)
        return VideoRecord(found, labels) if stem != name else VideoRecord(found, labels, start, end)

    records, problems = _read_table(path, needed, where, record)
    return Manifest(tuple(records), known, problems=tuple(problems))


def _read_charades(path: Path, root: Path, classes: Classes, where: str | None) -> Manifest:
    known = classes if classes is not None else CHARADES_CLASSES
    videos = _VideoIndex(root)

    def record(row: Row) -> VideoRecord:
        labels: set[int] = set()
        for action in filter(None, (part.strip() for part in row["actions"].split(";"))):
            match = re.fullmatch(r"c(\d{3})\s+\d+(?:\.\d+)?\s+\d+(?:\.\d+)?", action)
            if match is None:
                raise _Unusable(f"action {action!r} is not of the form `c092 11.90 21.20`")
            labels.update(_label_numbers(match[1], known))
        return VideoRecord(videos.find((row["id"],))[0], tuple(sorted(labels)))

    records, problems = _read_table(path, ("id", "actions"), where, record)
    return Manifest(tuple(records), known, True, tuple(problems))


READERS: dict[ManifestKind, Callable[[Path, Path, Classes, str | None], Manifest]] = {
    "list": _read_list,
    "kinetics_csv": _read_kinetics,
    "charades_csv": _read_charades,
    "csv": _read_csv,
}
