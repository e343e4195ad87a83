"""Writing shards: every video once into some tar file, and an index of all. See `shards`."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from nonlocal_nn._files import write_whole
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.data.shards import BLOCK, INDEX
from nonlocal_nn.data.table import Member, RecordTable, VideoRecord

_END = 20 * BLOCK  # tar files end in zeros, and are a whole number of these


@dataclass(frozen=True)
class _Sample:
    """A file, where it goes, and what stands beside it."""

    key: str
    source: str
    size: int
    about: bytes

    @property
    def bytes_in_tar(self) -> int:
        return 2 * BLOCK + _padded(self.size) + _padded(len(self.about))


@dataclass
class _Shard:
    """What goes into one tar file."""

    name: str
    samples: list[_Sample] = field(default_factory=list)
    held: int = 0

    def add(self, sample: _Sample) -> None:
        self.samples.append(sample)
        self.held += sample.bytes_in_tar

    @property
    def size(self) -> int:
        return -(-(self.held + 2 * BLOCK) // _END) * _END


@dataclass(frozen=True)
class Sharded:
    """What was written.

    Attributes:
        videos: in the shards, each file once.
        shards: their names and sizes in bytes.
        kept: how many of them an earlier, interrupted call had written.
        problems: files that cannot be read.
    """

    videos: int
    shards: tuple[tuple[str, int], ...]
    kept: int
    problems: tuple[Problem, ...]


def write_shards(
    manifest: Manifest,
    out: Path,
    *,
    shard_bytes: int,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Sharded:
    """Write the videos of a manifest into `out`, about `shard_bytes` in each shard, and the index.

    Each shard is written whole or not at all; those that an earlier call had finished are kept, so an
    interrupted one goes on. The same videos give the same bytes.

    Args:
        manifest: the videos, in the order they keep.
        out: a folder, made where missing.
        shard_bytes: a shard ends with the video that reaches it.
        root: names in the shards start from it.
        progress: called with the bytes written and how many there are.

    Raises:
        ValueError: no video can be read, or a file changed while it was copied.
        FileExistsError: `out` holds shards of other videos, or of another size.
    """
    sizes, problems = _sizes(manifest.records)
    records = [record for record in manifest.records if record.path in sizes]
    if not records:
        raise ValueError(f"no video can be read: {problems[0] if problems else 'there is none'}")
    shards = list(_plan(records, sizes, root, manifest.classes, shard_bytes))
    _check_place(out, shards)
    total = sum(shard.size for shard in shards)
    done = kept = 0
    for shard in shards:
        path = out / shard.name
        if path.is_file() and path.stat().st_size == shard.size:
            kept += 1
        else:
            write_whole(path, lambda partial, shard=shard: _write(partial, shard))  # type: ignore[misc]
        done += shard.size
        if progress is not None:
            progress(done, total)
    write_whole(out / INDEX, lambda partial: _write_index(partial, manifest, records, shards, root, problems))
    return Sharded(len(sizes), tuple((shard.name, shard.size) for shard in shards), kept, tuple(problems))


def _sizes(records: RecordTable) -> tuple[dict[str, int], list[Problem]]:
    sizes: dict[str, int] = {}
    problems: dict[str, Problem] = {}
    for path in records.paths:
        if path in sizes or path in problems:
            continue
        try:
            with Path(path).open("rb") as file:
                sizes[path] = file.seek(0, os.SEEK_END)
        except OSError as error:
            problems[path] = Problem(path, f"cannot be read: {error.strerror}")
    return sizes, list(problems.values())


def _plan(
    records: list[VideoRecord], sizes: dict[str, int], root: Path, classes: tuple[str, ...], shard_bytes: int
) -> Iterator[_Shard]:
    """The shards, one after the other; a file that several records are of goes where the first one is."""
    rows: dict[str, list[VideoRecord]] = {}
    for record in records:
        rows.setdefault(record.path, []).append(record)
    shard, number = _Shard("shard-000000.tar"), 0
    for place, (path, own) in enumerate(rows.items()):
        about = {
            "name": _name(path, root),
            "rows": [
                {
                    "labels": record.labels,
                    "classes": [classes[label] for label in record.labels],
                    **({} if record.start_seconds is None else {"start_seconds": record.start_seconds}),
                    **({} if record.end_seconds is None else {"end_seconds": record.end_seconds}),
                    **({"actions": record.actions} if record.actions else {}),
                }
                for record in own
            ],
        }
        text = json.dumps(about).encode()
        shard.add(_Sample(f"{place:09d}{Path(path).suffix.lower()}", path, sizes[path], text))
        if shard.size >= shard_bytes:
            yield shard
            number += 1
            shard = _Shard(f"shard-{number:06d}.tar")
    if shard.samples:
        yield shard


def _name(path: str, root: Path) -> str:
    """What a video is called in its shard: its path from the root, or its last part."""
    try:
        return Path(path).relative_to(root).as_posix()
    except ValueError:
        return Path(path).name


def _check_place(out: Path, shards: list[_Shard]) -> None:
    """Shards of other videos are not written over."""
    planned = {shard.name: shard.size for shard in shards}
    for file in sorted(out.glob("shard-*.tar")):
        if planned.get(file.name) != file.stat().st_size:
            raise FileExistsError(
                f"{out} holds shards of other videos, or of another --size ({file.name}); choose another "
                "folder, or delete them"
            )


def _write(partial: Path, shard: _Shard) -> None:
    with partial.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for sample in shard.samples:
            with Path(sample.source).open("rb") as video:
                _add(tar, sample.key, sample.size, video, sample.source)
            key = sample.key.partition(".")[0]
            _add(tar, f"{key}.json", len(sample.about), io.BytesIO(sample.about), sample.source)


def _add(tar: tarfile.TarFile, name: str, size: int, data: IO[bytes], source: str) -> None:
    info = tarfile.TarInfo(name)  # no time, no owner: the same videos give the same bytes
    info.size = size
    try:
        tar.addfile(info, data)
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{source} became shorter while it was copied; run this again") from error
    if data.read(1):
        raise ValueError(f"{source} became longer while it was copied; run this again")


def _write_index(
    partial: Path,
    manifest: Manifest,
    records: list[VideoRecord],
    shards: list[_Shard],
    root: Path,
    problems: list[Problem],
) -> None:
    members: dict[str, Member] = {}
    for shard in shards:
        offset = 0
        for sample in shard.samples:
            members[sample.source] = Member(shard.name, offset + BLOCK, sample.size)
            offset += sample.bytes_in_tar
    table = RecordTable(
        record._replace(path=_name(record.path, root), member=members[record.path]) for record in records
    )
    arrays, columns = table.to_arrays()
    about = {
        "version": 1,
        "columns": columns,
        "shards": [shard.name for shard in shards],
        "classes": manifest.classes,
        "multi_label": manifest.multi_label,
        "first_label": manifest.first_label,
        "kind": manifest.kind,
        "notes": manifest.notes,
        "problems": [*manifest.problems, *problems],
        "missing": [(place, record.path, record.labels) for place, record in manifest.missing],
    }
    with partial.open("wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
