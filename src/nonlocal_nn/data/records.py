"""One video with its labels, the videos of a split, and which files are videos at all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nonlocal_nn.data.errors import Problem

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *(
            "mp4",
            "m4v",
            "mov",
            "avi",
            "divx",
            "mkv",
            "webm",
            "mpg",
            "mpeg",
            "m2v",
            "ts",
            "mts",
            "m2ts",
            "vob",
        ),
        *("wmv", "asf", "flv", "3gp", "3g2", "ogv", "mxf", "gif"),
    )
)

ManifestKind = Literal["auto", "folders", "list", "kinetics_csv", "charades_csv", "csv"]


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video and what it shows.

    Attributes:
        path: the file.
        labels: class numbers; several, or none, where videos are multi-label.
        start_seconds, end_seconds: the labelled segment of an uncut video; None for all of it.
    """

    path: str
    labels: tuple[int, ...]
    start_seconds: float | None = None
    end_seconds: float | None = None


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
    """

    records: tuple[VideoRecord, ...]
    classes: tuple[str, ...]
    multi_label: bool = False
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of videos of each class."""
        counter = Counter(label for record in self.records for label in record.labels)
        return tuple(counter[label] for label in range(len(self.classes)))

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

    @classmethod
    def of_paths(
        cls, paths: Sequence[str | Path], labels: Sequence[int] | None = None, classes: Sequence[str] = ()
    ) -> Manifest:
        """Make a manifest of files, with one label each or, to predict, none."""
        if labels is not None and len(labels) != len(paths):
            raise ValueError(f"{len(labels)} labels for {len(paths)} videos")
        each = [()] * len(paths) if labels is None else [(label,) for label in labels]
        return cls(
            tuple(VideoRecord(str(path), label) for path, label in zip(paths, each, strict=True)),
            tuple(classes),
        )


def find_videos(folder: str | Path) -> list[Path]:
    """Return every video file under a folder, at any depth, sorted; hidden files left out, links followed."""
    found: list[Path] = []
    seen: set[str] = set()  # a link may lead back up
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(here, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES
        ]
    return sorted(found)
