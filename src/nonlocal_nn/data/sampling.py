"""Pure index rules: which frames make a clip, which part of the frame is seen, and random numbers.

Nothing here touches a file or a tensor. With clip_frames = 32 and stride = 2 a clip is the paper's "64
consecutive frames, every other one kept": its window is clip_frames * stride frames long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nonlocal_nn.data.defaults import CROPS

__all__ = [
    "CropBox",
    "clip_indices",
    "clip_window",
    "crop_offsets",
    "random_crop",
    "random_start",
    "resized_size",
    "sample_generator",
    "uniform_starts",
]

FrameNumbers = npt.NDArray[np.int64]


class CropBox(NamedTuple):
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def sample_generator(seed: int, epoch: int, index: int, attempt: int = 0) -> np.random.Generator:
    """Return the generator of all random numbers of one sample.

    >>> a, b = sample_generator(0, 3, 17), sample_generator(0, 3, 17)
    >>> bool(a.random() == b.random())
    True
    >>> bool(sample_generator(0, 4, 17).random() == b.random())
    False

    The numbers depend on (seed, epoch, index, attempt) alone: not on the worker, the order of samples, the
    number of machines, or anything drawn before. That is what lets a run resume in the middle of an epoch,
    bit for bit. `attempt` counts the replacements of a broken video.

    Raises:
        ValueError: a negative number.
    """
    if min(seed, epoch, index, attempt) < 0:
        raise ValueError(
            f"seed, epoch, index and attempt must be 0 or more, not {(seed, epoch, index, attempt)}"
        )
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, index, attempt])))


def clip_window(clip_frames: int, stride: int) -> int:
    """Return the number of consecutive frames a clip is cut from, clip_frames * stride.

    >>> clip_window(32, 2)
    64

    Raises:
        ValueError: a number below 1.
    """
    if clip_frames < 1 or stride < 1:
        raise ValueError(f"clip_frames and stride must be 1 or more, not {clip_frames} and {stride}")
    return clip_frames * stride


def clip_indices(start: int, clip_frames: int, stride: int, num_frames: int) -> FrameNumbers:
    """Return the frame numbers of one clip: (start + stride * k) mod num_frames for k = 0 .. clip_frames - 1.

    >>> clip_indices(10, clip_frames=4, stride=2, num_frames=300).tolist()
    [10, 12, 14, 16]
    >>> clip_indices(0, clip_frames=6, stride=2, num_frames=5).tolist()  # a short video starts over
    [0, 2, 4, 1, 3, 0]

    Raises:
        ValueError: no frames, a start outside the video, or a size below 1.
    """
    clip_window(clip_frames, stride)
    if num_frames < 1:
        raise ValueError(f"num_frames must be 1 or more, not {num_frames}")
    if not 0 <= start < num_frames:
        raise ValueError(f"start {start} lies outside the video's frames 0 .. {num_frames - 1}")
    return (start + stride * np.arange(clip_frames, dtype=np.int64)) % num_frames


def random_start(num_frames: int, clip_frames: int, stride: int, generator: np.random.Generator) -> int:
    """Draw the first frame of a training clip uniformly from 0 .. num_frames - clip_frames * stride.

    >>> starts = {random_start(66, 32, 2, sample_generator(0, 0, i)) for i in range(50)}
    >>> sorted(starts)
    [0, 1, 2]
    >>> random_start(10, 32, 2, sample_generator(0, 0, 0))  # shorter than the window: from the start, wrapped
    0
    """
    last = max(0, num_frames - clip_window(clip_frames, stride))
    return int(generator.integers(0, last + 1))


def uniform_starts(num_frames: int, clip_frames: int, stride: int, clips: int) -> FrameNumbers:
    """Return the first frames of `clips` clips spread evenly along the video, first and last window included.

    >>> uniform_starts(300, clip_frames=32, stride=2, clips=10).tolist()
    [0, 26, 52, 79, 105, 131, 157, 184, 210, 236]
    >>> uniform_starts(300, clip_frames=32, stride=2, clips=1).tolist()  # one clip: the centre
    [118]
    >>> uniform_starts(40, clip_frames=32, stride=2, clips=3).tolist()  # shorter than the window
    [0, 0, 0]

    With last = max(0, num_frames - clip_frames * stride), start i is round(last * i / (clips - 1)), halves
    down; a single clip starts at last // 2. (Testing, section 4.1 of the paper: 10 clips.)

    Raises:
        ValueError: fewer than one clip.
    """
    if clips < 1:
        raise ValueError(f"clips must be 1 or more, not {clips}")
    last = max(0, num_frames - clip_window(clip_frames, stride))
    if clips == 1:
        return np.array([last // 2], dtype=np.int64)
    # in whole numbers, so that the same frames are chosen on every machine
    steps = np.arange(clips, dtype=np.int64)
    return (2 * last * steps + clips - 2) // (2 * (clips - 1))


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width) after scaling the shorter side to `short_side`, aspect kept to the nearest
    pixel.

    >>> resized_size(240, 320, 256)
    (256, 341)
    >>> resized_size(640, 360, 256)
    (455, 256)
    """
    if min(height, width, short_side) < 1:
        raise ValueError(
            f"sizes must be 1 or more, not height {height}, width {width}, short_side {short_side}"
        )
    if height <= width:
        return short_side, max(short_side, (2 * width * short_side + height) // (2 * height))
    return max(short_side, (2 * height * short_side + width) // (2 * width)), short_side


def crop_offsets(height: int, width: int, size: int, crops: int = CROPS) -> tuple[tuple[int, int], ...]:
    """Return the (top, left) of one centre crop, or of three along the longer side.

    >>> crop_offsets(256, 340, 256, crops=3)  # left, centre, right
    ((0, 0), (0, 42), (0, 84))
    >>> crop_offsets(455, 256, 256, crops=3)  # top, centre, bottom
    ((0, 0), (99, 0), (199, 0))
    >>> crop_offsets(256, 340, 224, crops=1)
    ((16, 58),)

    Raises:
        ValueError: a crop larger than the frame, or a number of crops other than 1 or 3.
    """
    if size < 1 or size > min(height, width):
        raise ValueError(f"a crop of {size} does not fit a frame of {height} x {width}; resize it first")
    top, left = (height - size) // 2, (width - size) // 2
    if crops == 1:
        return ((top, left),)
    if crops != 3:
        raise ValueError(f"crops must be 1 (centre) or 3 (along the longer side), not {crops}")
    if width >= height:
        return ((top, 0), (top, left), (top, width - size))
    return ((0, left), (top, left), (height - size, left))


def random_crop(
    height: int, width: int, crop: int, jitter: tuple[int, int], generator: np.random.Generator
) -> CropBox:
    """Draw the square of the original frame that becomes a training crop.

    >>> random_crop(256, 340, crop=224, jitter=(256, 256), generator=sample_generator(0, 0, 0))[2:]
    (224, 224)

    Scaling the shorter side to s, uniform in [jitter[0], jitter[1]], and cutting crop x crop from the result
    sees a square of crop * min(height, width) / s original pixels. Drawing that square first means that only
    the pixels that are kept are resized. Its side is rounded to a whole pixel.

    Raises:
        ValueError: a jitter range that is empty or below the crop.
    """
    low, high = jitter
    if not 1 <= crop <= low <= high:
        raise ValueError(f"need 1 <= crop <= jitter[0] <= jitter[1], not crop {crop} and jitter {jitter}")
    scaled_side = int(generator.integers(low, high + 1))
    short = min(height, width)
    side = min(short, max(1, round(crop * short / scaled_side)))
    top = int(generator.integers(0, height - side + 1))
    left = int(generator.integers(0, width - side + 1))
    return CropBox(top, left, side, side)
