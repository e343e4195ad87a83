"""Decoded frames to network input: resize, crop, flip, normalise.

Clips stay uint8 until they are on the device that trains or tests: a quarter of the bytes to move between
processes, and `normalize` is the last step everywhere. In memory they are (frames, height, width, channels),
as decoded; they are seen as (channels, frames, height, width), which torch calls channels_last_3d: nothing is
copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from nonlocal_nn.data.decode import Clip
from nonlocal_nn.data.defaults import CROP, CROPS, FLIP, MEAN, STD, jitter_range, short_side_of
from nonlocal_nn.data.sampling import CropBox, crop_offsets, random_crop, resized_size

# A resized frame may have no more: 16 times a square of 1024. Longer strips are no videos.
MOST_PIXELS = 2**24

__all__ = ["MEAN", "STD", "TrainTransform", "ViewTransform", "normalize"]


def normalize(
    video: Tensor, mean: float | Sequence[float] = MEAN, std: float | Sequence[float] = STD
) -> Tensor:
    """Return (video - mean) / std as float32, ready for the network.

    >>> normalize(torch.full((2, 3, 4, 8, 8), 255, dtype=torch.uint8)).unique()
    tensor([2.4444])

    Args:
        video: (..., 3, frames, height, width), uint8 or float in 0 .. 255, of any memory order and on any
        device. mean, std: one number, or one for each channel.

    Returns:
        float32 of the same shape, contiguous.

    Raises:
        ValueError: fewer than four axes, or as many means as there are no channels.
    """
    if video.ndim < 4:
        raise ValueError(f"a video has axes (..., channels, frames, height, width), not {tuple(video.shape)}")
    channels = video.shape[-4]
    shift, scale = (_per_channel(value, channels, video.device) for value in (mean, std))
    out = torch.empty(video.shape, dtype=torch.float32, device=video.device)
    return torch.sub(video, shift, out=out).div_(scale)


def _per_channel(value: float | Sequence[float], channels: int, device: torch.device) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float32, device=device).reshape(-1)
    if len(values) not in (1, channels):
        raise ValueError(f"{len(values)} means or deviations for {channels} channels: give 1 or {channels}")
    return values.reshape(-1, 1, 1, 1)


@dataclass(frozen=True)
class TrainTransform:
    """The paper's augmentation (section 4.1): random scale, random crop, random mirror; one draw for a whole
    clip.

    >>> from nonlocal_nn.data.sampling import sample_generator
    >>> clip = Clip(np.zeros((8, 256, 340, 3), np.uint8), np.arange(8), np.arange(8) / 30, "a.mp4")
    >>> TrainTransform()(clip, sample_generator(seed=0, epoch=0, index=0)).shape
    torch.Size([3, 8, 224, 224])

    Attributes:
        crop: side of the square that is returned, in pixels.
        jitter: the shorter side of the frame is scaled to a whole number drawn uniformly from this range,
            ends included; at least `crop`.
        flip: probability of a left-right mirror image; 0 where left and right matter.
    """

    crop: int = CROP
    jitter: tuple[int, int] = jitter_range(CROP)
    flip: float = FLIP

    def __post_init__(self) -> None:
        low, high = self.jitter
        if not 1 <= self.crop <= low <= high:
            raise ValueError(
                f"need 1 <= crop <= jitter[0] <= jitter[1], not crop {self.crop} and jitter {self.jitter}"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability, not {self.flip}")

    def __call__(self, clip: Clip, generator: np.random.Generator) -> Tensor:
        """Return the clip as uint8 (3, frames, crop, crop)."""
        height, width = clip.frames.shape[1:3]
        box = random_crop(height, width, self.crop, self.jitter, generator)
        mirrored = bool(generator.random() < self.flip)
        frames = _resize(_cut(torch.from_numpy(clip.frames), box), self.crop, self.crop)
        if mirrored:
            frames = frames.flip(-1)
        return frames.transpose(0, 1)


@dataclass(frozen=True)
class ViewTransform:
    """What one clip becomes for testing: resized once, then one or three crops of it, or all of it.

    >>> clip = Clip(np.zeros((8, 240, 320, 3), np.uint8), np.arange(8), np.arange(8) / 30, "a.mp4")
    >>> frames, boxes = ViewTransform(short_side=256, crop=256, crops=3)(clip)
    >>> frames.shape, [box.left for box in boxes]
    (torch.Size([3, 8, 256, 341]), [0, 42, 85])

    Attributes:
        short_side: the shorter side of the frame is scaled to this.
        crop: side of the square crops; None for the full frame (the network is fully convolutional).
        crops: 1 (centre) or 3 (left, centre, right, or top, centre, bottom, along the longer side); 1 with
            the full frame.
    """

    short_side: int = short_side_of(CROP)
    crop: int | None = short_side_of(CROP)
    crops: int = CROPS

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise ValueError(f"short_side must be 1 or more, not {self.short_side}")
        if self.crop is None and self.crops != 1:
            raise ValueError(f"the full frame is one view, so crops must be 1, not {self.crops}")
        if self.crop is not None:
            crop_offsets(self.short_side, self.short_side, self.crop, self.crops)  # raises where impossible

    def resize(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize one frame, (height, width, 3); for `VideoReader.read(prepare=...)`."""
        height, width = resized_size(image.shape[0], image.shape[1], self.short_side)
        if height * width > MOST_PIXELS:
            raise ValueError(
                f"a frame of {image.shape[1]}x{image.shape[0]} pixels would become {width}x{height} at a "
                f"shorter side of {self.short_side}: more than {MOST_PIXELS / 1e6:.0f} million"
            )
        # the batch axis first, so that torch sees its fast memory order
        frame = torch.from_numpy(np.ascontiguousarray(image)[np.newaxis]).permute(0, 3, 1, 2)
        resized: npt.NDArray[np.uint8] = _resize(frame, height, width)[0].permute(1, 2, 0).numpy()
        return resized

    def __call__(self, clip: Clip) -> tuple[Tensor, tuple[CropBox, ...]]:
        """Return the resized frames, uint8 (3, frames, height, width), and the crops to take from them."""
        height, width = resized_size(clip.frames.shape[1], clip.frames.shape[2], self.short_side)
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
        resized = _resize(frames, height, width).transpose(0, 1)
        if self.crop is None:
            return resized, (CropBox(0, 0, height, width),)
        offsets = crop_offsets(height, width, self.crop, self.crops)
        return resized, tuple(CropBox(top, left, self.crop, self.crop) for top, left in offsets)


def _cut(frames: Tensor, box: CropBox) -> Tensor:
    """(frames, height, width, 3) to a copy of the box, (frames, 3, box.height, box.width)."""
    cut = frames[:, box.top : box.top + box.height, box.left : box.left + box.width]
    return cut.contiguous().permute(0, 3, 1, 2)


def _resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing, in uint8, which torch does with vector instructions in this layout."""
    if frames.shape[-2:] == (height, width):
        return frames
    return functional.interpolate(frames, size=(height, width), mode="bilinear", antialias=True)
