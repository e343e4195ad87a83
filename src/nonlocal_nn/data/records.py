"""The videos of a split, and which files are videos at all."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal

import numpy as np

from nonlocal_nn._text import as_file_name
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.table import Hashes, RecordTable, Texts, VideoRecord

# What FFmpeg opens as video by these endings, and people keep videos in.
_VIDEO = """
    mp4 m4v mov qt f4v ismv mj2 3gp 3g2 3gpp avi divx xvid mkv mk3d webm mpg mpeg mpe m1v m2v mp2v mpv vob mod
    tod ts mts m2ts m2t trp wmv asf wm flv rm rmvb ogv ogm mxf gif apng nut dv dif y4m mjpeg mjpg
    h261 h263 h264 264 26l h26l avc h265 265 hevc h266 266 vvc vc1 ivf obu av1 drc viv amv nsv ivr dav
    wtv dvr-ms evo roq bik bk2 flc fli cdxl
"""
# Endings that stand beside videos and are none: left out without a word.
_NO_VIDEO = """
    txt csv tsv json jsonl xml yaml yml md rst html htm pdf doc docx xls xlsx log ini cfg toml lock sha256 md5
    jpg jpeg png bmp webp tif tiff heic svg ico npy npz pt pth pkl h5 hdf5 mat safetensors parquet
    srt vtt ass ssa sub idx lrc nfo wav mp3 aac m4a flac ogg opus wma
    zip tar gz tgz bz2 xz 7z rar part tmp bak db dat py sh ipynb url torrent
"""
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO.split())
_OTHER_SUFFIXES = frozenset(f".{name}" for name in _NO_VIDEO.split())
# Folders that systems and programs make for themselves. Hidden ones (.git, .Trash) begin with a dot.
_SYSTEM_FOLDERS = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__pycache__",
    }
)

ClipLabels = Literal["clip", "video"]  # of a training clip, where labels belong to stretches of a video
ManifestKind = Literal["auto", "folders", "shards", "list", "kinetics_csv", "charades_csv", "csv"]


@dataclass(frozen=True)
class Manifest:
    """The videos of one split.

    >>> manifest = Manifest.of_paths(["a.mp4", "b.mp4"], labels=[1, 0], classes=["run", "walk"])
    >>> print(manifest.describe())
    2 videos, 2 classes (1 to 1 videos each)

    Attributes:
        records: usable ones, in the order of the source.
        classes: their names; labels are positions in it.
        multi_label: may a video have several labels, or none?
        problems: what was left out, and why.
        notes: how the source was read, in a line each, where that is not plain.
        strangers: labels that are no class in any row, each in one line.
        first_label: the number of the first class where labels are positions; None where they are names.
        kind: what the source turned out to be; "" where it is no file or folder.
        missing: rows with labels whose video is not there, each with how many records stand before it.
    """

    records: RecordTable
    classes: tuple[str, ...]
    multi_label: bool = False
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    first_label: int | None = None
    kind: ManifestKind | Literal[""] = ""
    missing: tuple[tuple[int, VideoRecord], ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of videos of each class."""
        return tuple(np.bincount(self.records.labels, minlength=len(self.classes)).tolist())

    def describe(self) -> str:
        """Return one line for people."""
        text = f"{len(self)} videos, {self.num_classes} classes"
        if self.counts and any(self.counts):
            text += f" ({min(self.counts)} to {max(self.counts)} videos each)"
        if self.multi_label:
            text += ", several labels a video"
        if self.problems:
            text += f", {len(self.problems)} left out (first: {self.problems[0]})"
        return text

    def require_known_labels(self) -> None:
        """Raise ValueError where some label is no class: its rows are not bad videos."""
        if self.strangers:
            more = "" if len(self.strangers) == 1 else f" (and {len(self.strangers) - 1} labels more)"
            raise ValueError(f"{self.strangers[0]}{more}")

    def require_every_class(self, source: str) -> None:
        """Raise ValueError where some class has no videos: nothing could be learnt of it."""
        empty = [name for name, count in zip(self.classes, self.counts, strict=True) if not count]
        if empty and not self.multi_label:
            names = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
            text = f"{source}: {len(empty)} of {self.num_classes} classes have no usable videos: {names}"
            if self.problems:
                text += f". Left out: {len(self.problems)}, the first: {self.problems[0]}"
            raise ValueError(f"{text}. {' '.join((*self.notes, _EMPTY_CLASS))}")

    @classmethod
    def of_paths(
        cls, paths: Sequence[str | Path], labels: Sequence[int] | None = None, classes: Sequence[str] = ()
    ) -> Manifest:
        """Make a manifest of files, with one label each or, to predict, none."""
        if labels is not None and len(labels) != len(paths):
            raise ValueError(f"{len(labels)} labels for {len(paths)} videos")
        records = RecordTable()
        for number, path in enumerate(paths):
            records.add(str(path), () if labels is None else (labels[number],))
        return cls(records, tuple(classes))


_EMPTY_CLASS = "Add videos of them, or leave them out: give a class file without them (--data.classes)"


@dataclass(frozen=True)
class FolderContents:
    """What lies in a folder, at any depth.

    Attributes:
        paths: of video files, sorted by their parts.
        others: how many files of which other suffix (or of which name, without a suffix).
        problems: folders that cannot be read.
        system: folders left out as hidden or made by a system, though they are not empty.
    """

    paths: Texts
    others: tuple[tuple[str, int], ...]
    problems: tuple[Problem, ...]
    system: tuple[Path, ...]

    @property
    def videos(self) -> tuple[Path, ...]:
        """The video files."""
        return tuple(map(Path, self.paths))

    @property
    def unknown(self) -> tuple[tuple[str, int], ...]:
        """Those of `others` that may be videos of a kind unknown here."""
        return tuple(
            (suffix, count)
            for suffix, count in self.others
            if suffix[0] == "." and suffix not in _OTHER_SUFFIXES
        )


