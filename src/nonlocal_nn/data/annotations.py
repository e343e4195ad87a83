"""Readers of annotation files: `path label` lists and csv files with a header."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nonlocal_nn._text import read_text
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.labels import LabelReading, decide_labels, number_of
from nonlocal_nn.data.lists import LABEL_COLUMNS, PATH_COLUMNS, read_list_lines
from nonlocal_nn.data.records import FileFinder, Manifest, ManifestKind, VideoRecord, look_through
from nonlocal_nn.data.where import RowFilter

__all__ = ["CHARADES_CLASSES", "READERS", "Source", "guess_kind"]

CHARADES_CLASSES = tuple(f"c{number:03d}" for number in range(157))
DELIMITERS = ",\t;"

Row = dict[str, str]


@dataclass(frozen=True)
class Source:
    """An annotation file and what is known about it.

    Attributes:
        path: the file.
        root: where videos lie.
        classes: names in order; None: those of the file.
        first: the number of the first class where labels are positions; None: not known.
        where: rows of a csv to keep; None: all.
        multi_label: may a video have several labels? None: not known.
        group_by: column of a plain csv that becomes the group of each record; None: no groups.
        part_by: columns of a plain csv that become the part of each record.
    """

    path: Path
    root: Path
    classes: tuple[str, ...] | None
    first: int | None
    where: str | None
    multi_label: bool | None = None
    group_by: str | None = None
    part_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Labelled:
    """A row that names its video: the line, what it calls the video, its labels and seconds as written."""

    line: int
    name: str
    labels: tuple[str, ...]
    start_seconds: float | None = None
    end_seconds: float | None = None
    group: str | None = None
    part: tuple[str, ...] = ()


class _Unusable(Exception):  # noqa: N818 - not an error: the line is left out
    """Why a line cannot be used."""


def guess_kind(path: Path) -> ManifestKind:
    """Tell the kind of an annotation file by its first line.

    Raises:
        ValueError: the file is empty.
    """
    first = next((line for line in read_text(path).splitlines() if line.strip()), None)
    if first is None:
        raise ValueError(f"{path} is empty: expected lines `path label`, or a csv with a header")
    for delimiter in DELIMITERS:
        columns = {column.strip() for column in next(csv.reader([first], delimiter=delimiter))}
        if "youtube_id" in columns:
            return "kinetics_csv"
        if {"id", "actions"} <= columns:
            return "charades_csv"
        if all(_column(columns, names) is not None for names in (PATH_COLUMNS, LABEL_COLUMNS)):
            return "csv"
    return "list"


def _column(columns: Sequence[str] | set[str], names: Sequence[str]) -> str | None:
    """The column that is called by one of these names, the first of them best; upper case counts as lower."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


# -- labelled rows to a manifest
# -----------------------------------------------------------------------------------------------


def _manifest(
    source: Source,
    rows: Sequence[_Labelled],
    reading: LabelReading,
    problems: list[Problem],
    notes: Sequence[str],
    *,
    multi_label: bool,
) -> Manifest:
    """Rows to records by one reading of their labels."""
    path = source.path
    finder = FileFinder(source.root)
    records: list[VideoRecord] = []
    lines: list[int] = []
    strange: dict[str, list[int]] = {}
    for row in rows:
        try:
            if not row.labels and not multi_label:
                raise _Unusable("no label")
            unknown = [label for label in row.labels if label not in reading.indices]
            for label in unknown:
                strange.setdefault(label, []).append(row.line)
            if unknown:
                raise _Unusable(reading.why_not(unknown[0]))
            found, absent = finder.find(row.name)
            if absent:
                raise _Unusable(absent)
            if len(row.labels) == 1:
                labels: tuple[int, ...] = (reading.indices[row.labels[0]],)
            else:
                labels = tuple(sorted({reading.indices[label] for label in row.labels}))
            records.append(
                VideoRecord(
                    found,
                    labels,
                    row.start_seconds,
                    row.end_seconds,
                    exact_seconds=True,
                    group=row.group,
                    part=row.part,
                )
            )
            lines.append(row.line)
        except _Unusable as reason:
            problems.append(Problem(row.name or f"{path}:{row.line}", f"{reason} ({path}, line {row.line})"))
    if not multi_label:
        records = _without_conflicts(records, lines, reading.classes, path, problems)
    strangers = _strangers(path, {reading.why_not(label): at for label, at in strange.items()})
    said = (*notes, *((reading.note,) if reading.note else ()))
    return Manifest(
        tuple(records), reading.classes, multi_label, tuple(problems), said, strangers, reading.first
    )


