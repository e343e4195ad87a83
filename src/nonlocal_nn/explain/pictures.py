"""The pictures that a clip was made of, for drawing."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonlocal_nn.data.defaults import MEAN, STD


def pictures_of(clip: Tensor) -> NDArray[np.uint8]:
    """A normalised clip as pictures; other values are stretched to the range of a picture."""
    values = clip.detach()[0].float().cpu()
    values = values.reshape(values.shape[0], *(1, 1, 1, *values.shape[1:])[-3:])
    if values.shape[0] != 3:
        values = values.mean(dim=0, keepdim=True).expand(3, -1, -1, -1)
    low, high = float(values.min()), float(values.max())
    normalised = (-MEAN / STD - 0.2, (255 - MEAN) / STD + 0.2)
    if low >= 0 and high <= 1:
        values = values * 255
    elif normalised[0] <= low and high <= normalised[1]:
        values = values * STD + MEAN
    elif low < 0 or high > 255:
        values = (values - low) / max(high - low, 1e-12) * 255
    pictures: NDArray[np.uint8] = values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy()
    return np.ascontiguousarray(pictures)


def checked_frames(frames: NDArray[np.uint8], size: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The frames as they were given.

    Raises ValueError where they are no uint8 pictures of the clip's size (frames, height, width).
    """
    if frames.dtype != np.uint8 or frames.shape != (*size, 3):
        raise ValueError(
            f"frames must be uint8 {(*size, 3)}, as the clip has them, not {frames.dtype} {frames.shape}"
        )
    return np.ascontiguousarray(frames)
