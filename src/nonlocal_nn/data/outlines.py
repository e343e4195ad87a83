"""The outlines of objects as COCO has them, polygons or runs, in a few arrays for many objects.

>>> outlines = Outlines()
>>> outlines.add_polygons([[0.0, 0.0, 4.0, 0.0, 4.0, 3.0]])
>>> outlines.add_runs([2, 3, 4], height=3, width=3)
>>> outlines[0], outlines[1]
(Polygons(points=(array([[0., 0.],
       [4., 0.],
       [4., 3.]], dtype=float32),)), Runs(counts=array([2, 3, 4], dtype=int32), height=3, width=3))
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Outlines", "Polygons", "Runs", "counts_of_text", "runs_of_mask", "text_of_counts"]


class Polygons(NamedTuple):
    """Polygons in parts: `points` are float32 (corners, 2), x and y in pixels."""

    points: tuple[npt.NDArray[np.float32], ...]

    @property
    def area(self) -> float:
        """In pixels, parts added up."""
        return float(sum(_area(part) for part in self.points))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 around all parts."""
        every = np.concatenate(self.points)
        (x1, y1), (x2, y2) = every.min(axis=0).tolist(), every.max(axis=0).tolist()
        return x1, y1, x2, y2


class Runs(NamedTuple):
    """A mask as lengths of runs of pixels, outside and inside in turn, column by column."""

    counts: npt.NDArray[np.int32]
    height: int
    width: int

    @property
    def area(self) -> float:
        """Pixels inside."""
        return float(self.counts[1::2].sum())

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """uint8 (height, width) of zeros and ones.

        >>> Runs(np.array([2, 3, 4], np.int32), 3, 3).mask.tolist()
        [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
        """
        values = np.arange(len(self.counts)) % 2
        flat = np.repeat(values.astype(np.uint8), self.counts)
        return flat.reshape(self.width, self.height).T

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 around the pixels inside; of none, zeros."""
        rows, columns = np.nonzero(self.mask)
        if not len(rows):
            return 0.0, 0.0, 0.0, 0.0
        return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


class Outlines(Sequence["Polygons | Runs"]):
    """The outline of each of many objects."""

    def __init__(self) -> None:
        self._points = array("f")
        self._part_ends = array("q", [0])  # in points' numbers
        self._ends = array("q", [0])  # in parts
        self._runs = array("i")
        self._run_ends = array("q", [0])
        self._sizes = array("i")  # height and width; 0, 0 where it is no run

    def add_polygons(self, parts: Sequence[Sequence[float]]) -> None:
        """X and y in turn, part by part."""
        for part in parts:
            self._points.extend(part)
            self._part_ends.append(len(self._points))
        self._close(0, 0)

    def add_runs(self, counts: Sequence[int], *, height: int, width: int) -> None:
        """Lengths of runs that add up to height * width."""
        self._runs.extend(counts)
        self._close(height, width)

    def _close(self, height: int, width: int) -> None:
        self._ends.append(len(self._part_ends) - 1)
        self._run_ends.append(len(self._runs))
        self._sizes.extend((height, width))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Polygons | Runs:  # type: ignore[override]
        row = range(len(self))[index]
        height, width = self._sizes[2 * row : 2 * row + 2]
        if height:
            counts = np.array(self._runs[self._run_ends[row] : self._run_ends[row + 1]], np.int32)
            return Runs(counts, height, width)
        begin, end = self._ends[row], self._ends[row + 1]
        return Polygons(
            tuple(
                np.array(self._points[self._part_ends[part] : self._part_ends[part + 1]], np.float32).reshape(
                    -1, 2
                )
                for part in range(begin, end)
            )
        )


def counts_of_text(text: str) -> list[int]:
    """The run lengths of COCO's compressed text: 5 bits a letter, differences to the run before the last.

    >>> counts_of_text("234")
    [2, 3, 4]

    Raises:
        ValueError: it ends within a number, or holds a letter that cannot be.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64:
            raise ValueError(f"{letter!r} is no letter of a compressed mask")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value = shift = 0
    if shift:
        raise ValueError("the compressed mask is cut off")
    return counts


def text_of_counts(counts: Sequence[int]) -> str:
    """The compressed text of run lengths, which `counts_of_text` reads.

    >>> text_of_counts([2, 3, 4])
    '234'
    """
    letters: list[str] = []
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            code = value & 31
            value >>= 5
            more = value != (-1 if code & 16 else 0)
            letters.append(chr(48 + (code | 32 if more else code)))
    return "".join(letters)


def runs_of_mask(mask: npt.NDArray[Any], left: int = 0, width: int | None = None) -> Runs:
    """The runs of a mask (height, columns) of truths or of zeros and ones.

    >>> runs_of_mask(np.array([[0, 1], [1, 1]])).counts.tolist()
    [1, 3]
    >>> runs_of_mask(np.array([[0, 1], [1, 1]]), left=1, width=4).counts.tolist()
    [3, 3, 2]

    Args:
        mask: all columns of an image, or some of them, outside of which nothing is.
        left: the number of the first of these columns.
        width: of the image; None: the columns are all.
    """
    height, columns = mask.shape
    width = columns if width is None else width
    flat = np.asarray(mask, np.bool_).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(edges, prepend=0, append=flat.size)
    if flat.size and flat[0]:
        counts = np.concatenate([[0], counts])  # the first run is outside
    counts[0] += left * height
    rest = (width - left - columns) * height
    if rest and len(counts) % 2:
        counts[-1] += rest
    elif rest:
        counts = np.append(counts, rest)
    return Runs(counts.astype(np.int32), height, width)


def _area(points: npt.NDArray[np.float32]) -> float:
    """Gauss's shoelace formula."""
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