def _strangers(path: Path, strange: Mapping[str, list[int]]) -> tuple[str, ...]:
    """One line for each label that is no class, from the reason and the lines that have it."""
    return tuple(
        f"{path}: {reason}: {len(at)} {'row' if len(at) == 1 else 'rows'}, the first in line {at[0]}. "
        "Rows of such a label cannot be used: mend the labels or the list of classes, or leave these rows out"
        for reason, at in strange.items()
    )


def _without_conflicts(
    records: list[VideoRecord],
    lines: list[int],
    classes: tuple[str, ...],
    path: Path,
    problems: list[Problem],
) -> list[VideoRecord]:
    """Leave out videos (or the same seconds of one) that have two labels: one of them is wrong."""
    labelled: dict[tuple[str, float | None, float | None], dict[int, int]] = {}
    keys = [(record.path, record.start_seconds, record.end_seconds) for record in records]
    for key, record, line in zip(keys, records, lines, strict=True):
        labelled.setdefault(key, {}).setdefault(record.labels[0], line)
    kept = []
    for key, record in zip(keys, records, strict=True):
        if len(labelled[key]) == 1:
            kept.append(record)
    for key, labels in labelled.items():
        if len(labels) > 1:
            said = " and ".join(f"{classes[label]} (line {line})" for label, line in labels.items())
            problems.append(Problem(key[0], f"has {len(labels)} labels in {path}: {said}; all are left out"))
    return kept


# -- path label lists
# -----------------------------------------------------------------------------------------------


def _read_list(source: Source) -> Manifest:
    lines, problems, notes = read_list_lines(
        source.path, source.root, source.classes, columns_known=source.multi_label is not None
    )
    reading = decide_labels(
        (label for line in lines for label in line.labels),
        source.classes,
        source=str(source.path),
        first=source.first,
    )
    multi_label = any(len(line.labels) > 1 for line in lines)
    rows = [_Labelled(line.number, line.name, line.labels) for line in lines]
    return _manifest(source, rows, reading, problems, notes, multi_label=multi_label)


# -- csv files with a header
# ----------------------------------------------------------------------------------------


def _rows(path: Path, needed: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, Row | None]]:
    """Yield (line number, row); None for a row with too few or too many cells.

    `needed` has the columns there must be, with the names they may have; they get the first of these names.
    Raises ValueError where one is missing, or a quote is not closed.
    """
    text = read_text(path)
    header = next((line for line in text.splitlines() if line.strip()), "")
    columns: list[str] = []
    for delimiter in DELIMITERS:
        columns = [column.strip() for column in next(csv.reader([header], delimiter=delimiter), [])]
        if all(_column(columns, names) is not None for names in needed.values()):
            break
    else:
        columns = [column.strip() for column in next(csv.reader([header]), [])]
        missing = [name for name, names in needed.items() if _column(columns, names) is None]
        raise ValueError(
            f"{path} has no column {' or '.join(missing)}; its header is {', '.join(columns) or 'empty'}"
        )
    called = {_column(columns, names): name for name, names in needed.items()}
    columns = [called.get(column, column) for column in columns]
    if twice := [name for name, count in Counter(columns).items() if count > 1 and name]:
        raise ValueError(f"{path}: its header names the column {twice[0]} twice")
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    begins = 1
    header_seen = False
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {begins}: {_quote_error(str(error))}; the lines from there on cannot be read"
            ) from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not header_seen:
            header_seen = True
            continue
        if len(cells) != len(columns):
            yield begins, None
            continue
        row = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
        for name in needed:
            if "\n" in row[name] or "\r" in row[name]:
                raise ValueError(
                    f"{path}, line {begins}: a quote that opens there closes only in line {reader.line_num}; "
                    f"the lines between became part of the column {name}"
                )
        yield begins, row


