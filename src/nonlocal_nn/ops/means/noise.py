"""How strong is the noise: the median of the finest diagonal wavelet details (Donoho and Johnstone, 1994).

>>> noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
>>> round(float(estimate_sigma(3 * noise)), 1)
3.0

Details of an image are small nearly everywhere, noise is alike everywhere, so the median of what passes a
high-pass filter along every axis is the noise's. It is a little high where an image has fine texture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nonlocal_nn._typing import Float

# High-pass filter of Daubechies' wavelet with two vanishing moments, and the normal's upper quartile.
_HIGH_PASS = (-0.48296291314469025, 0.836516303737469, -0.22414386804185735, -0.12940952255092145)
_QUARTILE = 0.6744897501960817


def estimate_sigma(x: Float[Tensor, "batch channel *pixels"]) -> Float[Tensor, batch]:
    """The standard deviation of each image's noise, the mean over its channels.

    Details that are exactly zero do not count: they are of areas that were cut off, or masked. An image all
    whose details are zero has no noise: 0.
    """
    details = x.double()
    for axis in range(2, x.dim()):
        details = _details_along(details, axis)
    sigmas = []
    for image in details:
        channels = []
        for channel in image:
            size = channel[channel != 0].abs()
            channels.append(_median(size) / _QUARTILE if size.numel() else size.new_zeros(()))
        sigmas.append(torch.stack(channels).mean())
    return torch.stack(sigmas).to(x.dtype)


def _details_along(x: Tensor, axis: int) -> Tensor:
    """Every second value of the high-passed axis, which goes on as in a mirror that repeats its edge."""
    length, taps = x.shape[axis], len(_HIGH_PASS)
    at = torch.arange(-(taps - 1), length + taps - 1, device=x.device) % (2 * length)
    wide = x.index_select(axis, torch.minimum(at, 2 * length - 1 - at))
    count = (length + taps - 1) // 2
    result = torch.zeros_like(wide.narrow(axis, 0, count))
    for place, tap in enumerate(reversed(_HIGH_PASS)):
        every_second = torch.arange(count, device=x.device) * 2 + 1 + place
        result += tap * wide.index_select(axis, every_second)
    return result


def _median(values: Tensor) -> Tensor:
    """The mean of the two middle values where their number is even."""
    ordered = values.sort().values
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
