"""skipped.csv: every video that could not be used, once, with the reason; and the bound on how many there may
be.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from nonlocal_nn._files import open_text, write_whole
from nonlocal_nn.data.errors import Problem

_SAID = 10


class TooManyBadVideosError(RuntimeError):
    """More of the training videos are broken than data.max_bad_videos allows."""


class SkippedVideos:
    """The videos left out so far. `videos` is how many the training set lists, broken ones included.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "skipped.csv"
    >>> skipped = SkippedVideos(path, videos=4, allowed_share=0.25)
    >>> skipped.add([Problem("a.mp4", "it is empty"), Problem("a.mp4", "it is empty")], warn=False)
    >>> path.read_text().split()
    ['path,reason', 'a.mp4,it', 'is', 'empty']
    >>> skipped.add([Problem("b.mp4", "no video stream")], warn=False)
    Traceback (most recent call last):
    nonlocal_nn.training.skipped.TooManyBadVideosError: 2 of 4 training videos (50.0%) cannot be used, ...
    """

    def __init__(self, path: Path, videos: int, allowed_share: float) -> None:
        if not 0 <= allowed_share <= 1:
            raise ValueError(f"data.max_bad_videos is {allowed_share:g}; it is a share of the videos, 0 to 1")
        self.path = path
        self.videos = videos
        self.allowed_share = allowed_share
        self.reasons: dict[str, str] = {}
        self._said = 0
        self._training: set[str] = set()

    def unseen(self, problems: Iterable[Problem]) -> list[Problem]:
        """Those not reported before."""
        return [problem for problem in problems if problem.path not in self.reasons]

    def add(
        self, problems: Iterable[Problem], *, warn: bool, write: bool = True, training: bool = True
    ) -> None:
        """Report problems: a line on stderr for new ones if `warn` (for ten in all), the file if `write`.

        Validation videos (`training` False) are listed but do not count against the bound.

        Raises:
            TooManyBadVideosError: The share of broken training videos is over the bound; the file is written
                first.
        """
        for problem in (new := self.unseen(problems)):
            if problem.path in self.reasons:
                continue  # twice among the new ones
            self.reasons[problem.path] = problem.reason
            if warn:
                self._say(problem)
        if training:
            self._training.update(problem.path for problem in new)
        if write and (new or not self.path.exists()):
            write_whole(self.path, self._write)
        if len(self._training) > self.allowed_share * self.videos:
            first = "; ".join(f"{path}: {self.reasons[path]}" for path in sorted(self._training)[:3])
            raise TooManyBadVideosError(
                f"{len(self._training)} of {self.videos} training videos "
                f"({100 * len(self._training) / self.videos:.1f}%) cannot be used, more than "
                f"data.max_bad_videos = {self.allowed_share:g} allows. "
                f"All are listed in {self.path}; the first: {first}. Repair or remove them (`nonlocal scan` "
                "finds all), or raise data.max_bad_videos."
            )

    def _say(self, problem: Problem) -> None:
        """A line for each of the first ten, and one that says where the others are."""
        self._said += 1
        if self._said <= _SAID:
            sys.stderr.write(f"skipped {problem.path}: {problem.reason}\n")
        elif self._said == _SAID + 1:
            sys.stderr.write(f"more than {_SAID} videos are skipped; all of them are in {self.path}\n")

    def state(self) -> dict[str, str]:
        """What a checkpoint keeps, as JSON: torch's safe reader refuses names that are no UTF-8."""
        rows = [[path, reason] for path, reason in self.reasons.items()]
        return {
            kind: json.dumps([r for r in rows if (r[0] in self._training) == (kind == "training")])
            for kind in ("training", "other")
        }

    def load(self, state: dict[str, str | list[list[str]]]) -> None:
        """Restore what `state` returned (earlier versions returned lists)."""
        for kind, kept in state.items():
            rows: list[list[str]] = json.loads(kept) if isinstance(kept, str) else kept
            self.reasons.update(dict(rows))
            if kind == "training":
                self._training.update(path for path, _ in rows)

    def _write(self, path: Path) -> None:
        with open_text(path) as file:
            writer = csv.writer(file)
            writer.writerow(["path", "reason"])
            writer.writerows(sorted(self.reasons.items()))
