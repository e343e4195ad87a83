"""Scores kept while a test goes on, so that a killed one goes on, and several processes can share it.

>>> import tempfile
>>> parts = Parts(Path(tempfile.mkdtemp()), key="0f3a")
>>> parts.write([Scored(2, (0,), np.array([0.75, 0.25]), np.log([0.75, 0.25]), np.array([0, 0]), 2)])
>>> parts.indices(), parts.read()[0].views
({2}, 2)

A part is a file with the scores of some videos, written whole or not at all. Its folder is named by a key, a
hash of all that decides a score, so that parts of another test are never taken for this one's. Which process
scores a video depends on its index alone; two that score the same one write the same numbers.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn._files import write_whole
from nonlocal_nn._launch import Share, launched
from nonlocal_nn.data.dataset import Skipped
from nonlocal_nn.data.errors import Problem

_PART_VIDEOS = 256
_PART_SECONDS = 10.0
_BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0


@dataclass(frozen=True)
class Scored:
    """What is kept of one tested video.

    Attributes:
        index: in the set.
        labels: its class numbers.
        scores, log_scores: (classes,), pooled over its views, and the mean of their logarithms.
        view_ranks: (views,), the true class's place in each view; none where there is not one label.
        views: how many.
    """

    index: int
    labels: tuple[int, ...]
    scores: NDArray[np.float64]
    log_scores: NDArray[np.float64]
    view_ranks: NDArray[np.int64]
    views: int


class Parts:
    """The parts of one test, in `folder / key`."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.place = folder / key
        self._indices: dict[str, set[int]] = {}  # of the parts that were looked into, by file

    def write(self, items: Sequence[Scored | Skipped]) -> None:
        """One part with these videos; nothing for none."""
        if not items:
            return
        scored = [item for item in items if isinstance(item, Scored)]
        skipped = [(item.index, *item.problem) for item in items if isinstance(item, Skipped)]
        arrays: dict[str, NDArray[np.generic]] = {
            "index": np.array([one.index for one in scored], dtype=np.int64),
            "views": np.array([one.views for one in scored], dtype=np.int64),
            "label_counts": np.array([len(one.labels) for one in scored], dtype=np.int64),
            "labels": np.array([label for one in scored for label in one.labels], dtype=np.int64),
            "rank_counts": np.array([len(one.view_ranks) for one in scored], dtype=np.int64),
            "ranks": np.concatenate([one.view_ranks for one in scored] or [np.empty(0, np.int64)]),
            "scores": np.array([one.scores for one in scored], dtype=np.float64),
            "log_scores": np.array([one.log_scores for one in scored], dtype=np.float64),
            "skipped": np.array(json.dumps(skipped)),
        }

        def save(partial: Path) -> None:
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]

        write_whole(self.place / f"{secrets.token_hex(8)}.npz", save)

    def indices(self) -> set[int]:
        """The videos that are in some part."""
        for name, part in self._open(but=self._indices):
            skipped = json.loads(str(part["skipped"]))
            self._indices[name] = {*part["index"].tolist(), *(index for index, _, _ in skipped)}
        return set().union(*self._indices.values())

    def read(self) -> list[Scored | Skipped]:
        """Every video once, by index."""
        found: dict[int, Scored | Skipped] = {}
        for _, part in self._open():
            labels = np.split(part["labels"], np.cumsum(part["label_counts"])[:-1])
            ranks = np.split(part["ranks"], np.cumsum(part["rank_counts"])[:-1])
            rows = zip(
                part["index"].tolist(),
                labels,
                part["scores"],
                part["log_scores"],
                ranks,
                part["views"].tolist(),
                strict=False,  # np.split of nothing gives one piece
            )
            for index, own, scores, log_scores, own_ranks, views in rows:
                found[index] = Scored(index, tuple(own.tolist()), scores, log_scores, own_ranks, views)
            for index, path, reason in json.loads(str(part["skipped"])):
                found[index] = Skipped(index, Problem(path, reason))
        return [found[index] for index in sorted(found)]

    def remove(self) -> None:
        """All parts, those of other tests in the same folder, too."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self, but: Container[str] = ()) -> Iterator[tuple[str, dict[str, NDArray[np.generic]]]]:
        """Each part by the name of its file, but for these."""
        for file in sorted(self.place.glob("*.npz")):
            if file.name in but:
                continue
            try:
                with np.load(file) as stored:
                    yield file.name, dict(stored)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                sys.stderr.write(f"{file} cannot be read ({error}); its videos are scored again\n")
                file.unlink(missing_ok=True)

    # --- several processes ---

    @contextmanager
    def alive(self, share: Share) -> Iterator[None]:
        """Let the others see, while this lasts, that this process is at work."""
        self.place.mkdir(parents=True, exist_ok=True)
        beat = self._beat(share.rank)
        stop = threading.Event()

        def beating() -> None:
            while True:
                with contextlib.suppress(OSError):  # the first process may be done with the folder
                    beat.touch()
                if stop.wait(_BEAT_SECONDS):
                    return

        thread = threading.Thread(target=beating, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def wait_for(self, videos: int, share: Share) -> None:
        """Until the parts hold all videos.

        Raises ChildProcessError where a process whose videos are missing has been silent for a minute.
        """
        started = time.time()
        while True:
            left = sorted(set(range(videos)) - self.indices())
            if not left:
                return
            now = time.time()
            for rank in sorted({index % share.processes for index in left}):
                beat = self._beat(rank)
                heard = max(started, beat.stat().st_mtime) if beat.exists() else started
                if now - heard > SILENT_SECONDS:
                    missing = sum(index % share.processes == rank for index in left)
                    raise ChildProcessError(
                        f"process {rank} of {share.processes} has been silent for {now - heard:.0f} s, and "
                        f"{missing} of its videos are missing; the same command goes on from what is done"
                    )
            time.sleep(0.5)

    def _beat(self, rank: int) -> Path:
        return self.place / f"alive-{rank}"


def work_through(
    parts: Parts, videos: int, score: Callable[[list[int]], Iterable[Scored | Skipped]]
) -> list[Scored | Skipped] | None:
    """All videos of a set, each scored by one of the processes that were launched, or before.

    Args:
        parts: where they join what they find.
        videos: how many there are.
        score: gives the videos at these places.

    Returns:
        Every video by index in the first process, None in the others.

    Raises:
        ChildProcessError: another process is silent while its videos are missing.
    """
    share = launched()
    done = parts.indices()
    if done and share.rank == 0:
        sys.stderr.write(f"{len(done)} of {videos} videos are scored already\n")
    with parts.alive(share):
        _keep(score([i for i in range(share.rank, videos, share.processes) if i not in done]), parts)
        if share.rank > 0:
            return None
        parts.wait_for(videos, share)
    return parts.read()


def _keep(items: Iterable[Scored | Skipped], parts: Parts) -> None:
    """Write items into parts as they come: every ten seconds, and what there is where the work is cut off."""
    waiting: list[Scored | Skipped] = []
    last = time.monotonic()
    try:
        for item in items:
            waiting.append(item)
            if len(waiting) >= _PART_VIDEOS or time.monotonic() - last > _PART_SECONDS:
                parts.write(waiting)
                waiting, last = [], time.monotonic()
    finally:
        parts.write(waiting)
