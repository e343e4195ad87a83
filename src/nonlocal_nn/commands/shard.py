"""`nonlocal shard`: many small videos into a few large tar files."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from nonlocal_nn.data.records import ManifestKind

_UNITS = {"": 1} | {
    f"{letter}{i}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for i, base in (("", 1000), ("i", 1024))
}
_SHOWN = 10


@dataclass(frozen=True)
class ShardConfig:
    """Pack the videos of a folder, list or csv into tar files of about one size, with an index.

    `nonlocal shard SOURCE OUT`. Disks and networks read a few large files faster than many small ones.
    `nonlocal train` and `nonlocal test` take the folder OUT for --data.train and --data: samples, their order
    and the trained weights are those of the plain files. The tar files have WebDataset's layout. An
    interrupted call goes on where it was; the same videos give the same bytes. Exit code 1 if some video was
    left out.
    """

    places: list[str] = field(default_factory=list)
    """The source, in any form that `nonlocal train` takes, and the folder to write."""
    size: str = "1GB"
    """A shard ends with the video that reaches this: 500MB, 1GB (10^9 bytes), 1GiB (2^30)."""
    kind: ManifestKind = "auto"
    """Form of a list: auto looks at its first line."""
    root: str | None = None
    """Folder that the paths in a list or csv start from; none: the folder the list lies in."""
    classes: str | None = None
    """Text file with one class name a line, in label order; none: taken from the source."""
    where: str | None = None
    """Rows of a csv to take, such as "set==1 and sequence in 1,2"; none: all."""
    progress: bool = True
    """Show a progress bar."""


def shard_command(config: ShardConfig) -> int:
    """Write the shards and say what they hold; 0 if every video is in them, else 1.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: a source or a folder that does not fit.
    """
    from nonlocal_nn._progress import percent_bar
    from nonlocal_nn.data.labels import ClassFile, read_class_file
    from nonlocal_nn.data.manifest import read_manifest
    from nonlocal_nn.data.sharding import write_shards

    if len(config.places) != 2:
        raise ValueError(f"two places are needed, nonlocal shard SOURCE OUT; there are {len(config.places)}")
    source, out = map(Path, config.places)
    size = bytes_of(config.size)
    known = ClassFile(()) if config.classes is None else read_class_file(config.classes)
    manifest = read_manifest(
        source,
        kind=config.kind,
        root=config.root,
        classes=known.names or None,
        first_label=known.first,
        where=config.where,
    )
    manifest.require_known_labels()
    if any(record.member is not None for record in manifest.records[:1]):
        raise ValueError(f"{source} holds shards already")
    root = source if source.is_dir() else Path(config.root).expanduser() if config.root else source.parent
    with percent_bar("writing shards", shown=config.progress and sys.stderr.isatty()) as progress:
        done = write_shards(manifest, out, shard_bytes=size, root=root, progress=progress)
    for note in manifest.notes:
        sys.stderr.write(f"{note}\n")
    bad = [*manifest.problems, *done.problems]
    for problem in bad[:_SHOWN]:
        sys.stderr.write(f"left out {problem}\n")
    if len(bad) > _SHOWN:
        sys.stderr.write(f"and {len(bad) - _SHOWN} more; a training run lists them in skipped.csv\n")
    total = sum(size for _, size in done.shards)
    kept = f" ({done.kept} were there already)" if done.kept else ""
    print(f"{done.videos} videos in {len(done.shards)} shards{kept}, {total / 1e9:.3g} GB: {out}")
    print(f"train from them: nonlocal train --data.train {out} ...")
    return 1 if bad else 0


def bytes_of(text: str) -> int:
    """A size as people write it.

    >>> bytes_of("1GB"), bytes_of("500 MB"), bytes_of("2GiB") == 2 * 2**30
    (1000000000, 500000000, True)

    Raises:
        ValueError: it is none, or less than a byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    count = 0 if match is None else int(float(match[1]) * _UNITS[match[2] or ""])
    if count < 1:
        raise ValueError(f"size {text!r} is no number of bytes; write 500MB, 1GB or 1GiB")
    return count
