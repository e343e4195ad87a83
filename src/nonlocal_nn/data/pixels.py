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

__all__ = ["Clip", "ContactSheet", "Image"]

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
        self.rotation_degrees = 0
        self._size = (0, 0)
        self._prepare = prepare
        self._reformatter = VideoReformatter()  # holds swscale's tables, which cost more than a conversion

    def put(self, number: int, frame: Any, seconds: float) -> None:
        """Turn one decoded frame into upright RGB at its place."""
        if not len(self.frames):
            self._size = (frame.width, frame.height)
            self.rotation_degrees = round(frame.rotation / 90) * 90
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
        if self.rotation_degrees:
            image = np.rot90(image, self.rotation_degrees // 90)
        if self._prepare is not None:
            image = self._prepare(image)
        if not len(self.frames):
            self.frames = np.empty((len(self.row), *image.shape), dtype=np.uint8)
        self.frames[self.row[number]] = image
        self.seconds[self.row[number]] = seconds
        self.pending.discard(number)
