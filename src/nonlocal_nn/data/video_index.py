"""What a scan learned of many videos, kept in one file: `nonlocal scan SOURCE --index FILE`.

To find frame n of a video, a reader goes through all of its packets, which means through the whole file. The
index keeps what that gives (frame times, key frames, the count of frames), so that a loader opens a video and
goes straight to its clip. A video whose size or time of change is not the kept one is read as without an
index.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> _ = (folder / "a.mp4").write_text("no video")
>>> index = VideoIndex.of([look(str(folder / "a.mp4"))])
>>> index.write(folder / "index.npz")
>>> known = KnownVideos.of(folder / "index.npz", Manifest.of_paths([folder / "a.mp4", folder / "b.mp4"]))
>>> known.broken()[0].reason.split(":")[0], known.changes
('not a video', '1 of 2 videos is not in it')
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nonlocal_nn._files import write_whole
from nonlocal_nn.data.decode import DecodeCheck, VideoInfo, VideoReader
from nonlocal_nn.data.errors import Problem, UnavailableError, VideoError
from nonlocal_nn.data.packets import FrameTable
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.data.table import Texts

__all__ = ["KnownVideos", "Looked", "VideoIndex", "absolute", "look", "stamp"]

_VERSION = 1
_INFO = tuple((field.name, str(field.type)) for field in fields(VideoInfo) if field.name != "path")
_TEXTS = ("reason", *(name for name, kind in _INFO if kind == "str"))
_FLOATS = tuple(name for name, kind in _INFO if kind == "float")
_WHOLE = ("size", "mtime_ns", *(name for name, kind in _INFO if kind in {"int", "bool"}))
_CHECK = ("decoded", "damaged", "sizes")
# The times of the frames are first, first + step, ... where `steps` is empty.
_TABLE = (
    *("listed", "exact", "seekable", "starts", "first_packet_pts", "last_duration"),
    *("counted", "pts_count", "pts_first", "pts_step"),
)
_INTS = (*_WHOLE, *_CHECK, *_TABLE)
_NUMBERS = ("steps", "key_pts", "key_seek")
_UTF8 = ("utf-8", "surrogatepass")


class Looked(NamedTuple):
    """What a scan found out about one video.

    Attributes:
        path: the file.
        stamp: its size in bytes and the time of its last change in nanoseconds, before it was looked at.
            None: it is not there, or may not be read.
        reason: why it is broken; "" where it is not.
        check: what decoding gave; None where it is broken.
        table: its frames; None where it cannot even be opened, or they cannot be counted.
    """

    path: str
    stamp: tuple[int, int] | None
    reason: str
    check: DecodeCheck | None = None
    table: FrameTable | None = None


def stamp(path: str) -> tuple[int, int] | None:
    """Size and time of the last change of a file, by which a changed one is told; None where there is none.

    >>> stamp("no/such/file") is None
    True
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - of 250,000 paths, without an object for each
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def absolute(path: str) -> str:
    """The path from the root, without `..`.

    >>> absolute("/videos/../clips/a.mp4")
    '/clips/a.mp4'
    """
    return os.path.abspath(path)  # noqa: PTH100 - of 250,000 paths, without an object for each


def look(path: str) -> Looked:
    """Decode a video to its end."""
    before = stamp(path)
    try:
        with VideoReader(path) as reader:
            table = reader.table
            try:
                check = reader.check()
            except VideoError as error:
                return Looked(path, before, error.reason, None, table if table.exact else None)
            counted = None if table.exact else reader.num_frames
            return Looked(path, before, "", check, replace(table, counted=counted))
    except UnavailableError as error:  # the file itself may be whole
        return Looked(path, None, error.reason)
    except VideoError as error:
        return Looked(path, before, error.reason)


@dataclass(frozen=True)
class _Ragged:
    """Rows of different lengths, one after the other."""

    values: npt.NDArray[Any]
    ends: npt.NDArray[np.int64]  # one more than rows; the first is 0

    @classmethod
    def of(cls, rows: Sequence[npt.NDArray[Any]], kind: type[np.generic]) -> _Ragged:
        lengths = [len(row) for row in rows]
        values = np.concatenate([np.empty(0, kind), *rows]).astype(kind, copy=False)
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        return self.values[self.ends[row] : self.ends[row + 1]]

    def text(self, row: int) -> str:
        return self[row].tobytes().decode(*_UTF8)

    def take(self, rows: npt.NDArray[np.int64]) -> _Ragged:
        lengths = np.diff(self.ends)[rows]
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        places = np.arange(ends[-1]) + np.repeat(self.ends[:-1][rows] - ends[:-1], lengths)
        return _Ragged(self.values[places], ends)

    def then(self, other: _Ragged) -> _Ragged:
        return _Ragged(
            np.concatenate([self.values, other.values]),
            np.concatenate([self.ends, other.ends[1:] + self.ends[-1]]),
        )


