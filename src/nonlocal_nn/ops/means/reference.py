"""The textbook filter, straight from its equation: the oracle of every other form.

    y(p) = 1/C(p) sum_q w(p, q) x(q)        w(p, q) = exp(-max(d2(p, q) - 2 sigma^2, 0) / h^2)

q goes over the pixels of the image at most `patch_distance` away from p along every axis; w(p, p) = 1; C(p)
is the sum of the weights. d2 is the mean, over the offsets o of a patch and all channels, of the squared
difference of guide(p + o) and guide(q + o), where patches go over the edge as in a mirror that does not
repeat the edge itself (NumPy's "reflect"), as often as needed. With `gaussian` the mean is weighted by a
Gaussian of standard deviation (patch_size - 1) / 4.

Blockwise, every patch is averaged as a whole, and a pixel becomes the mean of what the patches around it say
(Coupe et al. 2008; Buades, Coll and Morel 2005, section 5):

    y(r) = mean over the p whose patch holds r, of 1/C(p) sum_q w(p, q) x(q + r - p)

With the own weight "max", w(p, p) is the largest other weight instead of 1 (1 where there is no other).

>>> import numpy as np
>>> image = np.array([[[0.0]], [[0.0]], [[1.0]]])                  # (3, 1) pixels, 1 channel
>>> denoise(image, (1, 1), (1, 0), h=1.0).round(3).ravel().tolist()
[0.0, 0.155, 0.731]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pixel = tuple[int, ...]


def denoise(
    image: Floats,
    patch_size: Sequence[int],
    patch_distance: Sequence[int],
    *,
    h: float | Floats,
    sigma: float | Floats = 0.0,
    gaussian: bool = False,
    guide: Floats | None = None,
    mask: NDArray[np.bool_] | None = None,
    blockwise: bool = False,
    own_max: bool = False,
) -> Floats:
    """The filtered image, pixel by pixel.

    Args:
        image: (pixels ..., channels).
        patch_size, patch_distance: for each pixel axis; sizes are odd.
        h, sigma: one number, or (pixels ...): each pixel's own.
        gaussian: weight the patch by a Gaussian.
        guide: (pixels ..., channels of its own): what weights are made from; None: the image.
        mask: (pixels ...): False takes no part. d2 is then the mean over the offsets where both patches have
            pixels that do, and a q without one has no weight; pixels that are False stay as they are.
        blockwise: average patches; of a mean's terms, those of pixels that are False are left out.
        own_max: the largest other weight for the pixel itself.
    """
    guide = image if guide is None else guide
    shape = image.shape[:-1]
    every_h, every_sigma = (np.broadcast_to(np.asarray(v, dtype=np.float64), shape) for v in (h, sigma))
    kernel = patch_kernel(patch_size, gaussian)
    patches = {p: _patch(guide, p, patch_size) for p in np.ndindex(*shape)}
    valid = np.ones(shape, dtype=bool) if mask is None else mask
    masks = {p: _patch(valid[..., None], p, patch_size) for p in np.ndindex(*shape)}
    weights: dict[Pixel, dict[Pixel, float]] = {}  # w(p, q) / C(p)
    for p in np.ndindex(*shape):
        if not valid[p]:
            continue
        exponents = {}
        for q in _candidates(p, shape, patch_distance):
            counts = kernel[..., None] * (masks[p] & masks[q])
            if not valid[q] or not counts.any():
                continue
            squares = np.where(counts > 0, (patches[p] - patches[q]) ** 2, 0.0)
            d2 = float((counts * squares).sum() / counts.sum() / guide.shape[-1])
            above = max(d2 - 2 * float(every_sigma[p]) ** 2, 0.0)
            exponents[q] = above / float(every_h[p]) ** 2
        least = 0.0
        if own_max:  # all weights over the largest other one, which is then never too small for a float
            least = min((exponent for q, exponent in exponents.items() if q != p), default=0.0)
            exponents[p] = least
        of_p = {q: math.exp(least - exponent) for q, exponent in exponents.items()}
        weights[p] = {q: weight / sum(of_p.values()) for q, weight in of_p.items()}
    weighted, total = np.zeros(image.shape), np.zeros(shape)
    for p, of_p in weights.items():
        for r in _candidates(p, shape, [size // 2 for size in patch_size]) if blockwise else [p]:
            for q, weight in of_p.items():
                moved = zip(p, q, r, shape, strict=True)
                source = tuple(mirrored(b + c - a, length) for a, b, c, length in moved)
                if valid[source]:
                    weighted[r] += weight * image[source]
                    total[r] += weight
    averaged = np.divide(weighted, total[..., None], where=total[..., None] > 0, out=image.astype(np.float64))
    result: Floats = np.where(valid[..., None], averaged, image)
    return result


def patch_kernel(patch_size: Sequence[int], gaussian: bool) -> Floats:
    """What each offset of a patch counts; the sum is one."""
    kernel = np.ones(tuple(patch_size))
    if gaussian:
        for axis, size in enumerate(patch_size):
            at = np.arange(size) - size // 2
            deviation = (size - 1) / 4
            row = np.exp(-(at**2) / (2 * deviation**2)) if deviation else np.ones(1)
            kernel = kernel * row.reshape([-1 if a == axis else 1 for a in range(len(patch_size))])
    result: Floats = kernel / kernel.sum()
    return result


def mirrored(index: int, length: int) -> int:
    """Where a place outside of an axis lies in the mirror.

    >>> [mirrored(index, 3) for index in range(-3, 6)]
    [1, 2, 1, 0, 1, 2, 1, 0, 1]
    """
    if length == 1:
        return 0
    index %= 2 * length - 2
    return index if index < length else 2 * length - 2 - index


def _patch(image: NDArray[Any], p: tuple[int, ...], patch_size: Sequence[int]) -> NDArray[Any]:
    axes = [
        [mirrored(i, length) for i in range(centre - size // 2, centre + size // 2 + 1)]
        for centre, size, length in zip(p, patch_size, image.shape[:-1], strict=True)
    ]
    patch: NDArray[Any] = image[np.ix_(*axes)]
    return patch


def _candidates(
    p: tuple[int, ...], shape: tuple[int, ...], patch_distance: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    return itertools.product(
        *(
            range(max(0, i - far), min(length, i + far + 1))
            for i, far, length in zip(p, patch_distance, shape, strict=True)
        )
    )
