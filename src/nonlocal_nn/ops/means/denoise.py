"""`nl.denoise_nl_means`: non-local means with scikit-image's arguments, for arrays and tensors."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonlocal_nn.ops.checks import wants_gradient
from nonlocal_nn.ops.means.arguments import (
    Sizes,
    as_tensor,
    channel_of,
    check_finite,
    check_words,
    flat,
    given_back,
    guide_of,
    inside_of,
    odd_sizes,
    one_of,
    scaled,
    sizes_of,
    strength_of,
)
from nonlocal_nn.ops.means.blockwise import blockwise_means
from nonlocal_nn.ops.means.noise import estimate_sigma
from nonlocal_nn.ops.means.reference import patch_kernel
from nonlocal_nn.ops.means.shifts import mirror_padded, nl_means
from nonlocal_nn.ops.means.strength import h_of_least_risk, rule

Array = TypeVar("Array", NDArray[Any], Tensor)

_LARGE = 2**16  # values from which the time is worth a word


def denoise_nl_means(
    image: Array,
    patch_size: Sizes | Literal["auto"] = 7,
    patch_distance: Sizes = 11,
    h: float | Array | Literal["auto", "sure"] = 0.1,
    fast_mode: bool = True,
    sigma: float | Array | Literal["auto"] = 0.0,
    *,
    channel_axis: int | None = None,
    preserve_range: bool = False,
    batch_dims: int = 0,
    guide: Array | None = None,
    mask: Array | None = None,
    variant: Literal["textbook", "blockwise"] = "textbook",
    own_weight: Literal[1, "max"] = 1,
    noise: Literal["gaussian", "rician"] = "gaussian",
    compatibility: Literal["scikit-image"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Non-local means: every pixel becomes a mean of the pixels around it, weighted by how alike patches are.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> clean = np.zeros((24, 24)); clean[:, 12:] = 1
    >>> noisy = clean + rng.normal(scale=0.1, size=clean.shape)
    >>> quiet = denoise_nl_means(noisy, patch_size=5, patch_distance=6, h=0.08, sigma=0.1)
    >>> bool(np.abs(quiet - clean).mean() < 0.2 * np.abs(noisy - clean).mean())
    True

    y(p) = 1/C(p) sum_q w(p, q) x(q), w = exp(-max(d2(p, q) - 2 sigma^2, 0) / h^2), with d2 the mean squared
    difference of the patches around p and q over all channels, q at most `patch_distance` away along every
    axis and inside the image, w(p, p) = 1 (Buades, Coll and Morel 2005). Exact: no weight is left out, and no
    exponential is approximated. Patches go over the edge as in a mirror ("reflect").

    The arguments are those of `skimage.restoration.denoise_nl_means`, the filter is the textbook's: theirs
    compares smaller windows and drops small weights, so that the same h filters more there.

    Args:
        image: array or tensor with two to four pixel axes: a picture, a volume, a video, a volume over time.
            Floats, or whole numbers without sign, which count as 0 to 1 (255 is 1 in 8 bits). Half precision
            is computed in float32.
        patch_size: pixels of a patch, for all axes or one for each; an even number counts as one more.
            (1, 7, 7) with patch_distance (2, 7, 7) is a video: flat patches, sought over time too. "auto": 3,
            5 or 7 by sigma.
        patch_distance: how far patches are sought, for all axes or one for each.
        h: strength, in the units of the image: above 0. One number, or one for every pixel. "auto": 0.5 to
            0.8 sigma, by a rule; "sure": the one of least estimated risk (Stein), which takes 13 to 15 runs
            more.
        fast_mode: True: all pixels of a patch count alike; False: by a Gaussian of deviation
            (patch_size - 1) / 4.
        sigma: standard deviation of the noise, 0 or more, one number or one for every pixel: differences
            that noise of this size explains do not count. "auto": from the finest wavelet details, as
            `skimage.restoration.estimate_sigma`.
        channel_axis: axis of the channels, which are filtered together; None: there is none.
        preserve_range: take whole numbers as they are.
        batch_dims: so many first axes are images of their own.
        guide: what the weights are made from instead, of the image's pixel shape; it has channels where the
            image has.
        mask: of the image's pixel shape; pixels that are False take no part, may be NaN, and stay as they
            are.
        variant: "blockwise": patches are averaged as a whole, and a pixel becomes the mean of what the
            patches around it say; with `own_weight="max"` up to 0.4 dB better, and slower.
        own_weight: the weight of a pixel itself: 1, or "max", the largest of its other weights.
        noise: "rician", for magnitudes (MRI): squares are averaged and 2 sigma^2 taken off.
        compatibility: "scikit-image" gives the results of its version 0.26 instead, in both modes
            (`ops/means/compatibility.py` says how they differ); no gradients, one number for each option, no
            guide.
        progress: called with (done, of how many) as the filter goes on; not while `h="sure"` seeks.

    Returns:
        The filtered image, of the same shape and on the same device; whole numbers of 8 and 16 bits come
        back as float32, others as float64, 0 to 1 unless `preserve_range`. Tensors get gradients by image,
        guide, h and sigma, in memory linear in the number of pixels.

    Raises:
        ValueError: NaN or infinite pixels, h, sigma, sizes or axes that cannot be, with the value.
        TypeError: neither an array nor a tensor, or numbers that are none of the above.
    """
    is_array = isinstance(image, np.ndarray)
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"image is a {type(image).__name__}; give a NumPy array or a torch tensor")
    x = as_tensor(image)
    if not 0 <= batch_dims < max(1, x.dim()):
        raise ValueError(f"batch_dims = {batch_dims}: the image has {x.dim()} axes, {tuple(x.shape)}")
    channel = channel_of(x, channel_axis, batch_dims)
    pixels = [size for axis, size in enumerate(x.shape) if axis >= batch_dims and axis != channel]
    if not 2 <= len(pixels) <= 4:
        raise ValueError(
            f"an image of shape {tuple(x.shape)} has {len(pixels)} pixel axes (batch_dims = {batch_dims}, "
            f"channel_axis = {channel_axis}): 2, 3 or 4 can be filtered"
        )
    if not x.numel():
        raise ValueError(f"an image of shape {tuple(x.shape)} has no pixels")
    sizes = None if isinstance(patch_size, str) else odd_sizes(patch_size, len(pixels))
    distances = sizes_of("patch_distance", patch_distance, len(pixels))
    images = flat(scaled(x, preserve_range), batch_dims, channel)
    every = x.shape[:batch_dims] + torch.Size(pixels)
    inside = None if mask is None else inside_of(mask, images, every)
    check_finite("image", images, inside)
    other = None if guide is None else guide_of(guide, x, preserve_range, batch_dims, channel, inside)
    check_words(patch_size, h, sigma)
    way = _Way(
        sizes,
        distances,
        all_alike=fast_mode,
        blockwise=one_of("variant", variant, ("textbook", "blockwise")) == "blockwise",
        own_max=one_of("own_weight", own_weight, (1, "max")) == "max",
        rician=one_of("noise", noise, ("gaussian", "rician")) == "rician",
        progress=progress,
    )
    if compatibility is not None:
        plain = way == _Way(sizes, distances, all_alike=fast_mode)
        words = isinstance(h, str) or isinstance(sigma, str)
        if guide is not None or mask is not None or sizes is None or words or not plain:
            raise ValueError(
                "compatibility takes numbers, no guide, mask, variant, own_weight or noise: scikit-image has "
                "nothing else"
            )
        y = _as_scikit_image(compatibility, images, sizes, distances, h, fast_mode, sigma)
        return given_back(y, x, channel, is_array=is_array)  # type: ignore[no-any-return]
    if sizes is None or isinstance(h, str) or isinstance(sigma, str):
        unit = 1.0 if x.is_floating_point() or not preserve_range else float(torch.iinfo(x.dtype).max)
        each = [slice(n, n + 1) for n in range(len(images))]
        y = torch.cat(
            [
                _by_noise(
                    images[n],
                    None if other is None else other[n],
                    None if inside is None else inside[n],
                    h,
                    sigma,
                    replace(way, progress=_part_of(progress, n.start, len(images))),
                    unit,
                )
                for n in each
            ]
        )
    else:
        h_of = strength_of("h", h, images, every, above=True)
        sigma_of = strength_of("sigma", sigma, images, every, above=False)
        y = _filtered(images, other, inside, h_of, sigma_of, way)
    return given_back(y, x, channel, is_array=is_array)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Way:
    """How one image is filtered, beyond its strength; patch sizes None: by the noise."""

    sizes: Sequence[int] | None
    distances: Sequence[int]
    all_alike: bool
    blockwise: bool = False
    own_max: bool = False
    rician: bool = False
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)


