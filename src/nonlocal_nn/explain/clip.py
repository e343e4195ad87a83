"""One clip of a video, or an image, cut as a network sees it, with its frames and their times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nonlocal_nn.data.decode import Clip, VideoReader
from nonlocal_nn.data.errors import VideoError
from nonlocal_nn.data.sampling import clip_indices
from nonlocal_nn.data.transforms import ViewTransform, normalize

_ENDINGS = {2: "nd", 3: "rd"}
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"))


@dataclass(frozen=True)
class ClipCut:
    """How a clip is cut: `clip_frames` frames, every `frame_stride`-th, resized and cropped by `transform`.

    `start_seconds` is counted from the first frame; None puts the clip in the middle of the video.
    """

    clip_frames: int
    frame_stride: int
    transform: ViewTransform
    start_seconds: float | None = None

    @property
    def span(self) -> int:
        """Frames from the first to the last of the clip."""
        return (self.clip_frames - 1) * self.frame_stride + 1


@dataclass(frozen=True)
class InputClip:
    """One clip: uint8 (frames, height, width, 3), and when each frame is shown (None for an image)."""

    frames: NDArray[np.uint8]
    frame_seconds: tuple[float, ...] | None
    path: str

    def tensor(self, mean: float, std: float) -> torch.Tensor:
        """The clip as a network takes it: float32 (1, 3, frames, height, width)."""
        return normalize(torch.from_numpy(self.frames).permute(3, 0, 1, 2)[None], mean, std)


def read_clip(path: str, cut: ClipCut) -> InputClip:
    """The clip of one video; an image is shown in every frame of it.

    Raises:
        VideoError: a file that cannot be read, a video shorter than the clip, or a start after which it is.
    """
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return _still(path, cut)
    with VideoReader(path) as reader:
        seconds = reader.frame_seconds - reader.frame_seconds[0]
        count = reader.num_frames
        if count < cut.span:
            raise VideoError(
                path,
                f"{count} frame{'s' * (count != 1)}, but a clip of {cut.clip_frames}, "
                f"{_every(cut.frame_stride)}, needs {cut.span}; give a smaller --clip_frames or "
                "--frame_stride",
            )
        first = (count - cut.span) // 2
        if cut.start_seconds is not None:
            first = int(np.searchsorted(seconds, cut.start_seconds - 1e-6))
            if not cut.start_seconds >= 0 or first + cut.span > count:
                raise VideoError(
                    path,
                    f"no clip of {cut.span} frames starts at {cut.start_seconds:g} s; the last one starts at "
                    f"{seconds[count - cut.span]:.2f} s",
                )
        numbers = clip_indices(first, cut.clip_frames, cut.frame_stride, count)
        clip = reader.read(numbers, prepare=cut.transform.resize)
    return InputClip(_cropped(clip, cut), tuple(float(second) for second in seconds[numbers]), path)


def _still(path: str, cut: ClipCut) -> InputClip:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            picture = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise VideoError(path, "no such file") from None
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise VideoError(path, f"not an image that can be read: {error}") from error
    still = np.zeros(1, np.int64)
    frames = _cropped(Clip(picture[None], still, still.astype(np.float64), path), cut)
    return InputClip(np.repeat(frames, cut.clip_frames, axis=0), None, path)


def _cropped(clip: Clip, cut: ClipCut) -> NDArray[np.uint8]:
    resized, boxes = cut.transform(clip)
    top, left, height, width = boxes[0]
    return np.ascontiguousarray(
        resized[:, :, top : top + height, left : left + width].permute(1, 2, 3, 0).numpy()
    )


def _every(stride: int) -> str:
    return "one after the other" if stride == 1 else f"every {stride}{_ENDINGS.get(stride, 'th')} frame"
