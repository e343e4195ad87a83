"""Decoded frames become upright RGB, straight into one array."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from nonlocal_nn.data.errors import VideoError

__all__ = ["UPRIGHT", "Clip", "ContactSheet", "Image", "Orientation", "orientation_of"]

# Older PyAV has no `threads` here. Left alone, swscale would start one thread for each core, in every worker.
_RGB_OPTIONS: dict[str, Any] = {"format": "rgb24"}
if "threads" in (VideoReformatter.reformat.__doc__ or ""):
    _RGB_OPTIONS["threads"] = 1


@dataclass(frozen=True, slots=True)
class Clip:
    """Some frames of one video.

    Attributes:
        frames: RGB, uint8 (n, height, width, 3), upright.
        indices: the frame numbers asked for, (n,).
        pts_seconds: the time at which each is shown, (n,), in seconds from the start of the file's clock.
        path: the file.
    """

    frames: npt.NDArray[np.uint8]
    indices: npt.NDArray[np.int64]
    pts_seconds: npt.NDArray[np.float64]
    path: str


Image = npt.NDArray[np.uint8]  # (height, width, 3)

# A larger frame than this (8K is 33 million pixels) is no video that a network is meant for.
MOST_PIXELS = 2**26


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored frame is turned to be shown: rows and columns exchanged first, then mirrored.

    >>> Orientation(transpose=True, flip_columns=False, flip_rows=True).rotation_degrees
    90

    Attributes:
        transpose: exchange rows and columns.
        flip_columns: then mirror left to right.
        flip_rows: and top to bottom.
    """

    transpose: bool
    flip_columns: bool
    flip_rows: bool

    @property
    def mirrored(self) -> bool:
        """Whether the picture is mirrored: no turn alone gives it."""
        return self.transpose ^ self.flip_columns ^ self.flip_rows

    @property
    def rotation_degrees(self) -> int:
        """The counter-clockwise turn, after mirroring left to right where `mirrored`: 0, 90, 180 or -90."""
        if self.transpose:
            return -90 if self.flip_columns else 90
        return 180 if self.flip_rows else 0

    def apply(self, image: Image) -> Image:
        """The frame as it is shown; a view of the stored one."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


UPRIGHT = Orientation(transpose=False, flip_columns=False, flip_rows=False)


def orientation_of(frame: Any) -> Orientation:
    """What the display matrix of a decoded frame asks for, the nearest of the eight orientations.

    The matrix (libavutil/display.h: nine int32 a b u c d v x y w) takes column p and row q of the stored
    frame to column a p + c q and row b p + d q, up to a shift.
    """
    data = next((d for d in frame.side_data if getattr(d.type, "name", "") == "DISPLAYMATRIX"), None)
    if data is None:
        return UPRIGHT
    a, b, _, c, d = (int(number) for number in np.frombuffer(bytes(data), dtype="=i4")[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(transpose=False, flip_columns=a < 0, flip_rows=d < 0)
    return Orientation(transpose=True, flip_columns=c < 0, flip_rows=b < 0)


class ContactSheet:
    """The wanted frames of one call, filled in as they are decoded."""

    def __init__(
        self, path: str, wanted: npt.NDArray[np.int64], prepare: Callable[[Image], Image] | None = None
    ) -> None:
        self.path = path
        self.row = {int(number): row for row, number in enumerate(wanted)}
        self.pending = set(self.row)
        self.frames = np.empty((0, 0, 0, 3), dtype=np.uint8)  # made when the size of the first frame is known
        self.seconds = np.zeros(len(wanted), dtype=np.float64)
        self.orientation = UPRIGHT
        self._size = (0, 0)
        self._prepare = prepare
        self._reformatter = VideoReformatter()  # holds swscale's tables, which cost more than a conversion

    def put(self, number: int, frame: Any, seconds: float) -> None:
        """Turn one decoded frame into upright RGB at its place."""
        if not len(self.frames):
            self._size = (frame.width, frame.height)
            self.orientation = orientation_of(frame)
            if frame.width * frame.height > MOST_PIXELS:
                raise VideoError(
                    self.path,
                    f"a frame of {frame.width}x{frame.height} pixels is larger than what is read "
                    f"({MOST_PIXELS / 1e6:.0f} million pixels)",
                )
        # A stream may change its size midway: what follows is scaled to the first wanted frame.
        width, height = self._size
        try:
            rgb = self._reformatter.reformat(frame, width=width, height=height, **_RGB_OPTIONS)
        except (OSError, ValueError, av.FFmpegError) as error:
            raise VideoError(
                self.path, f"pixel format {frame.format.name} cannot be turned into RGB"
            ) from error
        plane = rgb.planes[0]
        image: Image = np.ndarray(
            (height, width, 3), np.uint8, buffer=memoryview(plane), strides=(plane.line_size, 3, 1)
        )
        image = self.orientation.apply(image)
        if self._prepare is not None:
            try:
                image = self._prepare(image)
            except ValueError as error:  # a frame of a shape that cannot be prepared
                raise VideoError(self.path, str(error)) from None
        if not len(self.frames):
            self.frames = np.empty((len(self.row), *image.shape), dtype=np.uint8)
        self.frames[self.row[number]] = image
        self.seconds[self.row[number]] = seconds
        self.pending.discard(number)