def _quote_error(text: str) -> str:
    if "unexpected end" in text:
        return "a quote that opens there is never closed"
    if "expected after" in text:
        return "a quote that opens there is not closed where its cell ends"
    return text


def _read_table(
    source: Source, needed: Mapping[str, Sequence[str]], use: Callable[[int, Row], None]
) -> list[Problem]:
    """Call `use` for each row that `where` keeps; return what it and the file's form made unusable."""
    problems: list[Problem] = []
    chosen: RowFilter | None = None
    for number, row in _rows(source.path, needed):
        if row is None:
            problems.append(
                Problem(f"{source.path}:{number}", "the line has more or fewer cells than the header")
            )
            continue
        if source.where is not None:
            chosen = chosen or RowFilter(source.where, row)
            if not chosen(row):
                continue
        try:
            use(number, row)
        except _Unusable as reason:
            name = row[next(iter(needed))] or f"{source.path}:{number}"
            problems.append(Problem(name, f"{reason} ({source.path}, line {number})"))
    return problems


def _values(path: Path, needed: Mapping[str, Sequence[str]], column: str) -> Iterator[str]:
    """Yield the cells of a column, of all rows."""
    for _, row in _rows(path, needed):
        if row is not None and row[column]:
            yield row[column]


def _seconds(row: Mapping[str, str], column: str) -> float | None:
    text = row.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _Unusable(f"{column} {text!r} is not a number of seconds")
    return value


def _stretch(row: Mapping[str, str], first: str, last: str) -> tuple[float | None, float | None]:
    start, end = _seconds(row, first), _seconds(row, last)
    if start is not None and start < 0:
        raise _Unusable(f"{first} {start:g} is before the video begins")
    if end is not None and end <= (start or 0):
        raise _Unusable(f"the stretch from {start or 0:g} to {end:g} s is empty")
    return start, end


def _read_csv(source: Source) -> Manifest:
    needed = {"path": PATH_COLUMNS, "label": LABEL_COLUMNS}
    for column in (*filter(None, [source.group_by]), *source.part_by):
        needed[column] = (column.lower(),)

    def labels_of(cell: str) -> tuple[str, ...]:
        if source.classes is not None and cell in source.classes:
            return (cell,)  # a name with a semicolon
        return tuple(part for part in (part.strip() for part in cell.split(";")) if part)

    # All rows, so that the parts of one file that `where` cuts out agree on the numbers.
    texts = list(_values(source.path, needed, "label"))
    # pandas writes a missing number as nan; a class may have that name where classes have names.
    gaps = {"nan", "NaN"} if all(number_of(t) is not None for t in texts if t.lower() != "nan") else set()
    cells = [labels_of(text) for text in texts if text not in gaps]
    multi_label = any(len(labels) > 1 for labels in cells)
    reading = decide_labels(
        (label for labels in cells for label in labels),
        source.classes,
        source=str(source.path),
        first=source.first,
    )
    rows: list[_Labelled] = []

    def use(number: int, row: Row) -> None:
        stretch = _stretch(row, "start_seconds", "end_seconds")
        labels = () if row["label"] in gaps else labels_of(row["label"])
        group = None if source.group_by is None else row[source.group_by]
        part = tuple(row[column] for column in source.part_by)
        rows.append(_Labelled(number, row["path"], labels, *stretch, group, part))

    problems = _read_table(source, needed, use)
    return _manifest(source, rows, reading, problems, (), multi_label=multi_label)


