"""Many videos in a few arrays: nothing a row that Python would have to count.

A list of 250,000 videos as objects takes 100 MB, which every loader process copies as it looks at them, since
looking at an object writes its count of references. Here rows are made when they are asked for.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

__all__ = ["Codes", "Hashes", "Member", "RecordTable", "Texts", "VideoRecord"]

_EXACTLY = "surrogatepass"  # in the C locale a name may be nothing but surrogates, in any order
_Value = TypeVar("_Value", bound=Hashable)


class Member(NamedTuple):
    """Where in a shard a video lies: the tar file, and the bytes of it."""

    shard: str
    offset: int
    size: int


class VideoRecord(NamedTuple):
    """One video and what it shows.

    Attributes:
        path: the file; of a video in a shard, the shard's path and the video's name in it.
        labels: class numbers; several, or none, where videos are multi-label.
        start_seconds, end_seconds: the labelled segment; None: from the first frame, to the last.
        exact_seconds: the segment is meant as it stands. Otherwise, as in Kinetics, whose public copies are
            cut already, a file that lasts no longer than its segment is used whole.
        group: what videos that are drawn or judged together have in common; None where nobody asked.
        part: what it has in the columns that figures are broken down by; empty where nobody asked.
        actions: (class, start, end) in seconds of the file, where labels belong to stretches of it.
        member: where its bytes are, if it is part of a shard.
    """

    path: str
    labels: tuple[int, ...]
    start_seconds: float | None = None
    end_seconds: float | None = None
    exact_seconds: bool = False
    group: str | None = None
    part: tuple[str, ...] = ()
    actions: tuple[tuple[int, float, float], ...] = ()
    member: Member | None = None

    def labels_between(self, start_seconds: float, end_seconds: float) -> tuple[int, ...]:
        """The labels of what happens within these seconds of the file.

        >>> VideoRecord("a.mp4", (0, 3), actions=((0, 1.0, 2.0), (3, 4.0, 9.0))).labels_between(2.0, 3.5)
        (0,)
        """
        there = {label for label, start, end in self.actions if start <= end_seconds and end >= start_seconds}
        return tuple(sorted(there))


class Texts(Sequence[str]):
    """Texts in one buffer of bytes.

    >>> texts = Texts(["a.mp4", "caf\\udce9.mp4"])               # a name that is no UTF-8
    >>> texts[1], len(texts), list(texts) == ["a.mp4", "caf\\udce9.mp4"]
    ('caf\\udce9.mp4', 2, True)
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """One more."""
        self._bytes += text.encode("utf-8", _EXACTLY)
        self._ends.append(len(self._bytes))

    def to_arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """All bytes, and how many each text has."""
        return np.frombuffer(bytes(self._bytes), np.uint8), np.diff(np.array(self._ends))

    @classmethod
    def from_arrays(cls, data: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64]) -> Texts:
        """The texts that `to_arrays` gave."""
        texts = cls()
        texts._bytes = bytearray(data.tobytes())
        texts._ends = _array("q", [0, *np.cumsum(lengths).tolist()])
        return texts

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # raises where it is outside
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode("utf-8", _EXACTLY)

    def __iter__(self) -> Iterator[str]:
        begin, held = 0, self._bytes
        ends = iter(self._ends)
        next(ends)
        for end in ends:
            yield held[begin:end].decode("utf-8", _EXACTLY)
            begin = end


