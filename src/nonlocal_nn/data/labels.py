"""One reading for all labels of a file: names, or positions in the list of classes.

Read line by line, "10" could be the class called 10 in one line and the tenth position in the next. So the
reading is decided once for all labels of a file, and what fits two readings is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nonlocal_nn._names import nearest_names
from nonlocal_nn._text import read_lines

__all__ = ["ClassFile", "LabelReading", "decide_labels", "number_of", "read_class_file", "read_classes"]

Number = int | float


@dataclass(frozen=True)
class LabelReading:
    """What each label of a file means.

    Attributes:
        classes: names, in order.
        indices: the position in `classes` of each label that has one.
        first: the number of the first class where labels are positions (0 or 1); None where they are names.
        note: the reading in one line, where it is not the plain one.
    """

    classes: tuple[str, ...]
    indices: Mapping[str, int]
    first: int | None = None
    note: str | None = None

    def why_not(self, label: str) -> str:
        """Say why a label without an index has none."""
        value = number_of(label)
        names = [number_of(name) for name in self.classes]
        first = self.first if self.first is not None else 0
        if isinstance(value, int) and (self.first is not None or names == list(range(len(names)))):
            return f"label {value} is outside {first} .. {first + len(self.classes) - 1}"
        near = nearest_names(label, self.classes)
        return f"unknown class {label!r}" + (f" (nearest: {', '.join(near)})" if near else "")


def number_of(text: str) -> Number | None:
    """The number that a text writes, an int where it is whole; None where it is none.

    >>> number_of("07"), number_of("7.0"), number_of("-1"), number_of("2.5"), number_of("walk")
    (7, 7, -1, 2.5, None)
    >>> number_of("nan") is None and number_of("1_000") is None      # words, not numbers
    True
    """
    if not text.strip() or "_" in text:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def decide_labels(
    labels: Iterable[str],
    classes: Sequence[str] | None,
    *,
    source: str,
    first: int | None = None,
    names_only: bool = False,
) -> LabelReading:
    """Decide what the labels of a file mean, once for all of them.

    >>> reading = decide_labels(["0.0", "1.0", "10.0", "2.0"], None, source="train.csv")
    >>> reading.classes[:3], reading.indices["10.0"]                  # compared by value
    (('0', '1', '2'), 10)
    >>> decide_labels(["1", "2", "3"], ["archery", "biking", "diving"], source="train.txt").note
    'train.txt: labels 1 to 3 for 3 classes: counted from 1, so that 1 is archery'

    Args:
        labels: all labels of the file.
        classes: the names in order, if they are known; else they are taken from the labels.
        source: the file, for messages.
        first: the number of the first class, where it is known (a class file with numbers says it).
        names_only: labels are never positions (folders).

    Raises:
        ValueError: the labels fit two readings that disagree; both are in the text.
    """
    found = tuple(dict.fromkeys(labels))
    for label in found:
        if any("\udc80" <= letter <= "\udcff" for letter in label):
            shown = label.encode(errors="replace").decode()
            raise ValueError(f"{source}: the label {shown!r} is not UTF-8; save the file as UTF-8")
    if classes is None:
        return _classes_of(found, source)
    known = tuple(classes)
    names = _by_name(found, known)
    whole = {label: value for label in found if isinstance(value := number_of(label), int)}
    if names_only or not found or len(whole) < len(found):
        return LabelReading(known, names)
    if all(number_of(name) is not None for name in known):
        return _among_numbers(whole, names, known, source)
    return _positions(whole, names, known, source, first)


def _classes_of(found: tuple[str, ...], source: str) -> LabelReading:
    """The classes that the labels themselves name."""
    values = {label: number_of(label) for label in found}
    whole = {label: value for label, value in values.items() if isinstance(value, int)}
    if found and len(whole) == len(found):
        numbers = {value for value in whole.values() if value >= 0}
        top = max(numbers, default=-1)
        low = 1 if numbers == set(range(1, top + 1)) else 0
        classes = tuple(str(number) for number in range(low, top + 1))
        note = None
        if low == 1:
            note = f"{source}: labels 1 to {top}: {top} classes, counted from 1"
        elif numbers and 0 not in numbers:
            note = (
                f"{source}: labels {_some(sorted(numbers))} are read as positions from 0, and no video has "
                "label 0; if they are names, list them in a class file, one a line"
            )
        indices = {label: value - low for label, value in whole.items() if value >= low}
        return LabelReading(classes, indices, note=note)
    # The shortest text of equal numbers names the class; numbers are sorted by value, names by text.
    by_key: dict[Number | str, str] = {}
    for label in sorted(found, key=lambda label: (len(label), label)):
        value = values[label]
        by_key.setdefault(label if value is None else value, label)
    numeric = all(value is not None for value in values.values())
    keys = sorted(by_key, key=(lambda key: key) if numeric else lambda key: by_key[key])
    classes = tuple(by_key[key] for key in keys)
    place = {key: number for number, key in enumerate(keys)}
    indices = {label: place[label if value is None else value] for label, value in values.items()}
    note = None
    if whole and not numeric:
        note = (
            f"{source}: labels are names, since not all are numbers; {_some(sorted(whole))} "
            f"{'is a name' if len(whole) == 1 else 'are names'} too"
        )
    return LabelReading(classes, indices, note=note)


def _by_name(found: Iterable[str], known: tuple[str, ...]) -> dict[str, int]:
    """The labels that are class names, numbers compared by value."""
    exact = {name: index for index, name in enumerate(known)}
    by_value: dict[Number, int | None] = {}
    for index, name in enumerate(known):
        value = number_of(name)
        if value is not None:
            by_value[value] = None if value in by_value else index  # "1" beside "01": the text decides
    indices = {}
    for label in found:
        value = number_of(label)
        place = exact.get(label) if value is None or label in exact else by_value.get(value)
        if place is not None:
            indices[label] = place
    return indices


def _among_numbers(
    whole: Mapping[str, int], names: dict[str, int], known: tuple[str, ...], source: str
) -> LabelReading:
    """Numbers as labels, where the names of the classes are numbers too: compared by value."""
    count = len(known)
    in_order = [number_of(name) for name in known] == list(range(count))
    if len(names) == len(whole):
        moved = [label for label, value in whole.items() if names[label] != value]
        note = None
        if moved:
            note = (
                f"{source}: labels are compared with the names of the classes, {_some(known)}, by value, "
                f"so that {moved[0]} is the class {known[names[moved[0]]]}"
            )
        return LabelReading(known, names, note=note)
    for first in (0, 1):
        inside = all(first <= value < count + first for value in whole.values())
        if not inside or (first == 0 and in_order):
            continue
        stranger = next(label for label in whole if label not in names)
        raise ValueError(
            f"{source}: its labels can be read two ways: as names of the classes ({_some(known)}), of which "
            f"{stranger} is none, or as positions counted from {first}, in which {stranger} is the class "
            f"{known[whole[stranger] - first]}. Write the names of the classes into the file"
        )
    return LabelReading(known, names)


def _positions(
    whole: Mapping[str, int], names: dict[str, int], known: tuple[str, ...], source: str, first: int | None
) -> LabelReading:
    """Numbers as labels, where not all names of the classes are numbers."""
    count = len(known)
    values = set(whole.values())
    if names:  # some classes are called like numbers
        inside = all(0 <= value < count for value in values)
        moved = next((label for label in names if names[label] != whole[label]), None)
        if inside and moved is not None:
            raise ValueError(
                f"{source}: its labels can be read two ways: {moved} is the name of a class, and counted "
                f"from 0 it is the class {known[whole[moved]]}. Write the names of the classes into the file"
            )
        if not inside:
            return LabelReading(known, names)
    note = None
    if first is not None:
        note = (
            f"{source}: labels are positions counted from {first}, as the class file says" if first else None
        )
    elif 0 not in values and max(values) == count and min(values) >= 1:
        first = 1
        note = (
            f"{source}: labels {min(values)} to {count} for {count} classes: counted from 1, so that "
            f"1 is {known[0]}"
        )
    else:
        first = 0
        if min(values) >= 1 and max(values) < count:
            note = (
                f"{source}: labels {min(values)} to {max(values)} for {count} classes are read as positions "
                f"counted from 0, so that 0, which no video has, is {known[0]}. If they are counted from 1, "
                "write the names of the classes into the file, or number the lines of the class file from 1"
            )
    indices = {label: value - first for label, value in whole.items() if 0 <= value - first < count}
    return LabelReading(known, indices, first, note)


def _some(values: Collection[object], most: int = 4) -> str:
    """The first and the last of many."""
    texts = [str(value) for value in values]
    return ", ".join(texts) if len(texts) <= most else f"{', '.join(texts[: most - 1])} .. {texts[-1]}"


@dataclass(frozen=True)
class ClassFile:
    """The names of a class file in order, and the number of the first, where the file has numbers."""

    names: tuple[str, ...]
    first: int | None = None


def read_class_file(path: str | Path) -> ClassFile:
    """Read a class file: a name a line, `number name` a line (UCF101's classInd.txt), or JSON.

    Lines are `number name`, or `number,name`, where every line begins with a number and the numbers are 0, 1,
    2 ... or 1, 2, 3 ... in any order. JSON is a list of names, or an object of names and such numbers.
    Empty lines at the end are ignored.

    Raises:
        ValueError: no names, an empty line between them, a name twice, or numbers with gaps.
    """
    lines = [line.strip() for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines):
        raise ValueError(f"{path}: one class name a line was expected, and no empty line between them")
    if lines[0][0] in "[{":
        numbers, names = _json_names(path, "\n".join(lines))
    else:
        numbers, names = _numbered(lines)
    first: int | None = None
    if numbers is not None:
        first = min(numbers)
        if first not in (0, 1) or sorted(numbers) != list(range(first, first + len(numbers))):
            raise ValueError(
                f"{path}: the classes are numbered {_some(sorted(numbers))}; expected 0, 1, 2 ... or "
                "1, 2, 3 ... without gaps"
            )
        names = [name for _, name in sorted(zip(numbers, names, strict=True))]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{path}: class names occur twice: {', '.join(twice)}")
    return ClassFile(tuple(names), first)


def read_classes(path: str | Path) -> tuple[str, ...]:
    """The class names of a file, in order; see `read_class_file`."""
    return read_class_file(path).names


def _numbered(lines: list[str]) -> tuple[list[int] | None, list[str]]:
    pairs = []
    for line in lines:
        number, _, name = line.replace("\t", " ").replace(",", " ", 1).partition(" ")
        if not number.isdecimal() or not name.strip():
            return None, lines
        pairs.append((int(number), name.strip().strip('"')))
    if len({number for number, _ in pairs}) < len(pairs):
        return None, lines  # such as "2 hands", "2 feet"
    return [number for number, _ in pairs], [name for _, name in pairs]


def _json_names(path: str | Path, text: str) -> tuple[list[int] | None, list[str]]:
    try:
        read = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: begins like JSON, and is none: {error}") from None
    if isinstance(read, list) and all(isinstance(name, str) for name in read):
        return None, read
    if isinstance(read, dict):
        numbers = [number_of(str(number)) for number in read.values()]
        whole = [number for number in numbers if isinstance(number, int)]
        if len(whole) == len(numbers):
            return whole, [name.strip('"') for name in read]
    raise ValueError(f"{path}: expected a JSON list of names, or an object of names and numbers")
