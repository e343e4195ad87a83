"""Readers of annotation files: `path label` lists and csv files with a header."""

from __future__ import annotations

import csv
import itertools
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nonlocal_nn._text import lines_of, plain_lines, read_text
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.labels import LabelReading, decide_labels, number_of
from nonlocal_nn.data.lists import LABEL_COLUMNS, PATH_COLUMNS, read_list_lines
from nonlocal_nn.data.records import FileFinder, Manifest, ManifestKind, look_through
from nonlocal_nn.data.table import Codes, Hashes, RecordTable, Texts, VideoRecord
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


@dataclass
class _Rows:
    """Rows that name their videos, in columns: the line, what it calls the video, its label and seconds as
    written (NaN: none). Groups and parts stay empty where no row has one.
    """

    lines: array[int] = field(default_factory=lambda: array("q"))
    names: Texts = field(default_factory=Texts)
    labels: Codes[str] = field(default_factory=Codes)
    starts: array[float] = field(default_factory=lambda: array("d"))
    ends: array[float] = field(default_factory=lambda: array("d"))
    groups: Codes[str | None] = field(default_factory=Codes)
    parts: Codes[tuple[str, ...]] = field(default_factory=Codes)

    def add(self, line: int, name: str, label: str, stretch: tuple[float | None, float | None]) -> None:
        """One more row; its group and part, where there are any, are added beside it."""
        self.lines.append(line)
        self.names.append(name)
        self.labels.append(label)
        start, end = stretch
        self.starts.append(math.nan if start is None else start)
        self.ends.append(math.nan if end is None else end)

    def stretches(self) -> Iterable[tuple[float | None, float | None]]:
        """Start and end of each row."""
        if all(map(math.isnan, self.starts)) and all(map(math.isnan, self.ends)):
            return itertools.repeat((None, None), len(self.lines))
        pairs = zip(self.starts, self.ends, strict=True)
        return ((None if s != s else s, None if e != e else e) for s, e in pairs)


class _Unusable(Exception):  # noqa: N818 - not an error: the line is left out
    """Why a line cannot be used."""


def guess_kind(path: Path) -> ManifestKind:
    """Tell the kind of an annotation file by its first line.

    Raises:
        ValueError: the file is empty.
    """
    first = next((line for line in plain_lines(path) if line.strip()), None)
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
    rows: _Rows,
    labels_of: Mapping[str, tuple[str, ...]],
    reading: LabelReading,
    problems: list[Problem],
    notes: Sequence[str],
    *,
    multi_label: bool,
) -> Manifest:
    """Rows to records by one reading of their labels; `labels_of` says which labels a row's text holds."""
    path = source.path
    find = FileFinder(source.root).find
    records = RecordTable()
    lines = array("q")
    known: dict[str, tuple[int, ...] | str] = {}  # by text: class numbers, or why there are none
    unknown: dict[str, list[str]] = {}
    for text in rows.labels.values:
        labels = labels_of[text]
        unknown[text] = [label for label in labels if label not in reading.indices]
        if unknown[text]:
            known[text] = reading.why_not(unknown[text][0])
        elif not labels and not multi_label:
            known[text] = "no label"
        elif len(labels) == 1:
            known[text] = (reading.indices[labels[0]],)
        else:
            known[text] = tuple(sorted({reading.indices[label] for label in labels}))
    strange: dict[str, list[int]] = {}
    count = len(rows.lines)
    stretches = rows.stretches() if rows.starts else itertools.repeat((None, None), count)
    groups: Iterable[str | None] = rows.groups if len(rows.groups) else itertools.repeat(None, count)
    parts: Iterable[tuple[str, ...]] = rows.parts if len(rows.parts) else itertools.repeat((), count)
    columns = (rows.lines, rows.names, rows.labels, stretches, groups, parts)
    for line, name, text, (start, end), group, part in zip(*columns, strict=True):
        numbers = known[text]
        if isinstance(numbers, str):
            for label in unknown[text]:
                strange.setdefault(label, []).append(line)
            found, reason = "", numbers
        else:
            found, reason = find(name)
        if found and not isinstance(numbers, str):
            records.add(found, numbers, start, end, True, group, part)
            lines.append(line)
        else:
            problems.append(Problem(name or f"{path}:{line}", f"{reason} ({path}, line {line})"))
    if not multi_label:
        records = _without_conflicts(records, lines, reading.classes, path, problems)
    strangers = _strangers(path, {reading.why_not(label): at for label, at in strange.items()})
    said = (*notes, *((reading.note,) if reading.note else ()))
    return Manifest(records, reading.classes, multi_label, tuple(problems), said, strangers, reading.first)