class Hashes:
    """Which texts there were, by their hashes: 8 bytes each, where a set takes 150.

    >>> hashes = Hashes(["a.mp4", "b.mp4", "a.mp4"])
    >>> list(hashes.places("a.mp4")), "c.mp4" in hashes
    ([0, 2], False)

    Two texts of one hash are a matter of 1 in 10^14 for a million of them; whoever must be sure compares the
    text at the place.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        hashes = np.fromiter(map(hash, texts), np.int64)
        order = np.argsort(hashes, kind="stable")
        # Arrays of Python's, whose numbers are read one by one faster.
        self._hashes, self._order = array("q", hashes[order].tobytes()), array("q", order.tobytes())

    def __contains__(self, text: str) -> bool:
        wanted = hash(text)
        place = bisect_left(self._hashes, wanted)
        return place < len(self._hashes) and self._hashes[place] == wanted

    def places(self, text: str) -> Iterator[int]:
        """Where it stood, in order."""
        wanted = hash(text)
        place = bisect_left(self._hashes, wanted)
        while place < len(self._hashes) and self._hashes[place] == wanted:
            yield self._order[place]
            place += 1


class Codes(Generic[_Value]):
    """Values of which few are different, each held once.

    >>> codes = Codes(["walk", "run", "walk"])
    >>> codes.numbers.tolist(), codes.values, codes[2]
    ([0, 1, 0], ['walk', 'run'], 'walk')
    """

    def __init__(self, values: Iterable[_Value] = ()) -> None:
        self.numbers = array("i")
        self.values: list[_Value] = []
        self._known: dict[_Value, int] = {}
        for value in values:
            self.append(value)

    @classmethod
    def of(cls, values: Iterable[_Value], numbers: npt.NDArray[np.integer[Any]]) -> Codes[_Value]:
        """The codes with these values for 0, 1, 2 ..."""
        codes = cls()
        codes.values = list(values)
        codes._known = {value: number for number, value in enumerate(codes.values)}
        codes.numbers = _array("i", numbers)
        return codes

    def append(self, value: _Value) -> None:
        """One more."""
        number = self._known.get(value)
        if number is None:
            number = self._known[value] = len(self.values)
            self.values.append(value)
        self.numbers.append(number)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> _Value:
        return self.values[self.numbers[index]]

    def __iter__(self) -> Iterator[_Value]:
        values = self.values
        return (values[number] for number in self.numbers)


class RecordTable(Sequence[VideoRecord]):
    """Records, row by row; those who read lists `add` to it, and nobody does later.

    >>> table = RecordTable([VideoRecord("a.mp4", (1,)), VideoRecord("b.mp4", (0, 2), end_seconds=3.0)])
    >>> table[1] == VideoRecord("b.mp4", (0, 2), end_seconds=3.0), list(table) == [table[0], table[1]]
    (True, True)
    """

    def __init__(self, records: Iterable[VideoRecord] = ()) -> None:
        self.paths = Texts()
        self._labels = array("i")
        self._exact = bytearray()
        # What most tables do not have: made at the first row that has it.
        self._label_ends: array[int] | None = None  # where every row has one label, it is not needed
        self._seconds: array[float] | None = None  # start and end; NaN for none
        self._groups: Codes[str | None] | None = None
        self._parts: Codes[tuple[str, ...]] | None = None
        self._actions: _Actions | None = None
        self._members: _Members | None = None
        for record in records:
            self.add(*record)

    def add(
        self,
        path: str,
        labels: tuple[int, ...],
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        exact_seconds: bool = False,
        group: str | None = None,
        part: tuple[str, ...] = (),
        actions: tuple[tuple[int, float, float], ...] = (),
        member: Member | None = None,
    ) -> None:
        """One more row; see `VideoRecord`."""
        rows = len(self.paths)
        self.paths.append(path)
        self._exact.append(exact_seconds)
        if len(labels) != 1 and self._label_ends is None:
            self._label_ends = array("q", range(rows + 1))
        self._labels.extend(labels)
        if self._label_ends is not None:
            self._label_ends.append(len(self._labels))
        if self._seconds is None and not (start_seconds is None and end_seconds is None):
            self._seconds = array("d", [math.nan]) * (2 * rows)
        if self._seconds is not None:
            self._seconds.append(math.nan if start_seconds is None else start_seconds)
            self._seconds.append(math.nan if end_seconds is None else end_seconds)
        if group is not None and self._groups is None:
            self._groups = Codes([None] * rows)
        if self._groups is not None:
            self._groups.append(group)
        if part and self._parts is None:
            self._parts = Codes([()] * rows)
        if self._parts is not None:
            self._parts.append(part)
        if actions and self._actions is None:
            self._actions = _Actions(rows)
        if self._actions is not None:
            self._actions.append(actions)
        if member is not None and self._members is None:
            self._members = _Members(rows)
        if self._members is not None:
            self._members.append(member)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[VideoRecord]: ...
    def __getitem__(self, index: int | slice) -> VideoRecord | list[VideoRecord]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        start, end = self._seconds_of(row)
        return VideoRecord(
            self.paths[row],
            self.labels_of(row),
            start,
            end,
            bool(self._exact[row]),
            None if self._groups is None else self._groups[row],
            () if self._parts is None else self._parts[row],
            () if self._actions is None else self._actions[row],
            None if self._members is None else self._members[row],
        )

    def __iter__(self) -> Iterator[VideoRecord]:
        if self._only_paths_and_labels:
            for path, label, exact in zip(self.paths, self._labels, self._exact, strict=True):
                yield VideoRecord(path, (label,), None, None, bool(exact))
            return
        for row in range(len(self)):
            yield self[row]

    def rows(self) -> Iterator[tuple[str, tuple[int, ...], float | None, float | None]]:
        """Path, labels, start and end of each, in a quarter of the time that whole records take."""
        labels: Iterable[tuple[int, ...]] = zip(self._labels, strict=True)
        if self._label_ends is not None:
            labels = map(self.labels_of, range(len(self)))
        if self._seconds is None:
            return ((path, own, None, None) for path, own in zip(self.paths, labels, strict=True))
        seconds = map(self._seconds_of, range(len(self)))
        return (
            (path, own, start, end)
            for path, own, (start, end) in zip(self.paths, labels, seconds, strict=True)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordTable):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it grows

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The labels of all rows, one after the other."""
        return np.array(self._labels, dtype=np.int32)

    def labels_of(self, row: int) -> tuple[int, ...]:
        """The labels of one row."""
        if self._label_ends is None:
            return (self._labels[row],)
        return tuple(self._labels[self._label_ends[row] : self._label_ends[row + 1]])

    def first_without_one_label(self) -> VideoRecord | None:
        """The first record with several labels, or none."""
        if self._label_ends is None:
            return None
        rows = np.flatnonzero(np.diff(np.array(self._label_ends)) != 1)
        return self[int(rows[0])] if len(rows) else None

    def groups(self) -> list[str | None]:
        """The group of each row."""
        return [None] * len(self) if self._groups is None else list(self._groups)

    def parts(self) -> list[tuple[str, ...]]:
        """The part of each row."""
        return [()] * len(self) if self._parts is None else list(self._parts)

    def actions(self) -> Iterator[tuple[tuple[int, float, float], ...]]:
        """The actions of each row."""
        if self._actions is None:
            return itertools.repeat((), len(self))
        return map(self._actions.__getitem__, range(len(self)))

    def without(self, rows: Iterable[int]) -> RecordTable:
        """The table without these rows."""
        left_out = set(rows)
        return RecordTable(record for row, record in enumerate(self) if row not in left_out)

    def to_arrays(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, list[Any]]]:
        """The table as arrays, and the values that codes in them stand for, as plain lists for JSON."""
        arrays: dict[str, npt.NDArray[Any]] = {"exact": np.frombuffer(bytes(self._exact), np.bool_)}
        values: dict[str, list[Any]] = {}
        arrays["path_bytes"], arrays["path_lengths"] = self.paths.to_arrays()
        arrays["labels"] = self.labels
        if self._label_ends is not None:
            arrays["label_counts"] = np.diff(np.array(self._label_ends))
        if self._seconds is not None:
            arrays["seconds"] = np.array(self._seconds)
        for name, codes in (("groups", self._groups), ("parts", self._parts)):
            if codes is not None:
                arrays[name], values[name] = np.array(codes.numbers), list(codes.values)
        if self._actions is not None:
            arrays |= self._actions.to_arrays()
        if self._members is not None:
            arrays["shards"] = np.array(self._members.shards.numbers)
            arrays["places"] = np.array(self._members.places)
            values["shards"] = list(self._members.shards.values)
        return arrays, values

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, list[Any]]
    ) -> RecordTable:
        """The table that `to_arrays` gave.

        >>> table = RecordTable([VideoRecord("a.mp4", (1,), part=("x",)), VideoRecord("b.mp4", ())])
        >>> RecordTable.from_arrays(*table.to_arrays()) == table
        True
        """
        table = cls()
        table.paths = Texts.from_arrays(arrays["path_bytes"], arrays["path_lengths"])
        table._exact = bytearray(arrays["exact"].tobytes())
        table._labels = _array("i", arrays["labels"])
        if "label_counts" in arrays:
            table._label_ends = _array("q", [0, *np.cumsum(arrays["label_counts"]).tolist()])
        if "seconds" in arrays:
            table._seconds = _array("d", arrays["seconds"])
        if "groups" in arrays:
            table._groups = Codes.of(values["groups"], arrays["groups"])
        if "parts" in arrays:
            table._parts = Codes.of([tuple(part) for part in values["parts"]], arrays["parts"])
        if "action_counts" in arrays:
            table._actions = _Actions.from_arrays(arrays)
        if "shards" in arrays:
            table._members = _Members(0)
            table._members.shards = Codes.of(values["shards"], arrays["shards"])
            table._members.places = _array("q", arrays["places"])
        return table

    @property
    def _only_paths_and_labels(self) -> bool:
        rare = (self._label_ends, self._seconds, self._groups, self._parts, self._actions, self._members)
        return all(column is None for column in rare)

    def _seconds_of(self, row: int) -> tuple[float | None, float | None]:
        if self._seconds is None:
            return None, None
        start, end = self._seconds[2 * row : 2 * row + 2]
        return (None if math.isnan(start) else start), (None if math.isnan(end) else end)


