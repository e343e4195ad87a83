"""Where the positions of a map lie in the input: centres, distances and cells in input pixels and frames.

>>> axis = Axis(axis=2, size=224)                       # the columns of an image, one by one
>>> axis = axis.window(kernel=7, stride=2, padding=3)   # conv1 of a ResNet
>>> axis.window(kernel=3, stride=2, padding=1)          # and its pool1
Axis(axis=2, size=56, first=0.0, step=4.0, receptive=11.0)

Pixel centres are at whole numbers: pixel 0 covers -0.5 to 0.5. The axes of the input are 0 (frame), 1 (row)
and 2 (column). An image has one frame; a sequence has one frame of one row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

AXIS_NAMES = ("frame", "row", "column")


@dataclass(frozen=True)
class Axis:
    """One axis of a map, over one axis of the input.

    Attributes:
        axis: of the input: 0 (frame), 1 (row) or 2 (column).
        size: positions.
        first: centre of position 0's receptive field, in input pixels or frames.
        step: distance of the centres of neighbouring positions.
        receptive: size of a receptive field; what non-local blocks and other global layers bring in is not
            counted.
    """

    axis: int
    size: int
    first: float = 0.0
    step: float = 1.0
    receptive: float = 1.0

    def window(
        self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, size: int | None = None
    ) -> Axis:
        """The axis after a convolution or a pool; `size` where it is not what rounding down gives."""
        reach = dilation * (kernel - 1)
        return Axis(
            self.axis,
            (self.size + 2 * padding - reach - 1) // stride + 1 if size is None else size,
            self.first + (reach / 2 - padding) * self.step,
            self.step * stride,
            self.receptive + reach * self.step,
        )

    def transposed_window(self, kernel: int, stride: int, padding: int, dilation: int, size: int) -> Axis:
        """The axis after a transposed convolution."""
        reach = dilation * (kernel - 1)
        return Axis(
            self.axis,
            size,
            self.first + (padding - reach / 2) / stride * self.step,
            self.step / stride,
            self.receptive + reach // stride * self.step,
        )

    def moved(self, start: float, size: int, stride: int = 1) -> Axis:
        """The axis from position `start` on, every `stride`-th; a negative start is padding.

        >>> Axis(1, 10).moved(-2, size=14).first
        -2.0
        """
        return replace(self, first=self.first + start * self.step, step=self.step * stride, size=size)

    def resized(self, size: int) -> Axis:
        """As many positions, spread evenly over the same pixels: adaptive pools, interpolation.

        >>> Axis(1, 8).resized(2)
        Axis(axis=1, size=2, first=1.5, step=4.0, receptive=4.0)
        """
        if size == self.size:
            return self
        ratio = self.size / size
        return Axis(
            self.axis,
            size,
            self.first + (ratio - 1) / 2 * self.step,
            self.step * ratio,
            self.receptive + max(0.0, ratio - 1) * self.step,
        )

    def joined(self, other: Axis) -> Axis:
        """The axis of a sum of two maps: its receptive fields hold both.

        >>> convolved, pooled = Axis(1, 16).window(5, stride=2, padding=2), Axis(1, 16).window(2, stride=2)
        >>> convolved.joined(pooled)
        Axis(axis=1, size=8, first=0.0, step=2.0, receptive=5.0)
        """
        low = min(self.first - self.receptive / 2, other.first - other.receptive / 2)
        high = max(self.first + self.receptive / 2, other.first + other.receptive / 2)
        return replace(self, first=(low + high) / 2, receptive=high - low)


@dataclass(frozen=True)
class GridGeometry:
    """Where the positions of one map lie in the input clip, in input pixels and frames.

    >>> grid = GridGeometry(shape=(1, 2, 3), first=(0.0, 3.5, 3.5), step=(1.0, 8.0, 8.0))
    >>> grid.centres()[4].tolist(), grid.nearest(frame=0, row=20, column=12), grid.cell(4)
    ([0.0, 11.5, 11.5], 4, (-0.5, 0.5, 7.5, 15.5, 7.5, 15.5))

    Attributes:
        shape: (frames, height, width) of the map. An image's or 2-D map has one frame; a sequence's map is
            (1, 1, n).
        first: centre of position 0 along (frame, row, column), in input frames and pixels, whose centres are
            at whole numbers.
        step: distance of the centres of neighbouring positions.
        receptive: size of a position's receptive field, for information.

    Flat positions count columns fastest, then rows, then frames.
    """

    shape: tuple[int, int, int]
    first: tuple[float, float, float] = (0.0, 0.0, 0.0)
    step: tuple[float, float, float] = (1.0, 1.0, 1.0)
    receptive: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def positions(self) -> int:
        """How many there are."""
        frames, height, width = self.shape
        return frames * height * width

    def centres(self) -> NDArray[np.float64]:
        """Frame, row and column of every flat position, (positions, 3)."""
        grid = np.stack(np.meshgrid(*self.axis_centres(), indexing="ij"), axis=-1)
        return grid.reshape(-1, 3)

    def axis_centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The centres along each axis: frames (T,), rows (H,), columns (W,)."""
        frames, rows, columns = (
            first + step * np.arange(size, dtype=np.float64)
            for size, first, step in zip(self.shape, self.first, self.step, strict=True)
        )
        return frames, rows, columns

    def nearest(self, frame: float, row: float, column: float) -> int:
        """The flat position whose centre is nearest; the grid's edge for a point beyond it."""
        index = [
            min(size - 1, max(0, int(np.floor((point - first) / step + 0.5))))
            for point, size, first, step in zip(
                (frame, row, column), self.shape, self.first, self.step, strict=True
            )
        ]
        return int(np.ravel_multi_index(index, self.shape))

    def cell(self, position: int) -> tuple[float, float, float, float, float, float]:
        """The box that a flat position stands for: (frame0, frame1, row0, row1, column0, column1).

        The boxes of all positions tile the input (but for what lies beyond its edges).
        Raises ValueError for a position that is not there.
        """
        if not 0 <= position < self.positions:
            raise ValueError(f"position {position} is not one of the {self.positions} of a map {self.shape}")
        index = np.unravel_index(position, self.shape)
        box: list[float] = []
        for number, first, step in zip(index, self.first, self.step, strict=True):
            centre = first + step * int(number)
            box += [centre - step / 2, centre + step / 2]
        return (box[0], box[1], box[2], box[3], box[4], box[5])

    @classmethod
    def of_axes(cls, frame: Axis, row: Axis, column: Axis) -> GridGeometry:
        """The grid of three axes."""
        axes = (frame, row, column)
        return cls(
            shape=(frame.size, row.size, column.size),
            first=(axes[0].first, axes[1].first, axes[2].first),
            step=(axes[0].step, axes[1].step, axes[2].step),
            receptive=(axes[0].receptive, axes[1].receptive, axes[2].receptive),
        )

    def axes(self) -> tuple[Axis, Axis, Axis]:
        """Its three axes."""
        frame, row, column = (
            Axis(number, *values)
            for number, values in enumerate(
                zip(self.shape, self.first, self.step, self.receptive, strict=True)
            )
        )
        return frame, row, column

    def pooled(self, shape: tuple[int, int, int]) -> GridGeometry:
        """The grid after a pool without overlap that leaves `shape` (a block's subsampled keys).

        >>> GridGeometry((4, 7, 7)).pooled((4, 3, 3))
        GridGeometry(shape=(4, 3, 3), first=(0.0, 0.5, 0.5), step=(1.0, 2.0, 2.0), receptive=(1.0, 2.0, 2.0))
        """
        axes = []
        for axis, size in zip(self.axes(), shape, strict=True):
            kernel = axis.size // size
            axes.append(axis.window(kernel, stride=kernel, size=size))
        return GridGeometry.of_axes(*axes)
