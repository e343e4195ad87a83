"""How near one picture is to another: PSNR and SSIM.

>>> clean = np.zeros((16, 16))
>>> round(psnr(clean + 0.1, clean), 2)                    # of a range of one: 10 log10(1 / 0.01)
20.0
>>> ssim(clean, clean)
1.0
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[Any]

_WINDOW, _DEVIATION = 11, 1.5  # pixels: Wang, Bovik, Sheikh and Simoncelli, 2004
_K1, _K2 = 0.01, 0.03


def psnr(picture: Picture, clean: Picture) -> float:
    """Peak signal to noise ratio in decibels, for a range of one; infinite where both are equal."""
    error = float(np.mean((picture.astype(np.float64) - clean) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(picture: Picture, clean: Picture) -> float:
    """Structural similarity, for a range of one: the mean over all pixels (the last two axes) and the others.

    Args:
        picture, clean: (..., height, width), of one shape, at least 11 x 11 pixels.

    Raises:
        ValueError: smaller than the window.
    """
    if min(picture.shape[-2:]) < _WINDOW:
        raise ValueError(f"SSIM looks at {_WINDOW} x {_WINDOW} pixels; a picture has {picture.shape[-2:]}")
    a, b = picture.astype(np.float64), clean.astype(np.float64)
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    both = _blurred(a * b) - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    alike = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((alike / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _blurred(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A Gaussian window over the last two axes, where all of it is inside."""
    at = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-(at**2) / (2 * _DEVIATION**2))
    window /= window.sum()
    for axis in (-1, -2):
        x = np.apply_along_axis(np.convolve, axis, x, window, "valid")
    return x