def _as_scikit_image(
    name: str,
    x: Tensor,
    sizes: Sequence[int],
    distances: Sequence[int],
    h: Any,
    fast: bool,
    sigma: Any,
) -> Tensor:
    from nonlocal_nn.ops.means.compatibility import fast_mode, slow_mode

    if name != "scikit-image":
        raise ValueError(f"compatibility = {name!r}: 'scikit-image', or None for the textbook's filter")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "compatibility='scikit-image' has no gradient; use the textbook's filter, or detach()"
        )
    if len({*sizes}) > 1 or len({*distances}) > 1:
        raise ValueError(
            f"patch_size, patch_distance = {sizes}, {distances}: scikit-image has one for all axes"
        )
    strength, noise = (strength_of(n, v, x, torch.Size(), n == "h") for n, v in (("h", h), ("sigma", sigma)))
    axes, channels = x.dim() - 2, x.shape[1]
    if not fast and (axes == 4 or (axes == 3 and channels > 1) or sizes[0] == 1):
        raise ValueError(
            f"fast_mode=False with {axes} pixel axes, {channels} channels and patch_size {sizes[0]}: "
            "scikit-image has it for 2-D images and for 3-D ones of one channel, with patches of more than a "
            "pixel"
        )
    run = fast_mode if fast else slow_mode
    images = np.moveaxis(x.detach().double().cpu().numpy(), 1, -1)
    results = [run(image, sizes[0], distances[0], float(strength), float(noise)) for image in images]
    return torch.from_numpy(np.moveaxis(np.stack(results), -1, 1)).to(device=x.device, dtype=x.dtype)


