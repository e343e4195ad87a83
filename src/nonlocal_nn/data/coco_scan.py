"""What a COCO json holds and what is wrong with it, before an hour of training is lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nonlocal_nn._cores import available_cores
from nonlocal_nn._progress import counted
from nonlocal_nn.data.categories import Category
from nonlocal_nn.data.coco import CocoSet, read_coco
from nonlocal_nn.data.errors import ImageError, Problem
from nonlocal_nn.data.isolated import run_isolated

__all__ = ["CategoryCount", "CocoReport", "scan_coco"]

_SMALL, _LARGE = 32.0**2, 96.0**2  # pixels; COCO's limits of small, medium and large


class CategoryCount(NamedTuple):
    """A category, its objects (crowds left out) and the images they are in."""

    category: Category
    objects: int
    images: int


@dataclass(frozen=True)
class CocoReport:
    """What a scan found.

    Attributes:
        found: the set.
        broken: annotations and images that cannot be used, and why.
        notes: what was filled in or looks strange.
        sizes: int32 (objects, 2), height and width of the image of each object; 0 where it cannot be read.
    """

    found: CocoSet
    broken: tuple[Problem, ...]
    notes: tuple[str, ...]
    sizes: npt.NDArray[np.int32]

    @property
    def categories(self) -> tuple[CategoryCount, ...]:
        """The objects of each category."""
        found = self.found
        image_of = np.repeat(np.arange(len(found)), np.diff(found.ends))
        rows = []
        for number, category in enumerate(found.categories, start=1):
            own = (found.labels == number) & ~found.crowds
            rows.append(CategoryCount(category, int(own.sum()), len(np.unique(image_of[own]))))
        return tuple(rows)

    @property
    def keypoints(self) -> tuple[tuple[str, int, int], ...]:
        """Name, times marked, times visible, of each keypoint."""
        found = self.found
        if found.points is None or found.keypoints is None:
            return ()
        marked = (found.keypoints[:, :, 2] > 0).sum(axis=0).tolist()
        visible = (found.keypoints[:, :, 2] > 1).sum(axis=0).tolist()
        return tuple(zip(found.points.names, marked, visible, strict=True))

    @property
    def shares(self) -> tuple[float, float, float]:
        """The shares of small, medium and large objects, by COCO's limits of 32 and 96 pixels squared."""
        areas = self.found.areas
        if not len(areas):
            return 0.0, 0.0, 0.0
        small, large = float((areas < _SMALL).mean()), float((areas > _LARGE).mean())
        return small, 1.0 - small - large, large


def scan_coco(
    source: str | Path,
    images: str | Path | None = None,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> CocoReport:
    """Check a json and decode every image of it.

    Args:
        source, images: as in `read_coco`.
        workers: processes that decode; None for one a core.
        progress: show a bar on stderr, if that is a terminal.

    Raises:
        FileNotFoundError, ValueError: as `read_coco`.
    """
    found = read_coco(source, images, task=None)
    stated = [(path, *size) for path, size in zip(found.paths, found.sizes.tolist(), strict=True)]
    looked = run_isolated(_look, stated, workers=workers or available_cores(), crashed=_crashed)
    seen = {one.path: one for one in counted(looked, len(found), "scanning", shown=progress)}
    shown = np.array([seen[path].size for path in found.paths], np.int32).reshape(-1, 2)
    bad = [Problem(one.path, one.reason) for one in seen.values() if one.reason]
    turned = sum(bool(one.note) for one in seen.values())
    first = next((one.note for one in seen.values() if one.note), "")
    notes = (*found.notes, *([f"{turned} images were {first}"] if turned else ()))
    return CocoReport(
        found, (*found.problems, *sorted(bad)), notes, np.repeat(shown, np.diff(found.ends), axis=0)
    )


class _Looked(NamedTuple):
    path: str
    size: tuple[int, int]
    reason: str
    note: str


def _look(stated: tuple[str, int, int]) -> _Looked:
    """Decode an image, of which the json states height and width."""
    from nonlocal_nn.data.images import read_image

    path, height, width = stated
    try:
        image = read_image(path, (height, width) if height else None)
    except ImageError as error:
        return _Looked(path, (0, 0), error.reason, "")
    return _Looked(path, image.pixels.shape[:2], "", image.note)


def _crashed(stated: tuple[str, int, int]) -> _Looked:
    return _Looked(stated[0], (0, 0), "the decoder crashed on it, and took its process along", "")
