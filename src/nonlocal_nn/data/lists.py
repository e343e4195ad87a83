"""`path label` lists: lines to paths and labels.

A line may hold spaces, commas and quotes in the path; the label is a number, several numbers or a name. What
a line of numbers means is decided for the whole list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nonlocal_nn._text import read_lines
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.labels import number_of
from nonlocal_nn.data.records import VIDEO_SUFFIXES, find_file

__all__ = ["LABEL_COLUMNS", "PATH_COLUMNS", "ListLine", "read_list_lines", "split_line"]

# Header words by which people call the two columns; the first of each is the name used here.
PATH_COLUMNS = (
    "path",
    *(
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "video",
        "video_path",
        "video_name",
        "videoname",
    ),
    *("video_file", "name", "clip", "clip_path", "clip_name", "relative_path"),
)
LABEL_COLUMNS = (
    "label",
    *("labels", "class", "class_name", "classname", "class_id", "category", "target", "action", "label_name"),
    *("label_id", "class_label", "y"),
)

# Everything up to the last video suffix that a separator follows is the path, however many spaces it holds.
_SUFFIX_PATTERN = "|".join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES, key=len, reverse=True))
_PATH_THEN_LABEL = re.compile(
    rf"^(?P<path>.*(?:{_SUFFIX_PATTERN}))(?:\s*[,;]\s*|\s+)(?P<label>.+)$", re.IGNORECASE
)
_QUOTED_THEN_LABEL = re.compile(
    r"""^(?P<quote>["'])(?P<path>.+?)(?P=quote)(?:\s*[,;]\s*|\s+)(?P<label>.+)$"""
)
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class ListLine:
    """One line: its number, the path as written, and its labels as written."""

    number: int
    name: str
    labels: tuple[str, ...]


def split_line(text: str) -> tuple[str, str] | None:
    """The path and the label of a line; None where there are not both.

    >>> split_line("my videos/b 2.mp4 riding a horse"), split_line('"x, y.mp4",red'), split_line("a.mp4")
    (('my videos/b 2.mp4', 'riding a horse'), ('x, y.mp4', 'red'), None)
    """
    match = _QUOTED_THEN_LABEL.match(text) or _PATH_THEN_LABEL.match(text)
    if match:
        return match["path"].strip("\"'"), match["label"].strip().strip("\"'")
    parts = re.split(r"\s*[,;]\s*|\s+", text)
    if len(parts) == 1 or Path(text.strip("\"'")).suffix.lower() in VIDEO_SUFFIXES:
        return None
    label = parts[-1]
    return text[: -len(label)].rstrip(" \t,;").strip("\"'"), label.strip("\"'")


def read_list_lines(
    path: Path, root: Path, classes: Sequence[str] | None, *, columns_known: bool = False
) -> tuple[list[ListLine], list[Problem], list[str]]:
    """The lines of a list, those that cannot be split, and how the list was read where that is not plain.

    `columns_known`: all numbers after a path are labels, however many each line has.

    Raises:
        ValueError: numbers between path and label that can be labels or something else.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    lines: list[tuple[int, str, str]] = []
    bare: list[tuple[int, str]] = []
    for number, line in enumerate(read_lines(path), start=1):
        text = line.strip()
        if not text:
            continue
        split = split_line(text)
        # A name may begin with "#", too: such a line is a comment unless its file is there.
        if text.startswith("#") and (split is None or isinstance(find_file(split[0], root), str)):
            continue
        if split is None:
            bare.append((number, text.strip("\"'")))
        else:
            lines.append((number, *split))
    if lines and _is_header(lines, root):
        notes.append(f"{path}: line {lines[0][0]} ({lines[0][1]} {lines[0][2]}) is read as a header")
        del lines[0]
    if (
        bare
        and not lines
        and classes is not None
        and all(Path(name).parent.name in classes for _, name in bare)
    ):
        notes.append(f"{path}: its lines have no labels; the folder of each video is read as its class")
        return [ListLine(number, name, (Path(name).parent.name,)) for number, name in bare], problems, notes
    problems += [
        Problem(f"{path}:{number}", f"no label in {_short(text)!r}: expected `path label`")
        for number, text in bare
    ]
    return _labels_of(path, lines, classes, notes, columns_known), problems, notes


def _is_header(lines: Sequence[tuple[int, str, str]], root: Path) -> bool:
    """Whether the first line names the columns: known words, or no file where all others have numbers."""
    _, name, label = lines[0]
    if Path(name).suffix.lower() in VIDEO_SUFFIXES or not isinstance(find_file(name, root), str):
        return False
    if name.lower() in PATH_COLUMNS and label.lower() in LABEL_COLUMNS:
        return True
    others = [other for _, _, other in lines[1:]]
    return _numbers(label) is None and bool(others) and all(_numbers(other) is not None for other in others)


def _labels_of(
    path: Path,
    lines: Sequence[tuple[int, str, str]],
    classes: Sequence[str] | None,
    notes: list[str],
    columns_known: bool,
) -> list[ListLine]:
    """Cut label texts into labels: several numbers are several labels, or other columns and a label."""
    known = frozenset(classes or ())
    cut = {label: _numbers(label) for _, _, label in lines}
    numbers = {label: None if label in known else parts for label, parts in cut.items()}
    counts = {1 if parts is None else len(parts) for parts in numbers.values()}
    doubtful = not columns_known and all(not re.search("[,;]", label) for label in numbers)
    if len(counts) == 1 and (width := counts.pop()) > 1 and doubtful:
        # The same number of numbers in every line: several labels each, or columns before one label?
        first = [int(float(parts[0])) for parts in numbers.values() if parts is not None]
        if classes is not None and max(first) >= len(classes):
            notes.append(
                f"{path}: each line has {width} numbers, and {max(first)} is no class: the last is the "
                "label, what is before it (such as a number of frames) is not used"
            )
            return [ListLine(number, name, (label.split()[-1],)) for number, name, label in lines]
        number, name, label = lines[0]
        raise ValueError(
            f"{path}: each line has {width} numbers after the path (line {number}: {_short(name)} {label}). "
            f"They can be read two ways: {width} labels a video, or one label after other columns, such as a "
            "number of frames. Write several labels with commas (a.mp4 0,3), or leave the other columns out"
        )
    result = []
    for number, name, label in lines:
        parts = numbers[label]
        result.append(ListLine(number, name, (label,) if parts is None else parts))
    return result


def _numbers(label: str) -> tuple[str, ...] | None:
    """The whole numbers that a label text consists of; None if it has anything else."""
    parts = tuple(part for part in re.split(r"[\s,;]+", label) if part)
    return parts if parts and all(isinstance(number_of(part), int) for part in parts) else None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text)} characters)"