def _strangers(path: Path, strange: Mapping[str, list[int]]) -> tuple[str, ...]:
    """One line for each label that is no class, from the reason and the lines that have it."""
    return tuple(
        f"{path}: {reason}: {len(at)} {'row' if len(at) == 1 else 'rows'}, the first in line {at[0]}. "
        "Rows of such a label cannot be used: mend the labels or the list of classes, or leave these rows out"
        for reason, at in strange.items()
    )


def _without_conflicts(
    records: RecordTable,
    lines: Sequence[int],
    classes: tuple[str, ...],
    path: Path,
    problems: list[Problem],
) -> RecordTable:
    """Leave out videos (or the same seconds of one) that have two labels: one of them is wrong."""
    # By a hash first: hardly any list names a video twice.
    keys = ((path, start, end) for path, _, start, end in records.rows())
    hashes = np.fromiter(map(hash, keys), np.int64, len(records))
    _, places, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    twice = np.flatnonzero(counts[places] > 1).tolist()
    labelled: dict[tuple[str, float | None, float | None], dict[int, list[int]]] = {}
    for row in twice:
        record = records[row]
        key = (record.path, record.start_seconds, record.end_seconds)
        labelled.setdefault(key, {}).setdefault(record.labels[0], []).append(row)
    wrong: list[int] = []
    for key, labels in labelled.items():
        if len(labels) > 1:
            said = " and ".join(f"{classes[label]} (line {lines[at[0]]})" for label, at in labels.items())
            problems.append(Problem(key[0], f"has {len(labels)} labels in {path}: {said}; all are left out"))
            wrong += [row for at in labels.values() for row in at]
    return records.without(wrong) if wrong else records


# -- path label lists
# -----------------------------------------------------------------------------------------------


def _read_list(source: Source) -> Manifest:
    lines, problems, notes = read_list_lines(
        source.path, source.root, source.classes, columns_known=source.multi_label is not None
    )
    reading = decide_labels(
        (label for labels in lines.labels.values() for label in labels),
        source.classes,
        source=str(source.path),
        first=source.first,
    )
    multi_label = any(len(labels) > 1 for labels in lines.labels.values())
    rows = _Rows(lines.numbers, lines.names, lines.texts)
    return _manifest(source, rows, lines.labels, reading, problems, notes, multi_label=multi_label)


# -- csv files with a header
# ----------------------------------------------------------------------------------------


class _Table:
    """A csv with a header: for each row the cells of the columns asked for.

    Args:
        path: the file.
        needed: the columns there must be, with the names they may have; they get the first of these names.
        optional: columns that may be missing; their cells are then empty.

    Raises:
        ValueError: a column is missing, or stands there twice.
    """

    def __init__(self, path: Path, needed: Mapping[str, Sequence[str]], optional: Sequence[str] = ()) -> None:
        self.path = path
        self._text = read_text(path)
        header = next((line for line in lines_of(self._text) if line.strip()), "").strip("\r\n")
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
        self.columns = [called.get(column, column) for column in columns]
        if twice := [name for name, count in Counter(self.columns).items() if count > 1 and name]:
            raise ValueError(f"{path}: its header names the column {twice[0]} twice")
        self._delimiter = delimiter
        self._needed = list(needed)
        self._places = [
            self.columns.index(name) if name in self.columns else -1 for name in (*needed, *optional)
        ]

    def __iter__(self) -> Iterator[tuple[int, list[str] | None]]:
        """Yield (line number, all cells); None for a row with too few or too many cells.

        Raises:
            ValueError: a quote is not closed.
        """
        path, width = self.path, len(self.columns)
        has_all = -1 not in self._places
        reader = csv.reader(
            lines_of(self._text), delimiter=self._delimiter, skipinitialspace=True, strict=True
        )
        header_seen = False
        while True:
            begins = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise ValueError(
                    f"{path}, line {begins}: {_quote_error(str(error))}; the lines from there on cannot be "
                    "read"
                ) from None
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if not header_seen:
                header_seen = True
                continue
            if len(cells) != width:
                yield begins, None
                continue
            if reader.line_num > begins:
                self._check_lines(begins, reader.line_num, cells)
            if not has_all:
                cells.append("")  # what a column that is missing holds
            yield begins, cells

    def row(self, cells: Sequence[str]) -> Row:
        """All cells by column."""
        return {column: cell.strip() for column, cell in zip(self.columns, cells, strict=False)}

    def asked(self, cells: Sequence[str]) -> list[str]:
        """The cells of the columns asked for, in the order in which they were."""
        return [cells[place].strip() for place in self._places]

    def _check_lines(self, begins: int, ends: int, cells: Sequence[str]) -> None:
        for name, cell in zip(self._needed, self.asked(cells), strict=False):
            if "\n" in cell or "\r" in cell:
                raise ValueError(
                    f"{self.path}, line {begins}: a quote that opens there closes only in line {ends}; "
                    f"the lines between became part of the column {name}"
                )