def is_system_folder(name: str) -> bool:
    """Whether a folder is hidden or a system's own, by its name.

    >>> [is_system_folder(name) for name in (".git", "__MACOSX", "walk")]
    [True, True, False]
    """
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def look_through(folder: str | Path) -> FolderContents:
    """Everything under a folder; hidden and system files and folders left out, links followed."""
    paths = Texts()
    others: Counter[str] = Counter()
    problems: list[Problem] = []
    system: list[Path] = []
    seen: set[str] = set()  # a link may lead back up
    waiting = [str(folder)]  # files and folders still to come, the next one last; folders end in a separator
    waiting[0] = str(Path(folder, "x"))[:-1]
    while waiting:
        here = waiting.pop()
        if not here.endswith(os.sep) and here:
            paths.append(here)
            continue
        real = os.path.realpath(here or ".")
        if real in seen:
            continue
        seen.add(real)
        inside: list[str] = []
        try:
            with os.scandir(_folder_name(here)) as entries:
                for entry in entries:
                    name = entry.name
                    if _is_folder(entry):
                        if is_system_folder(name):
                            system.append(Path(here, name))
                        else:
                            inside.append(name + os.sep)
                        continue
                    if name.startswith("."):
                        continue
                    dot = name.rfind(".")
                    suffix = name[dot:].lower() if 0 < dot < len(name) - 1 else ""
                    if suffix in VIDEO_SUFFIXES:
                        inside.append(name)
                    else:
                        others[suffix or name] += 1
        except OSError as error:
            problems.append(Problem(str(error.filename or folder), f"cannot be read: {error.strerror}"))
        # by parts: a/b before a-b
        inside.sort(key=lambda name: name.replace(os.sep, "\0"), reverse=True)
        waiting += [here + name for name in inside]
    return FolderContents(paths, tuple(sorted(others.items())), tuple(problems), tuple(system))


def _folder_name(start: str) -> str:
    """A folder by how the paths in it begin."""
    return start if start == os.sep else start.removesuffix(os.sep) or "."


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where one may not look
        return False


def find_videos(folder: str | Path) -> list[Path]:
    """Return every video file under a folder, at any depth, sorted; see `look_through`."""
    return list(look_through(folder).videos)


def find_file(name: str, root: Path) -> Path | str:
    r"""The file that a list means by a name, or why there is none.

    Relative names start from `root`; `~` is the home folder; a backslash separates, as on Windows, where the
    name as it stands is no file. Where an absolute path of another machine does not exist, its last two
    parts, then its last, are looked for under root.

    >>> find_file("absent.mp4", Path("."))
    'no such file'
    """
    name = as_file_name(name)
    try:
        tried = [root / Path(name).expanduser()]
    except RuntimeError:  # ~somebody
        tried = [root / name]
    windows = PureWindowsPath(name)
    parts: tuple[str, ...] = ()
    if "\\" in name:
        parts = windows.parts[1:] if windows.drive or windows.root else windows.parts
        if not windows.drive and not windows.root:
            tried.append(root.joinpath(*parts))
    if Path(name).is_absolute():
        parts = Path(name).parts[1:]
    if parts and (Path(name).is_absolute() or windows.drive or windows.root):
        tried += [root.joinpath(*parts[-count:]) for count in (2, 1)]
    try:
        for path in tried:
            if path.is_file():
                return path
        return "is a folder, not a video file" if tried[0].is_dir() else _absent(name, tried[0])
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered
        return f"cannot be looked for: {getattr(error, 'strerror', None) or error}"


class FileFinder:
    """`find_file` for many names: folders are listed once, and most files are found in these lists.

    >>> FileFinder(Path(".")).find("absent.mp4")
    ('', 'no such file')
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._start = str(root / "x")[:-1]  # of every path under it
        self._folders: dict[str, tuple[str, Hashes]] = {}

    def find(self, name: str) -> tuple[str, str]:
        """The file's path and "", or "" and why there is none."""
        name = as_file_name(name)
        folder = name[: name.rfind("/") + 1]
        start, files = self._folders.get(folder) or self._listed(folder)
        file = name[len(folder) :]
        if file in files:
            return start + file, ""
        found = find_file(name, self.root)
        return ("", found) if isinstance(found, str) else (str(found), "")

    def _listed(self, folder: str) -> tuple[str, Hashes]:
        """How paths in a folder begin, and the names of its files; none where `find_file` must look."""
        start = folder if folder.startswith("/") else self._start + folder
        files = Hashes(())
        if not _ODD_PARTS.search(f"/{folder}"):
            # `find_file` says what is wrong with a folder
            with suppress(OSError), os.scandir(_folder_name(start)) as entries:
                files = Hashes(
                    entry.name for entry in entries if not entry.name.startswith("~") and entry.is_file()
                )
        self._folders[folder] = start, files
        return start, files


# What pathlib would write otherwise, or what means something else than it says.
_ODD_PARTS = re.compile(r"(?<=.)//|/\./|/\.$|^/~|\\")


def _absent(name: str, path: Path) -> str:
    if len(PureWindowsPath(name).drive) == 2:
        return "no such file: a path of a Windows machine; say where the videos lie (--root, --data.root)"
    return "a link to nothing" if path.is_symlink() else "no such file"
