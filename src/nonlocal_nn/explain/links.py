"""What one query looks at, in the terms of a picture: the keys with the largest weights, and maps of all.

>>> import numpy as np
>>> from nonlocal_nn.explain.capture.geometry import GridGeometry
>>> keys = GridGeometry((1, 2, 2), (0, 1.5, 1.5), (1, 4, 4))
>>> [(link.row, link.column, link.weight) for link in largest(np.array([0.125, 0.5, 0, 0.25]), keys, 2)]
[(1.5, 5.5, 0.5), (5.5, 5.5, 0.25)]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn.explain.capture.geometry import GridGeometry

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Link:
    """From a query to one key: where the key lies in the input, and how much it weighs."""

    key: int
    frame: float
    row: float
    column: float
    weight: float


def largest(row: Floats, keys: GridGeometry, count: int) -> list[Link]:
    """The `count` keys whose weights are largest in size, largest first; none whose weight is zero.

    Equal weights come in the order of the keys, so that a picture is the same each time.
    """
    order = np.argsort(-np.abs(row), kind="stable")[:count]
    centres = keys.centres()
    return [
        Link(int(key), *(float(value) for value in (*centres[key], row[key])))
        for key in order
        if row[key] != 0
    ]


def heat(row: Floats, keys: GridGeometry, frame: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """The weights on one frame, (height, width) pixels, linear between the centres of the keys.

    Shown are the keys that lie nearest in time to the frame.
    """
    frames, height, width = keys.shape
    at = min(frames - 1, max(0, int(np.floor((frame - keys.first[0]) / keys.step[0] + 0.5))))
    grid = np.asarray(row, dtype=np.float64).reshape(frames, height, width)[at]
    _, rows, columns = keys.axis_centres()
    on_pixels: NDArray[np.float64] = _between(rows, size[0]) @ grid @ _between(columns, size[1]).T
    return on_pixels


def weight_by_frame(row: Floats, keys: GridGeometry) -> NDArray[np.float64]:
    """The share of the row's weight (in size) that lies on each frame of the keys, (frames,); sums to 1."""
    weights = np.abs(np.asarray(row, dtype=np.float64)).reshape(keys.shape[0], -1).sum(axis=1)
    total = weights.sum()
    shares: NDArray[np.float64] = weights / (total or 1.0)
    return shares


def _between(centres: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(size, centres): how much each centre counts at each pixel; constant beyond the outermost."""
    pixels = np.arange(size)
    return np.stack([np.interp(pixels, centres, one) for one in np.eye(len(centres))], axis=1)