def _by_noise(
    x: Tensor,
    guide: Tensor | None,
    mask: Tensor | None,
    h: Any,
    sigma: Any,
    way: _Way,
    unit: float,
) -> Tensor:
    """One image (1, channel, *pixels), with what follows from its noise; unit: what counts as one."""
    one_number = torch.Size()
    estimated = isinstance(sigma, str)
    if mask is not None and (estimated or h == "sure"):
        raise ValueError("sigma='auto' and h='sure' look at the whole image: with a mask, give numbers")
    if way.rician and (estimated or h == "sure"):
        raise ValueError(
            "sigma='auto' and h='sure' hold for gaussian noise: with noise='rician', give numbers"
        )
    noise = estimate_sigma(x.detach())[0] if estimated else strength_of("sigma", sigma, x, one_number, False)
    if not float(noise):
        if estimated:
            return x.clone()  # nothing to take away
        raise ValueError("sigma = 0: 'auto' and 'sure' of other options follow from it; give it, or 'auto'")
    size, factor = rule(float(noise) / unit, x.shape[1], blockwise=way.blockwise)
    if way.sizes is None:
        way = replace(way, sizes=[size] * (x.dim() - 2))

    def run(image: Tensor, strength: float | Tensor, way: _Way) -> Tensor:
        given = torch.as_tensor(strength, dtype=x.dtype, device=x.device)
        return _filtered(image, guide, mask, given, noise, way)

    if isinstance(h, str):
        strength = factor * float(noise)
        if h == "sure":
            with torch.no_grad():
                silent = replace(way, progress=None)
                strength = h_of_least_risk(lambda image, h: run(image, h, silent), x, float(noise))
        return run(x, strength, way)
    return run(x, strength_of("h", h, x, one_number, True), way)


def _filtered(
    x: Tensor, guide: Tensor | None, mask: Tensor | None, h: Tensor, sigma: Tensor, way: _Way
) -> Tensor:
    """The shift form, or the compiled kernel where it can run and no gradient is wanted."""
    guide = x if guide is None else guide
    assert way.sizes is not None
    if way.rician:
        return _rician(x, guide, mask, h, sigma, way)
    kernels = [
        torch.tensor(patch_kernel((size,), not way.all_alike), dtype=x.dtype, device=x.device)
        for size in way.sizes
    ]
    if way.blockwise or way.own_max:
        return blockwise_means(
            x,
            guide,
            h,
            sigma,
            kernels,
            way.distances,
            mask,
            patches=way.blockwise,
            own_max=way.own_max,
            progress=way.progress,
        )
    fits = (
        way.all_alike
        and mask is None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not (h.dim() or sigma.dim())
    )
    if not fits or wants_gradient(x, guide, h, sigma):
        return nl_means(x, guide, h, sigma, kernels, way.distances, mask, way.progress)
    if importlib.util.find_spec("numba") is None:
        if x.numel() >= _LARGE:
            _say_how_to_be_faster()
        return nl_means(x, guide, h, sigma, kernels, way.distances, None, way.progress)
    from nonlocal_nn.ops.means.kernel import nl_means_planes

    padded = mirror_padded(guide, kernels)
    results = [
        nl_means_planes(
            image.numpy(),
            around.numpy(),
            way.sizes,
            way.distances,
            float(h),
            float(sigma),
            torch.get_num_threads(),
            _part_of(way.progress, number, len(x)),
        )
        for number, (image, around) in enumerate(zip(x.detach(), padded.detach(), strict=True))
    ]
    return torch.from_numpy(np.stack(results))


def _part_of(
    progress: Callable[[int, int], None] | None, number: int, count: int
) -> Callable[[int, int], None] | None:
    """For one image of some."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, count * total)


def _rician(x: Tensor, guide: Tensor, mask: Tensor | None, h: Tensor, sigma: Tensor, way: _Way) -> Tensor:
    """Means of squares, less 2 sigma^2: a magnitude's square is too large by that much, in the mean."""
    if bool((sigma == 0).any()):
        raise ValueError("sigma = 0 with noise='rician': give the standard deviation of the noise")
    squares = _filtered(x.square(), guide, mask, h, sigma, replace(way, rician=False))
    left = squares - 2 * (sigma.unsqueeze(1) if sigma.dim() else sigma) ** 2
    y = torch.where(left > 0, torch.where(left > 0, left, 1).sqrt(), 0)
    return y if mask is None else torch.where(mask.unsqueeze(1), y, x)


@functools.cache
def _say_how_to_be_faster() -> None:
    """Once in a process."""
    warnings.warn(
        "non-local means runs in torch; with numba it is about 7 times as fast: "
        "pip install 'nonlocal-nn[denoise]'",
        stacklevel=4,
    )