class _Actions:
    """(class, start, end) of each row, end to end."""

    def __init__(self, rows: int) -> None:
        self._classes = array("i")
        self._seconds = array("d")
        self._ends = array("q", [0]) * (rows + 1)

    def append(self, actions: tuple[tuple[int, float, float], ...]) -> None:
        for label, start, end in actions:
            self._classes.append(label)
            self._seconds.extend((start, end))
        self._ends.append(len(self._classes))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "action_classes": np.array(self._classes),
            "action_seconds": np.array(self._seconds),
            "action_counts": np.diff(np.array(self._ends)),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> _Actions:
        actions = cls(0)
        actions._classes = _array("i", arrays["action_classes"])
        actions._seconds = _array("d", arrays["action_seconds"])
        actions._ends = _array("q", [0, *np.cumsum(arrays["action_counts"]).tolist()])
        return actions

    def __getitem__(self, row: int) -> tuple[tuple[int, float, float], ...]:
        span = range(self._ends[row], self._ends[row + 1])
        return tuple((self._classes[i], self._seconds[2 * i], self._seconds[2 * i + 1]) for i in span)


class _Members:
    """Shard, offset and size of each row; size -1 for a file of its own."""

    def __init__(self, rows: int) -> None:
        self.shards: Codes[str] = Codes([""] * rows)
        self.places = array("q", [0, -1]) * rows

    def append(self, member: Member | None) -> None:
        self.shards.append("" if member is None else member.shard)
        self.places.extend((0, -1) if member is None else member[1:])

    def __getitem__(self, row: int) -> Member | None:
        offset, size = self.places[2 * row : 2 * row + 2]
        return None if size < 0 else Member(self.shards[row], offset, size)


def _array(kind: str, numbers: Any) -> array[Any]:
    return array(kind, np.asarray(numbers, dtype=np.dtype(kind)).tobytes())
