"""`path label` lists: lines to paths and labels.

A line may hold spaces, commas and quotes in the path; the label is a number, several numbers or a name. What
a line of numbers means is decided for the whole list.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nonlocal_nn._text import plain_lines
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.labels import number_of
from nonlocal_nn.data.records import VIDEO_SUFFIXES, find_file
from nonlocal_nn.data.table import Codes, Texts

__all__ = ["LABEL_COLUMNS", "PATH_COLUMNS", "ListLines", "read_list_lines", "split_line"]

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
class ListLines:
    """The lines of a list in columns.

    Attributes:
        numbers: of each line.
        names: the path as written.
        texts: what stands after it, as written.
        labels: the labels that each different text means.
    """

    numbers: array[int] = field(default_factory=lambda: array("q"))
    names: Texts = field(default_factory=Texts)
    texts: Codes[str] = field(default_factory=Codes)
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, number: int, name: str, text: str) -> None:
        """One more line."""
        self.numbers.append(number)
        self.names.append(name)
        self.texts.append(text)

    def after_the_first(self) -> ListLines:
        """All but the first, which was a header."""
        rest = ListLines()
        for number, name, text in list(zip(self.numbers, self.names, self.texts, strict=True))[1:]:
            rest.add(number, name, text)
        return rest

    def __len__(self) -> int:
        return len(self.numbers)


def split_line(text: str) -> tuple[str, str] | None:
    """The path and the label of a line; None where there are not both.

    >>> split_line("my videos/b 2.mp4 riding a horse"), split_line('"x, y.mp4",red'), split_line("a.mp4")
    (('my videos/b 2.mp4', 'riding a horse'), ('x, y.mp4', 'red'), None)
    """
    name, separator, last = text.rpartition(" ")
    suffix = name[name.rfind(".") :].lower()
    if separator and last.isalnum() and text[0] not in "\"'" and suffix in VIDEO_SUFFIXES:
        return name, last  # most lines, by a twentieth of the work
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
) -> tuple[ListLines, list[Problem], list[str]]:
    """The lines of a list, those that cannot be split, and how the list was read where that is not plain.

    `columns_known`: all numbers after a path are labels, however many each line has.

    Raises:
        ValueError: numbers between path and label that can be labels or something else.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    lines = ListLines()
    bare: list[tuple[int, str]] = []
    for number, line in enumerate(plain_lines(path), start=1):
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
            lines.add(number, *split)
    if len(lines) and _is_header(lines, root):
        number, name, label = lines.numbers[0], lines.names[0], lines.texts[0]
        notes.append(f"{path}: line {number} ({name} {label}) is read as a header")
        lines = lines.after_the_first()
    if (
        bare
        and not len(lines)
        and classes is not None
        and all(Path(name).parent.name in classes for _, name in bare)
    ):
        notes.append(f"{path}: its lines have no labels; the folder of each video is read as its class")
        for number, name in bare:
            lines.add(number, name, Path(name).parent.name)
        lines.labels.update({text: (text,) for text in lines.texts.values})
        return lines, problems, notes
    problems += [
        Problem(f"{path}:{number}", f"no label in {_short(text)!r}: expected `path label`")
        for number, text in bare
    ]
    _cut_labels(path, lines, classes, notes, columns_known)
    return lines, problems, notes


def _is_header(lines: ListLines, root: Path) -> bool:
    """Whether the first line names the columns: known words, or no file where all others have numbers."""
    name, label = lines.names[0], lines.texts[0]
    if Path(name).suffix.lower() in VIDEO_SUFFIXES or not isinstance(find_file(name, root), str):
        return False
    if name.lower() in PATH_COLUMNS and label.lower() in LABEL_COLUMNS:
        return True
    others = [lines.texts.values[code] for code in set(lines.texts.numbers[1:])]
    return _numbers(label) is None and bool(others) and all(_numbers(other) is not None for other in others)


def _cut_labels(
    path: Path, lines: ListLines, classes: Sequence[str] | None, notes: list[str], columns_known: bool
) -> None:
    """Cut label texts into labels: several numbers are several labels, or other columns and a label."""
    known = frozenset(classes or ())
    numbers = {label: None if label in known else _numbers(label) for label in lines.texts.values}
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
            lines.labels.update({label: (label.split()[-1],) for label in numbers})
            return
        raise ValueError(
            f"{path}: each line has {width} numbers after the path (line {lines.numbers[0]}: "
            f"{_short(lines.names[0])} {lines.texts[0]}). "
            f"They can be read two ways: {width} labels a video, or one label after other columns, such as a "
            "number of frames. Write several labels with commas (a.mp4 0,3), or leave the other columns out"
        )
    lines.labels.update({label: (label,) if parts is None else parts for label, parts in numbers.items()})


def _numbers(label: str) -> tuple[str, ...] | None:
    """The whole numbers that a label text consists of; None if it has anything else."""
    parts = tuple(part for part in re.split(r"[\s,;]+", label) if part)
    return parts if parts and all(isinstance(number_of(part), int) for part in parts) else None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text)} characters)"