def _quote_error(text: str) -> str:
    if "unexpected end" in text:
        return "a quote that opens there is never closed"
    if "expected after" in text:
        return "a quote that opens there is not closed where its cell ends"
    return text


def _read_table(
    source: Source,
    table: _Table,
    use: Callable[[int, list[str]], None],
    see: Callable[[list[str]], None] | None = None,
) -> list[Problem]:
    """Call `use` for each row that `where` keeps, with its line and the cells asked for; `see` for every row.

    Returns what `use` and the file's form made unusable.
    """
    problems: list[Problem] = []
    chosen: RowFilter | None = None
    path = source.path
    for number, cells in table:
        if cells is None:
            problems.append(Problem(f"{path}:{number}", "the line has more or fewer cells than the header"))
            continue
        asked = table.asked(cells)
        if see is not None:
            see(asked)
        if source.where is not None:
            row = table.row(cells)
            chosen = chosen or RowFilter(source.where, row)
            if not chosen(row):
                continue
        try:
            use(number, asked)
        except _Unusable as reason:
            problems.append(Problem(asked[0] or f"{path}:{number}", f"{reason} ({path}, line {number})"))
    return problems


def _seconds(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _Unusable(f"{column} {text!r} is not a number of seconds")
    return value


def _stretch(first: str, last: str, columns: tuple[str, str]) -> tuple[float | None, float | None]:
    if not first and not last:
        return None, None
    start = _seconds(first, columns[0]) if first else None
    end = _seconds(last, columns[1]) if last else None
    if start is not None and start < 0:
        raise _Unusable(f"{columns[0]} {start:g} is before the video begins")
    if end is not None and end <= (start or 0):
        raise _Unusable(f"the stretch from {start or 0:g} to {end:g} s is empty")
    return start, end


def _read_csv(source: Source) -> Manifest:
    needed: dict[str, Sequence[str]] = {"path": PATH_COLUMNS, "label": LABEL_COLUMNS}
    for column in (*filter(None, [source.group_by]), *source.part_by):
        needed[column] = (column.lower(),)
    columns = ("start_seconds", "end_seconds")
    table = _Table(source.path, needed, columns)
    places = {name: place for place, name in enumerate(needed)}
    group_at = None if source.group_by is None else places[source.group_by]
    parts_at = [places[column] for column in source.part_by]

    def labels_of(cell: str) -> tuple[str, ...]:
        if source.classes is not None and cell in source.classes:
            return (cell,)  # a name with a semicolon
        return tuple(part for part in (part.strip() for part in cell.split(";")) if part)

    # Of all rows, so that the parts of one file that `where` cuts out agree on the numbers.
    texts: dict[str, None] = {}
    rows = _Rows()

    def see(cells: list[str]) -> None:
        texts.setdefault(cells[1])

    def use(number: int, cells: list[str]) -> None:
        stretch = _stretch(cells[-2], cells[-1], columns)
        rows.add(number, cells[0], cells[1], stretch)
        if group_at is not None:
            rows.groups.append(cells[group_at])
        if parts_at:
            rows.parts.append(tuple(cells[at] for at in parts_at))

    problems = _read_table(source, table, use, see)
    del table  # and the text of the file
    texts.pop("", None)
    # pandas writes a missing number as nan; a class may have that name where classes have names.
    gaps = {"nan", "NaN"} if all(number_of(t) is not None for t in texts if t.lower() != "nan") else set()
    labels = {text: labels_of(text) for text in texts if text not in gaps}
    reading = decide_labels(
        (label for own in labels.values() for label in own),
        source.classes,
        source=str(source.path),
        first=source.first,
    )
    multi_label = any(len(own) > 1 for own in labels.values())
    held = {text: labels.get(text, ()) for text in rows.labels.values}
    return _manifest(source, rows, held, reading, problems, (), multi_label=multi_label)


class _VideoIndex:
    """Finds videos under a folder by their name without suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        contents = look_through(root)
        self.problems = contents.problems
        self._paths = contents.paths
        self._stems = Hashes(map(_stem, self._paths))

    def find(self, stems: tuple[str, ...], folder: str = "") -> tuple[str, str]:
        """Return (path, stem) of the first stem there is, if possible from a folder named like its class."""
        for stem in stems:
            paths = [path for at in self._stems.places(stem) if _stem(path := self._paths[at]) == stem]
            if len(paths) > 1:
                plain = folder.replace(" ", "_")
                of_class = (path for path in paths if Path(path).parent.name.replace(" ", "_") == plain)
                return next(of_class, paths[0]), stem
            if paths:
                return paths[0], stem
        raise _Unusable(f"no video named {' or '.join(stems)} under {self.root}")


def _stem(path: str) -> str:
    """The name of a video without its suffix."""
    return path[path.rfind(os.sep) + 1 : path.rfind(".")]


def _read_kinetics(source: Source) -> Manifest:
    columns = ("time_start", "time_end")
    table = _Table(source.path, {"youtube_id": ("youtube_id",), "label": ("label",)}, columns)
    rows = _Rows()
    texts: dict[str, None] = {}

    def see(cells: list[str]) -> None:
        texts.setdefault(cells[1])

    def use(number: int, cells: list[str]) -> None:
        rows.add(number, cells[0], cells[1], _stretch(cells[2], cells[3], columns))

    problems = _read_table(source, table, use, see)
    del table  # and the text of the file
    texts.pop("", None)
    known = source.classes if source.classes is not None else tuple(sorted(texts))
    reading = LabelReading(known, {name: index for index, name in enumerate(known)})
    why_not = {text: reading.why_not(text) for text in rows.labels.values if text not in reading.indices}
    videos = _VideoIndex(source.root)
    records = RecordTable()
    lines = array("q")
    strange: dict[str, list[int]] = {}
    uncut = 0
    for number, name, label, (start, end) in zip(
        rows.lines, rows.names, rows.labels, rows.stretches(), strict=True
    ):
        try:
            if label in why_not:
                strange.setdefault(why_not[label], []).append(number)
                raise _Unusable(why_not[label])
            cut = name if start is None or end is None else f"{name}_{int(start):06d}_{int(end):06d}"
            found, stem = videos.find((cut, name), folder=label)
        except _Unusable as reason:
            problems.append(
                Problem(name or f"{source.path}:{number}", f"{reason} ({source.path}, line {number})")
            )
            continue
        if stem != name or end is None:
            start = end = None
        else:
            uncut += 1
        records.add(found, (reading.indices[label],), start, end)
        lines.append(number)
    kept = _without_conflicts(records, lines, known, source.path, problems)
    notes: tuple[str, ...] = ()
    if uncut:
        notes = (
            f"{source.path}: {uncut} of {len(records)} videos are named by their id alone; one that lasts no "
            "longer than its labelled seconds (and 1) counts as cut to them, in others they are looked up",
        )
    return Manifest(
        kept,
        known,
        problems=(*problems, *videos.problems),
        notes=notes,
        strangers=_strangers(source.path, strange),
    )


def _read_charades(source: Source) -> Manifest:
    known = source.classes if source.classes is not None else CHARADES_CLASSES
    videos = _VideoIndex(source.root)
    table = _Table(source.path, {"id": ("id",), "actions": ("actions",)}, ("length",))
    records = RecordTable()
    missing: list[tuple[int, VideoRecord]] = []
    too_long: list[tuple[float, str]] = []

    def use(_number: int, cells: list[str]) -> None:
        name, said, seconds = cells
        actions = tuple(_actions(said, len(known)))
        labels = tuple(sorted({label for label, _, _ in actions}))
        length = _seconds(seconds, "length") if seconds else None
        if length is not None:
            too_long.extend((end - length, name) for _, _, end in actions if end > length)
        try:
            path = videos.find((name,))[0]
        except _Unusable:
            missing.append((len(records), VideoRecord(name, labels)))
            raise
        records.add(path, labels, actions=actions)

    problems = _read_table(source, table, use)
    notes: tuple[str, ...] = ()
    if too_long:
        most, of = max(too_long)
        notes = (
            f"{source.path}: {len(too_long)} actions end after their video does, by up to {most:.2f} s "
            f"({of}); they count to its end",
        )
    return Manifest(
        records,
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