class _VideoIndex:
    """Finds videos under a folder by their name without suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_stem: dict[str, list[str]] = {}
        contents = look_through(root)
        self.problems = contents.problems
        for path in contents.paths:
            name = path.rpartition(os.sep)[2]
            self._by_stem.setdefault(name[: name.rfind(".")], []).append(path)

    def find(self, stems: tuple[str, ...], folder: str = "") -> tuple[str, str]:
        """Return (path, stem) of the first stem there is, if possible from a folder named like its class."""
        for stem in stems:
            paths = self._by_stem.get(stem)
            if paths is None:
                continue
            if len(paths) == 1:
                return paths[0], stem
            plain = folder.replace(" ", "_")
            return next((p for p in paths if Path(p).parent.name.replace(" ", "_") == plain), paths[0]), stem
        raise _Unusable(f"no video named {' or '.join(stems)} under {self.root}")


def _read_kinetics(source: Source) -> Manifest:
    needed = {"youtube_id": ("youtube_id",), "label": ("label",)}
    known = source.classes
    if known is None:
        known = tuple(sorted(set(_values(source.path, needed, "label"))))
    videos = _VideoIndex(source.root)
    records: list[VideoRecord] = []
    lines: list[int] = []
    strange: dict[str, list[int]] = {}
    reading = LabelReading(known, {name: index for index, name in enumerate(known)})
    uncut = 0

    def use(number: int, row: Row) -> None:
        nonlocal uncut
        if row["label"] not in reading.indices:
            reason = reading.why_not(row["label"])
            strange.setdefault(reason, []).append(number)
            raise _Unusable(reason)
        start, end = _stretch(row, "time_start", "time_end")
        name = row["youtube_id"]
        cut = f"{name}_{int(start):06d}_{int(end):06d}" if start is not None and end is not None else name
        found, stem = videos.find((cut, name), folder=row["label"])
        record = VideoRecord(found, (reading.indices[row["label"]],))
        if stem == name and end is not None:
            uncut += 1
            record = replace(record, start_seconds=start, end_seconds=end)
        records.append(record)
        lines.append(number)

    problems = _read_table(source, needed, use)
    kept = _without_conflicts(records, lines, known, source.path, problems)
    notes: tuple[str, ...] = ()
    if uncut:
        notes = (
            f"{source.path}: {uncut} of {len(records)} videos are named by their id alone; one that lasts no "
            "longer than its labelled seconds (and 1) counts as cut to them, in others they are looked up",
        )
    return Manifest(
        tuple(kept),
        known,
        problems=(*problems, *videos.problems),
        notes=notes,
        strangers=_strangers(source.path, strange),
    )


def _read_charades(source: Source) -> Manifest:
    known = source.classes if source.classes is not None else CHARADES_CLASSES
    videos = _VideoIndex(source.root)
    records: list[VideoRecord] = []
    missing: list[tuple[int, VideoRecord]] = []
    too_long: list[tuple[float, str]] = []

    def use(number: int, row: Row) -> None:
        del number
        actions = tuple(_actions(row["actions"], len(known)))
        labels = tuple(sorted({label for label, _, _ in actions}))
        length = _seconds(row, "length")
        if length is not None:
            too_long.extend((end - length, row["id"]) for _, _, end in actions if end > length)
        try:
            path = videos.find((row["id"],))[0]
        except _Unusable:
            missing.append((len(records), VideoRecord(row["id"], labels)))
            raise
        records.append(VideoRecord(path, labels, actions=actions))

    problems = _read_table(source, {"id": ("id",), "actions": ("actions",)}, use)
    notes: tuple[str, ...] = ()
    if too_long:
        most, of = max(too_long)
        notes = (
            f"{source.path}: {len(too_long)} actions end after their video does, by up to {most:.2f} s "
            f"({of}); they count to its end",
        )
    return Manifest(
        tuple(records),
        known,
        True,
        (*problems, *videos.problems),
        notes,
        missing=tuple(missing),
    )


def _actions(cell: str, classes: int) -> Iterator[tuple[int, float, float]]:
    """(class, start, end) of each; a class that stands there twice has two stretches."""
    for action in filter(None, (part.strip() for part in cell.split(";"))):
        match = re.fullmatch(r"c(\d{3})\s+(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)", action)
        if match is None:
            raise _Unusable(f"action {action!r} is not of the form `c092 11.90 21.20`")
        label, start, end = int(match[1]), float(match[2]), float(match[3])
        if label >= classes:
            raise _Unusable(f"label {label} is outside 0 .. {classes - 1}")
        if end < start:
            raise _Unusable(f"action {action!r} ends before it starts")
        yield label, start, end


READERS: dict[ManifestKind, Callable[[Source], Manifest]] = {
    "list": _read_list,
    "kinetics_csv": _read_kinetics,
    "charades_csv": _read_charades,
    "csv": _read_csv,
}