class VideoIndex:
    """Rows of what `look` gave, in arrays: 250,000 videos are a few of them, not millions of objects.

    Attributes:
        names: the absolute path of each video.
    """

    def __init__(
        self,
        names: Sequence[str],
        flat: dict[str, npt.NDArray[Any]],
        ragged: dict[str, _Ragged],
    ) -> None:
        self.names = names
        self._flat = flat
        self._ragged = ragged

    @classmethod
    def of(cls, found: Iterable[Looked]) -> VideoIndex:
        """The videos that are there, whole or not."""
        kept = [looked for looked in found if looked.stamp is not None]
        rows = [_row(looked) for looked in kept]
        flat: dict[str, npt.NDArray[Any]] = {
            name: np.array([row.get(name, 0) for row in rows], np.int64) for name in _INTS
        }
        flat |= {name: np.array([row.get(name, 0) for row in rows], np.float64) for name in _FLOATS}
        ragged = {
            name: _Ragged.of(
                [np.frombuffer(str(row.get(name, "")).encode(*_UTF8), np.uint8) for row in rows], np.uint8
            )
            for name in _TEXTS
        }
        nothing = np.empty(0, np.int64)
        ragged |= {name: _Ragged.of([row.get(name, nothing) for row in rows], np.int64) for name in _NUMBERS}
        return cls([absolute(looked.path) for looked in kept], flat, ragged)

    @classmethod
    def read(cls, path: str | Path) -> VideoIndex:
        """What `write` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no index, is damaged, or is of a later release.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no such index: {file}; `nonlocal scan SOURCE --index {file}` makes one")
        try:
            with np.load(file) as stored:
                arrays = dict(stored)
            version = int(arrays["version"])
            if version != _VERSION:
                raise ValueError(f"it is of version {version}, this release reads version {_VERSION}")
            flat = {name: arrays[name] for name in (*_INTS, *_FLOATS)}
            ragged = {
                name: _Ragged(arrays[name], np.concatenate([[0], np.cumsum(arrays[f"{name}_lengths"])]))
                for name in (*_TEXTS, *_NUMBERS)
            }
            roots = [str(arrays[name]) for name in ("root", "root_before")]
            names = list(Texts.from_arrays(arrays["names"], arrays["names_lengths"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{file} cannot be read as an index of videos ({error}); remove it and make it anew with "
                "`nonlocal scan SOURCE --index`"
            ) from None
        beside, before = absolute(f"{file.parent}/{roots[0]}"), roots[1]
        root = before if Path(before).is_dir() and not Path(beside).is_dir() else beside
        return cls([f"{root.rstrip('/')}/{name}" for name in names], flat, ragged)

    def write(self, path: str | Path) -> None:
        """Into one file, whole or not at all. Videos and index may be moved together."""
        file = Path(path)
        folder = absolute(str(file.parent))
        folders = {name[: name.rfind(os.sep) + 1] for name in self.names}
        root = os.path.commonpath(folders) if folders else folder
        names, names_lengths = Texts(os.path.relpath(name, root) for name in self.names).to_arrays()
        arrays: dict[str, npt.NDArray[Any]] = {
            "version": np.array(_VERSION),
            "root": np.array(os.path.relpath(root, folder)),
            "root_before": np.array(root),
            "names": names,
            "names_lengths": names_lengths,
            **self._flat,
        }
        for name, rows in self._ragged.items():
            arrays[name], arrays[f"{name}_lengths"] = rows.values, np.diff(rows.ends)

        def save(partial: Path) -> None:
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]

        write_whole(file, save)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> VideoIndex:
        """The index of some of the videos."""
        chosen = np.array(rows, np.int64)
        return VideoIndex(
            [self.names[row] for row in rows],
            {name: column[chosen] for name, column in self._flat.items()},
            {name: column.take(chosen) for name, column in self._ragged.items()},
        )

    def then(self, other: VideoIndex) -> VideoIndex:
        """The videos of this index and those of another."""
        return VideoIndex(
            [*self.names, *other.names],
            {name: np.concatenate([column, other._flat[name]]) for name, column in self._flat.items()},
            {name: column.then(other._ragged[name]) for name, column in self._ragged.items()},
        )

    def __getitem__(self, row: int) -> Looked:
        reason = self._ragged["reason"].text(row)
        table = self.table(row)
        if reason:
            return Looked(self.names[row], self.stamp(row), reason, None, table)
        kinds = {"int": int, "float": float, "bool": bool}
        told: dict[str, Any] = {
            name: self._ragged[name].text(row) if kind == "str" else kinds[kind](self._flat[name][row])
            for name, kind in _INFO
        }
        info = VideoInfo(path=self.names[row], **told)
        check = DecodeCheck(info, *(int(self._flat[name][row]) for name in _CHECK))
        return Looked(self.names[row], self.stamp(row), "", check, table)

    def __iter__(self) -> Iterator[Looked]:
        return (self[row] for row in range(len(self)))

    def stamp(self, row: int) -> tuple[int, int]:
        """Size and time of change of a video when it was looked at."""
        return int(self._flat["size"][row]), int(self._flat["mtime_ns"][row])

    def reason(self, row: int) -> str:
        """Why a video cannot be used; "" where it can."""
        return self._ragged["reason"].text(row)

    def table(self, row: int) -> FrameTable | None:
        """The frames of a video, where they are known."""
        value = {name: int(self._flat[name][row]) for name in _TABLE}
        if not value["listed"]:
            return None
        steps = self._ragged["steps"][row]
        if not len(steps):
            steps = np.full(max(0, value["pts_count"] - 1), value["pts_step"])
        pts = np.concatenate([[0], np.cumsum(steps, dtype=np.int64)])[: value["pts_count"]]
        pts += value["pts_first"]
        key_pts = self._ragged["key_pts"][row]
        return FrameTable(
            pts=pts,
            exact=bool(value["exact"]),
            key_frames=np.searchsorted(pts, key_pts).astype(np.int64),
            key_pts=key_pts,
            key_seek=self._ragged["key_seek"][row],
            first_packet_pts=value["first_packet_pts"] if value["starts"] else None,
            seekable=bool(value["seekable"]),
            last_duration=value["last_duration"],
            counted=None if value["exact"] else value["counted"],
        )

    @property
    def unlisted(self) -> npt.NDArray[np.bool_]:
        """Which videos have no table."""
        return np.asarray(self._flat["listed"] == 0)

    def drop_names(self) -> None:
        """Forget the paths, which a loader that knows its rows does not need."""
        self.names = range(len(self.names))  # type: ignore[assignment]


def _row(looked: Looked) -> dict[str, Any]:
    """One row of the index, by column; what is not there is 0 or empty."""
    assert looked.stamp is not None
    row: dict[str, Any] = {"size": looked.stamp[0], "mtime_ns": looked.stamp[1], "reason": looked.reason}
    check, table = looked.check, looked.table
    if check is not None:
        row |= {name: getattr(check.info, name) for name, _ in _INFO}
        row |= {name: getattr(check, name) for name in _CHECK}
    if table is None:
        return row
    row |= {"listed": True, "counted": table.counted or 0, "pts_count": len(table.pts)}
    row |= {"exact": table.exact, "seekable": table.seekable, "last_duration": table.last_duration}
    row |= {"starts": table.first_packet_pts is not None, "first_packet_pts": table.first_packet_pts or 0}
    row |= {"key_pts": table.key_pts, "key_seek": table.key_seek}
    if len(table.pts):
        steps = np.diff(table.pts)
        row["pts_first"] = int(table.pts[0])
        if len(steps) and (steps == steps[0]).all():
            row["pts_step"] = int(steps[0])
        else:
            row["steps"] = steps
    return row


class KnownVideos:
    """What an index knows of the videos of a set, by their number in it.

    Attributes:
        changes: how many videos are not in the index, or have changed since; "" for none.
    """

    def __init__(self, index: VideoIndex, paths: Sequence[str]) -> None:
        places = {name: row for row, name in enumerate(index.names)}
        rows = [places.get(absolute(path), -1) for path in paths]
        changed = [
            number
            for number, (row, path) in enumerate(zip(rows, paths, strict=True))
            if row >= 0 and stamp(path) != index.stamp(row)
        ]
        unknown = sum(row < 0 for row in rows)
        said = []
        if unknown:
            said.append(f"{unknown} of {len(rows)} videos {'is' if unknown == 1 else 'are'} not in it")
        if changed:
            have = "has" if len(changed) == 1 else "have"
            said.append(f"{len(changed)} of {len(rows)} {have} changed since it was made")
        self.changes = " and ".join(said)
        for number in changed:
            rows[number] = -1
        self._rows = np.array(rows, np.int64)
        self._index = index
        index.drop_names()
        self._paths = paths

    @classmethod
    def of(cls, file: str | Path, manifest: Manifest) -> KnownVideos:
        """What the index in a file knows of these videos.

        Raises:
            FileNotFoundError, ValueError: as `VideoIndex.read`; or the videos are parts of shards.
        """
        if len(manifest) and manifest.records[0].member is not None:
            raise ValueError(f"{file} is an index of files, but the videos are in shards; leave it out")
        return cls(VideoIndex.read(file), manifest.records.paths)

    def note(self, file: str | Path) -> tuple[str, ...]:
        """A line for people where the index does not know all videos as they are; else nothing."""
        if not self.changes:
            return ()
        return (
            f"{file}: {self.changes}; they are read as without an index "
            f"(`nonlocal scan SOURCE --index {file}` brings it up to date)",
        )

    def table(self, number: int) -> FrameTable | None:
        """The frames of a video; None where the index does not know them as they are now."""
        row = int(self._rows[number])
        if row < 0 or stamp(self._paths[number]) != self._index.stamp(row):
            return None
        return self._index.table(row)

    def broken(self) -> dict[int, Problem]:
        """The videos that cannot be opened, and why.

        Not those that are damaged somewhere: training and testing may not need what is damaged.
        """
        unlisted = self._index.unlisted
        rows = ((number, row) for number, row in enumerate(self._rows.tolist()) if row >= 0)
        return {
            number: Problem(self._paths[number], self._index.reason(row))
            for number, row in rows
            if unlisted[row]
        }
