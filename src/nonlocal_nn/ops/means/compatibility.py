"""The filter of scikit-image 0.26, bug for bug, for results that must be reproduced.

How it differs from the textbook's:

- Fast mode compares windows one smaller each way than the patch (offsets -r + 1 to r), divides by the full
  size, subtracts 2 sigma^2 in the smaller window only, and takes candidates from the mirrored edge too.
- Slow mode stays inside the image and weights the patch by a Gaussian, but gives up on a pair as soon as the
  rows (planes, in 3-D) summed so far pass 5, before the noise of the rest is subtracted.
- Weights below exp(-5) are dropped, and the exponential is Schraudolph's: the bits of a double, written as an
  integer. It is 4 % too small to 2 % too large; a pixel's own weight is 0.971.

>>> import numpy as np
>>> fast_exp(np.array([0.0, -1.0])).round(3).tolist()
[0.971, 0.375]
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FARTHEST = 5.0
_EXP_SLOPE = 1512775.3951951856938  # 2^20 / ln 2
_EXP_START = 1072632447  # 1023 * 2^20 - 60801


def fast_exp(y: Floats) -> Floats:
    """Schraudolph's exponential (1999), with the constant of least mean square error."""
    upper = np.trunc(_EXP_SLOPE * y).astype(np.int64) + _EXP_START
    result: Floats = (upper << 32).view(np.float64)
    return result


def fast_mode(image: Floats, size: int, far: int, h: float, sigma: float) -> Floats:
    """The fast filter.

    image: (*pixels, channels); size: of a patch, odd; far: patch_distance; both for all axes.
    """
    shape, axes, radius = image.shape[:-1], image.ndim - 1, size // 2
    edge = radius + far + 1
    padded = np.pad(image, [(edge, edge)] * axes + [(0, 0)], mode="reflect")
    per_unit = image.shape[-1] * float(size) ** axes * h * h
    noise = 2.0 * sigma * sigma * image.shape[-1]
    total, weighted = np.zeros(shape), np.zeros(image.shape)
    here = _window_of(padded, shape, edge - radius + 1, 2 * radius - 1)
    for shift in itertools.product(range(-far, far + 1), repeat=axes):
        there = _window_of(padded, shape, edge - radius + 1, 2 * radius - 1, shift)
        if radius:
            distance = ((here - there) ** 2).sum(axis=-1) - noise
            for axis in range(axes):
                distance = _window_sum(distance, 2 * radius, axis)
        else:  # a window of no pixels: all are alike, whatever h is
            distance = np.zeros(shape)
        distance = np.maximum(distance, 0.0) / per_unit
        weight = np.where(distance > _FARTHEST, 0.0, fast_exp(-distance))
        total += weight
        weighted += weight[..., None] * _window_of(padded, shape, edge, 0, shift)
    result: Floats = weighted / total[..., None]
    return result


def slow_mode(image: Floats, size: int, far: int, h: float, sigma: float) -> Floats:
    """The slow filter, of 2-D images with channels or 3-D images with one; arguments as of `fast_mode`."""
    shape, axes, radius = image.shape[:-1], image.ndim - 1, size // 2
    padded = np.pad(image, [(radius, radius)] * axes + [(0, 0)], mode="reflect")
    kernel = _gaussian(size, axes)
    kernel /= kernel.sum() * image.shape[-1] * h * h
    total, weighted = np.zeros(shape), np.zeros(image.shape)
    for shift in itertools.product(*(range(-min(far, n - 1), min(far, n - 1) + 1) for n in shape)):
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(shift, shape, strict=True))
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(shift, shape, strict=True))
        weight = _slow_weight(padded, here, there, kernel, sigma)
        total[here] += weight
        weighted[here] += weight[..., None] * image[there]
    result: Floats = weighted / total[..., None]
    return result


def _slow_weight(
    padded: Floats, here: tuple[slice, ...], there: tuple[slice, ...], kernel: Floats, sigma: float
) -> Floats:
    """Of all pairs of one shift, row (plane) by row of the patch, in the order of their sums."""
    count = tuple(at.stop - at.start for at in here)
    distance, given_up = np.zeros(count), np.zeros(count, dtype=bool)
    for first in range(len(kernel)):
        given_up |= distance > _FARTHEST
        for rest in np.ndindex(*kernel.shape[1:]):
            offset = (first, *rest)
            one, other = (
                padded[tuple(slice(a.start + o, a.stop + o) for a, o in zip(at, offset, strict=True))]
                for at in (here, there)
            )
            for channel in range(padded.shape[-1]):
                difference = one[..., channel] - other[..., channel]
                distance = distance + kernel[offset] * (difference * difference - 2 * sigma * sigma)
    weight: Floats = np.where(given_up, 0.0, fast_exp(-np.maximum(distance, 0.0)))
    return weight


def _gaussian(size: int, axes: int) -> Floats:
    deviation = (size - 1) / 4
    at = np.arange(size) - size // 2
    squares = sum(np.square(axis) for axis in np.meshgrid(*[at] * axes, indexing="ij"))
    return np.exp(-squares / (2 * deviation**2)) if deviation else np.ones((size,) * axes)


def _window_of(
    padded: Floats, shape: Sequence[int], start: int, more: int, shift: Sequence[int] | None = None
) -> Floats:
    """The part of the padded image that begins at `start` (plus the shift), `more` longer than the image."""
    shift = [0] * len(shape) if shift is None else shift
    at = [slice(start + s, start + s + n + more) for s, n in zip(shift, shape, strict=True)]
    window: Floats = padded[tuple(at)]
    return window


def _window_sum(values: Floats, size: int, axis: int) -> Floats:
    length = values.shape[axis] - size + 1
    return sum(
        (np.take(values, np.arange(o, o + length), axis=axis) for o in range(1, size)),
        start=np.take(values, np.arange(length), axis=axis),
    )
