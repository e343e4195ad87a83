"""Videos in a few large tar files, read by byte range through an index.

The tar files have WebDataset's layout, so that anybody reads them: `000000012.mp4` and `000000012.json` are
one sample. Here they are not read as streams, which cannot be resumed exactly: `index.npz` says where every
video lies, so the samples, their order and the weights of a training run are those of the plain files.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nonlocal_nn.data.errors import Problem, VideoError
from nonlocal_nn.data.labels import LabelReading, decide_labels
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.data.table import Member, RecordTable, VideoRecord

__all__ = ["INDEX", "MemberFile", "is_sharded", "open_member", "read_shards"]

INDEX = "index.npz"
BLOCK = 512  # tar counts in these


def is_sharded(folder: Path) -> bool:
    """Whether a folder was written by `nonlocal shard`.

    >>> is_sharded(Path("no/such/folder"))
    False
    """
    return (folder / INDEX).is_file()


class MemberFile(io.RawIOBase):
    """The bytes of one video in a shard, as a file of its own; read where they are asked for.

    Raises:
        VideoError: the shard is missing or cut off, or is not the one that was indexed.
    """

    def __init__(self, member: Member, path: str) -> None:
        super().__init__()
        self._offset, self._size, self._at = member.offset, member.size, 0
        try:
            self._file = Path(member.shard).open("rb", buffering=0)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise VideoError(path, f"the shard {member.shard} cannot be opened: {error.strerror}") from error
        try:
            self._check(member, path)
        except BaseException:
            self._file.close()
            raise

    def _check(self, member: Member, path: str) -> None:
        held = self._file.seek(0, io.SEEK_END)
        if held < self._offset + self._size:
            raise VideoError(
                path,
                f"the shard {member.shard} is cut off: the video ends at byte "
                f"{self._offset + self._size}, the shard at {held}",
            )
        self._file.seek(self._offset - BLOCK)
        try:
            header = tarfile.TarInfo.frombuf(self._file.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            header = None
        if header is None or header.size != self._size:
            raise VideoError(
                path,
                f"the shard {member.shard} has changed since it was indexed; write the shards anew "
                "(nonlocal shard)",
            )

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes into a buffer; how many there were."""
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(view) or 0
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte of the video."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"no byte {start + offset}")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def close(self) -> None:
        """Close the shard."""
        if not self.closed:
            self._file.close()
        super().close()


def open_member(record: VideoRecord) -> MemberFile | None:
    """What to read a record's video from, where that is no file of its own.

    >>> open_member(VideoRecord("a.mp4", (0,))) is None
    True
    """
    return None if record.member is None else MemberFile(record.member, record.path)


def read_shards(folder: Path, classes: Sequence[str] | None) -> Manifest:
    """The videos of a folder that `nonlocal shard` wrote.

    A shard that is missing, or the part of it that is cut off, becomes problems, a video each.

    Raises:
        ValueError: the index cannot be read, or is of a later version.
    """
    path = folder / INDEX
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
        about = json.loads(str(arrays.pop("about")))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); write the shards anew (nonlocal shard)") from None
    if about["version"] != 1:
        raise ValueError(f"{path} is of version {about['version']}; this release reads version 1")
    problems = [Problem(*row) for row in about["problems"]]
    own = tuple(about["classes"])
    reading = LabelReading(own, {name: number for number, name in enumerate(own)})
    if classes is not None and tuple(classes) != own:
        reading = decide_labels(own, tuple(classes), source=str(path), names_only=True)
    numbers = [reading.indices.get(name) for name in own]
    held = {name: _size(folder / name) for name in about["shards"]}
    records, strange = RecordTable(), Counter[str]()
    for record in RecordTable.from_arrays(arrays, about["columns"]):
        assert record.member is not None
        name, offset, size = record.member
        video = f"{folder / name}/{record.path}"
        unknown = [own[label] for label in record.labels if numbers[label] is None]
        if unknown:
            strange.update(unknown)
            problems.append(Problem(video, reading.why_not(unknown[0])))
        elif held[name] < offset + size:
            why = "is missing" if held[name] < 0 else f"is cut off at byte {held[name]}"
            problems.append(Problem(video, f"its shard {why}"))
        else:
            records.add(
                *record._replace(
                    path=video,
                    labels=tuple(number for label in record.labels if (number := numbers[label]) is not None),
                    actions=tuple((numbers[label] or 0, *span) for label, *span in record.actions),  # type: ignore[misc]
                    member=Member(str(folder / name), offset, size),
                )
            )
    strangers = tuple(
        f"{path}: {reading.why_not(name)}: {count} videos. Give the list of classes that the shards have, or "
        "write shards without these videos"
        for name, count in strange.items()
    )
    missing = tuple((place, VideoRecord(name, tuple(labels))) for place, name, labels in about["missing"])
    return Manifest(
        records,
        reading.classes,
        about["multi_label"],
        tuple(problems),
        tuple(about["notes"]),
        strangers,
        about["first_label"],
        about["kind"],
        missing,
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1
