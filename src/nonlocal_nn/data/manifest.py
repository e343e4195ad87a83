"""What there is to train or test on: folders, lists and published csv files become records.

Nothing is opened here. A line that cannot be used becomes a `Problem` and is left out; a source with nothing
usable is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from nonlocal_nn.data import shards
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.labels import LabelReading, decide_labels, read_classes
from nonlocal_nn.data.records import (
    VIDEO_SUFFIXES,
    Manifest,
    ManifestKind,
    is_system_folder,
    look_through,
)
from nonlocal_nn.data.table import RecordTable

__all__ = ["read_classes", "read_manifest"]


def read_manifest(
    source: str | Path,
    *,
    kind: ManifestKind = "auto",
    root: str | Path | None = None,
    classes: Sequence[str] | int | None = None,
    first_label: int | None = None,
    where: str | None = None,
    multi_label: bool | None = None,
    group_by: str | None = None,
    part_by: Sequence[str] = (),
    allow_empty: bool = False,
) -> Manifest:
    """Read a folder or a list of labelled videos.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("walk/b.mp4", "run/a.mp4"):
    ...         (Path(folder) / name).parent.mkdir()
    ...         _ = (Path(folder) / name).write_bytes(b"not opened here")
    ...     manifest = read_manifest(folder)
    >>> manifest.classes, [record.labels for record in manifest.records]
    (('run', 'walk'), [(0,), (1,)])

    Args:
        source: a folder or a file, of one of these kinds.
        kind: "folders": `root/<class>/**/<video>`.
            "shards": a folder that `nonlocal shard` wrote.
            "list": lines `path label`, the label a number or a class name, or several numbers (`a.mp4 0,3`:
            multi-label). One reading holds for all labels of a file (see `labels.decide_labels`).
            "kinetics_csv": columns label, youtube_id, time_start, time_end; videos `<id>_<start>_<end>` (six
            digits each) or `<id>` anywhere under root, with any video suffix.
            "charades_csv": columns id and actions (`c092 11.90 21.20;...`), 157 classes, multi-label,
            videos `<id>`.
            "csv": columns path and label (several separated by `;`), optionally start_seconds and
            end_seconds (empty: the first frame, the last), and any others; commas, tabs or semicolons
            separate them.
            "auto": a folder, or what the first line of the file looks like.
        root: where videos lie; by default the folder of the file. A list made on another machine works too:
            where an absolute path does not exist, its last two parts, then its last, are looked for under
            root.
        classes: names in order, or their number; by default those that occur (in a csv: in all rows, so
            that the splits made by `where` agree).
        first_label: the number of the first class, where labels are positions and this is known.
        where: rows of a csv to keep, such as "set == 1 and sequence not in 3, 4" (see `RowFilter`).
        multi_label: may a video have several labels? By default it may if some video has.
        group_by: column of a plain csv; becomes the `group` of each record.
        part_by: columns of a plain csv; become the `part` of each record.
        allow_empty: give back a manifest of nothing but problems instead of raising.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: nothing usable in it, labels that can be read two ways, a quote that is not closed, a
            missing column, or a `where` that does not fit.
    """
    from nonlocal_nn.data import annotations

    path = Path(source)
    if kind not in get_args(ManifestKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(ManifestKind))}, not {kind!r}")
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    names = tuple(str(n) for n in range(classes)) if isinstance(classes, int) else classes
    known = None if names is None else tuple(names)
    if known is not None and len(set(known)) != len(known):
        twice = [name for name, count in Counter(known).items() if count > 1]
        raise ValueError(f"class names occur twice: {', '.join(twice)}")

    if kind == "auto":
        kind = _kind_of_folder(path) if path.is_dir() else annotations.guess_kind(path)
    if (kind in {"folders", "shards"}) != path.is_dir():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'a file'}, which kind={kind!r} is not")
    if where is not None and kind in {"folders", "shards", "list"}:
        raise ValueError(
            f"where={where!r} chooses rows of a csv with a header; {path} has none (kind {kind!r})"
        )

    for column in (*filter(None, [group_by]), *part_by):
        if kind != "csv":
            raise ValueError(f"{column!r} names a column of a plain csv; {path} is of kind {kind!r}")

    if kind == "folders":
        manifest = _read_folders(path, known)
    elif kind == "shards":
        manifest = shards.read_shards(path, known)
    else:
        folder = Path(root).expanduser() if root is not None else path.parent
        manifest = annotations.READERS[kind](
            annotations.Source(path, folder, known, first_label, where, multi_label, group_by, tuple(part_by))
        )
    if multi_label is not None and manifest.multi_label != multi_label:
        crowded = manifest.records.first_without_one_label()
        if not multi_label and crowded is not None:
            raise ValueError(f"{crowded.path} has {len(crowded.labels)} labels, but multi_label is False")
        manifest = replace(manifest, multi_label=multi_label)
    if not manifest.records and not allow_empty:
        reasons = "; ".join(str(problem) for problem in manifest.problems[:3]) or "it is empty"
        raise ValueError(f"no usable video in {path} (read as {kind!r}): {reasons}")
    return manifest if kind == "shards" else replace(manifest, kind=kind)  # shards keep that of their source


def _kind_of_folder(folder: Path) -> ManifestKind:
    return "shards" if shards.is_sharded(folder) else "folders"


def _read_folders(root: Path, classes: tuple[str, ...] | None) -> Manifest:
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise ValueError(f"{root}: the folder cannot be read: {error.strerror}") from None
    folders = [entry for entry in entries if entry.is_dir() and not is_system_folder(entry.name)]
    names = [folder.name for folder in folders]
    if classes is None:
        reading = LabelReading(tuple(names), {name: number for number, name in enumerate(names)})
    else:
        reading = decide_labels(names, classes, source=str(root), names_only=True)
    records = RecordTable()
    problems: list[Problem] = []
    unknown: Counter[str] = Counter()
    for folder in folders:
        label = reading.indices.get(folder.name)
        if label is None:
            problems.append(Problem(str(folder), "this folder is none of the classes"))
            continue
        inside = look_through(folder)
        problems += inside.problems
        unknown.update(dict(inside.unknown))
        if not len(inside.paths) and not inside.problems:
            problems.append(Problem(str(folder), "this class folder holds no videos"))
        for path in inside.paths:
            records.add(path, (label,))
    problems += [
        Problem(str(entry), "lies beside the class folders, not in one")
        for entry in entries
        if entry.suffix.lower() in VIDEO_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    ]
    if not folders:
        problems.insert(0, Problem(str(root), "no class folders (expected root/<class>/<video>)"))
    notes = []
    system = [entry.name for entry in entries if entry not in folders and entry.is_dir()]
    if system:
        notes.append(f"{root}: hidden and system folders are no classes: {', '.join(system)}")
    if unknown:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unknown.items()))
        notes.append(f"{root}: left out, since their suffix is none of a video: {kinds}")
    return Manifest(records, reading.classes, problems=tuple(problems), notes=tuple(notes))
