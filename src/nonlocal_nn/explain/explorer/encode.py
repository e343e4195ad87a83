"""Rows of f / C as few bytes: what `pack.py` stores of a block, and how large its error can be.

>>> rows = np.array([[0.0, 0.1, 0.4, 0.5]], dtype=np.float32)
>>> plan = Plan(levels=255)
>>> scale, codes = quantise(rows, plan)
>>> bool(np.abs(restore(scale, codes, plan) - rows).max() <= plan.error * 0.5)
True

A weight is stored as the square root of its place between the smallest and the largest weight of its row, on
a scale of `levels` steps: large and small weights both keep a few digits, so that heat and sums come out
right. The leaders of a row, which the arrows go to, are stored once more on a scale of their own: which they
are is exact.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[np.generic]]

_SPACE_BINS = 12  # at most, in the chart of weight by distance


@dataclass(frozen=True)
class Plan:
    """How the rows of one block are stored.

    levels: steps of the scale from a row's smallest to its largest weight, at most 255.
    leaders: how many of a row's largest weights are stored once more, on a scale of their own.
    top: how many weights of each row are stored one by one; None: all of them.
    cells: with `top`, the others are summed over so many cells along the height and the width of a frame.
    stride: every so-many-th query position along the height and the width.
    signed: weights may be negative: half of the levels are for those.
    """

    levels: int
    leaders: int = 20
    top: int | None = None
    cells: int = 4
    stride: int = 1
    signed: bool = False

    @property
    def steps(self) -> int:
        """Steps of the scale from its zero to the largest weight."""
        return self.levels // 2 if self.signed else self.levels

    @property
    def error(self) -> float:
        """By what share of its row's range (signed: of its largest size) a stored weight may be off.

        The root r of a place p = r^2 is off by at most 1 / (2 steps), so p by (r + r') |r - r'| <= 1 / steps.
        """
        return 1 / self.steps


# The leaders' scale reaches from the smallest of them to the largest, whatever their signs.
LEADER_PLAN = Plan(levels=255)


def quantise(rows: Floats, plan: Plan) -> tuple[Floats, Codes]:
    """For each row the two numbers of its scale, its zero and its range; and the codes (rows, weights).

    >>> quantise(np.array([[-1.0, 0.0, 0.25]], dtype=np.float32), Plan(levels=255, signed=True))[1].tolist()
    [[0, 127, 191]]
    """
    if plan.signed:
        zero = np.zeros((len(rows), 1), np.float32)
        span = np.abs(rows).max(axis=1, keepdims=True)
    else:
        zero = rows.min(axis=1, keepdims=True)
        span = rows.max(axis=1, keepdims=True) - zero
    place = (rows - zero) / np.where(span > 0, span, 1)
    root = np.copysign(np.sqrt(np.abs(place)), place)
    codes = np.rint(root * plan.steps) + (plan.steps if plan.signed else 0)
    return np.concatenate([zero, span], axis=1).astype(np.float32), codes.astype(np.uint8)


def restore(scale: Floats, codes: Codes, plan: Plan) -> Floats:
    """The weights as the page shows them."""
    root = codes.astype(np.float32) / np.float32(plan.steps) - np.float32(plan.signed)
    weights: Floats = scale[:, :1] + scale[:, 1:] * root * np.abs(root)
    return weights


def encode(rows: Floats, key_shape: tuple[int, int, int], plan: Plan) -> Arrays:
    """The arrays that hold some rows under a plan, one row of each array for each of them.

    All weights: `scale` and `codes`. With `top`: those of the largest weights in the order of their
    positions; the steps from one position to the next, as `gap_low` + 256 `gap_high`; and `rest_scale` and
    `rest_codes`, the sums of the other weights over the cells of each frame. The leaders: the first four,
    with `lead_` in front.
    """
    arrays: Arrays = {}
    if plan.leaders:
        arrays, _ = _largest(rows, plan.leaders, plan.signed, LEADER_PLAN, "lead_")
    if plan.top is None:
        arrays["scale"], arrays["codes"] = quantise(rows, plan)
        return arrays
    largest, positions = _largest(rows, plan.top, plan.signed, plan, "")
    rest = rows.copy()
    np.put_along_axis(rest, positions, 0, axis=1)
    frames, height, width = key_shape
    cells = rest.reshape(len(rows), frames, height, width)
    cells = np.add.reduceat(cells, cell_starts(height, plan.cells), axis=2)
    cells = np.add.reduceat(cells, cell_starts(width, plan.cells), axis=3)
    arrays["rest_scale"], arrays["rest_codes"] = quantise(cells.reshape(len(rows), -1), plan)
    return arrays | largest


def _largest(rows: Floats, count: int, signed: bool, plan: Plan, prefix: str) -> tuple[Arrays, Integers]:
    """The arrays of the `count` largest weights (by size) of each row, and their positions in order."""
    count = min(count, rows.shape[1])
    size = np.abs(rows) if signed else rows
    positions = np.sort(np.argpartition(size, -count, axis=1)[:, -count:], axis=1)
    scale, codes = quantise(np.take_along_axis(rows, positions, axis=1), plan)
    gaps = np.diff(positions, axis=1, prepend=0)
    named: Arrays = {
        "scale": scale,
        "codes": codes,
        "gap_low": (gaps % 256).astype(np.uint8),
        "gap_high": (gaps // 256).astype(np.uint16),
    }
    return {prefix + name: array for name, array in named.items()}, positions


def cell_starts(size: int, cells: int) -> Integers:
    """Where each of `cells` runs of nearly equal length begins.

    >>> cell_starts(14, 4).tolist(), cell_starts(3, 4).tolist()
    ([0, 3, 7, 10], [0, 1, 2])
    """
    cells = min(size, cells)
    return np.arange(cells) * size // cells


def space_bin_pixels(height: int, width: int) -> float:
    """The width of a bin of the chart of weight by distance: a round number, for at most 12 bins.

    >>> space_bin_pixels(224, 224), space_bin_pixels(48, 48)
    (40.0, 8.0)
    """
    least = math.hypot(height, width) / _SPACE_BINS
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 8, 10) if step * power >= least)


def shares(
    rows: Floats,
    key_shape: tuple[int, int, int],
    places: Floats,
    key_places: Floats,
    bin_pixels: float,
    bins: int,
) -> Arrays:
    """What part of a row's weight (by size) lies in each frame of the keys, and at each distance in space.

    places, key_places: (row, column) in input pixels of the queries and of the keys of one frame.
    Stored as 255ths: `frame_shares` (rows, frames of the keys) and `space_shares` (rows, bins).
    """
    size = np.abs(rows).reshape(len(rows), key_shape[0], -1)
    total = size.sum(axis=(1, 2), dtype=np.float64)[:, None]
    total[total == 0] = 1
    across = np.linalg.norm(places[:, None, :] - key_places[None, :, :], axis=2)
    bin_of = np.minimum((across / bin_pixels).astype(np.int64), bins - 1)
    flat = (bin_of + bins * np.arange(len(rows))[:, None]).ravel()
    by_bin = np.bincount(flat, weights=size.sum(axis=1).ravel(), minlength=bins * len(rows))
    return {
        "frame_shares": np.rint(255 * size.sum(axis=2) / total).astype(np.uint8),
        "space_shares": np.rint(255 * by_bin.reshape(len(rows), bins) / total).astype(np.uint8),
    }


@dataclass(frozen=True)
class PackedArray:
    """One array for the page: little-endian, deflated, as base64 text."""

    dtype: str
    row: int  # values in a row
    differences: bool  # from the row before, modulo 256
    text: bytes


class Deflater:
    """One array, taken in a few rows at a time and never held as a whole.

    differences: store what each row of bytes adds to the one before. Neighbouring positions mostly look at
    much the same places, and then it takes less.

    >>> deflater = Deflater()
    >>> deflater.add(np.zeros((2, 3), np.uint8))
    >>> array = deflater.finish()
    >>> array.dtype, array.row, zlib.decompress(base64.b64decode(array.text), wbits=-15)
    ('uint8', 3, b'\\x00\\x00\\x00\\x00\\x00\\x00')
    """

    def __init__(self, differences: bool = False) -> None:
        self.differences = differences
        self._last: npt.NDArray[np.generic] | None = None
        self._stream = zlib.compressobj(6, zlib.DEFLATED, -15)
        self._pieces: list[bytes] = []
        self._dtype, self._row = "", 0

    def add(self, rows: npt.NDArray[np.generic]) -> None:
        """The next rows."""
        self._dtype, self._row = rows.dtype.name, rows.shape[1]
        if self.differences:
            before = np.zeros_like(rows[:1]) if self._last is None else self._last
            self._last = rows[-1:]
            rows = np.diff(rows, axis=0, prepend=before)
        little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
        self._pieces.append(self._stream.compress(little.tobytes()))

    def finish(self) -> PackedArray:
        """The array as text."""
        self._pieces.append(self._stream.flush())
        return PackedArray(self._dtype, self._row, self.differences, base64.b64encode(b"".join(self._pieces)))
