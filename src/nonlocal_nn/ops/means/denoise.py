"""`nl.denoise_nl_means`: non-local means with scikit-image's arguments, for arrays and tensors."""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonlocal_nn.ops.means.noise import estimate_sigma
from nonlocal_nn.ops.means.reference import patch_kernel
from nonlocal_nn.ops.means.shifts import mirror_padded, nl_means
from nonlocal_nn.ops.means.strength import h_of_least_risk, rule

Array = TypeVar("Array", NDArray[Any], Tensor)
Sizes = int | Sequence[int]

_HALF = (torch.float16, torch.bfloat16)
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
    compatibility: Literal["scikit-image"] | None = None,
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
        compatibility: "scikit-image" gives the results of its version 0.26 instead, in both modes
            (`ops/means/compatibility.py` says how they differ); no gradients, one number for each option, no
            guide.

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
    x = _tensor(image)
    if not 0 <= batch_dims < max(1, x.dim()):
        raise ValueError(f"batch_dims = {batch_dims}: the image has {x.dim()} axes, {tuple(x.shape)}")
    channel = _channel_axis(x, channel_axis, batch_dims)
    pixels = [size for axis, size in enumerate(x.shape) if axis >= batch_dims and axis != channel]
    if not 2 <= len(pixels) <= 4:
        raise ValueError(
            f"an image of shape {tuple(x.shape)} has {len(pixels)} pixel axes (batch_dims = {batch_dims}, "
            f"channel_axis = {channel_axis}): 2, 3 or 4 can be filtered"
        )
    if not x.numel():
        raise ValueError(f"an image of shape {tuple(x.shape)} has no pixels")
    sizes = None if isinstance(patch_size, str) else _odd(patch_size, len(pixels))
    distances = _sizes("patch_distance", patch_distance, len(pixels))
    flat = _flat(_scaled(x, preserve_range), batch_dims, channel)
    every = x.shape[:batch_dims] + torch.Size(pixels)
    inside = None if mask is None else _inside(mask, flat, every)
    _check_finite("image", flat, inside)
    other = flat if guide is None else _guide(guide, x, preserve_range, batch_dims, channel, inside)
    _check_words(patch_size, h, sigma)
    if compatibility is not None:
        if (
            guide is not None
            or mask is not None
            or sizes is None
            or isinstance(h, str)
            or isinstance(sigma, str)
        ):
            raise ValueError(
                "compatibility takes numbers, no guide and no mask: scikit-image has nothing else"
            )
        y = _as_scikit_image(compatibility, flat, sizes, distances, h, fast_mode, sigma)
        return _given_back(y, x, channel, is_array=is_array)  # type: ignore[no-any-return]
    if sizes is None or isinstance(h, str) or isinstance(sigma, str):
        unit = 1.0 if x.is_floating_point() or not preserve_range else float(torch.iinfo(x.dtype).max)
        guides = [None] * len(flat) if guide is None else [other[[n]] for n in range(len(flat))]
        masks = [None] * len(flat) if inside is None else [inside[[n]] for n in range(len(flat))]
        y = torch.cat(
            [
                _by_noise(flat[[n]], guides[n], masks[n], sizes, distances, h, sigma, fast_mode, unit)
                for n in range(len(flat))
            ]
        )
    else:
        h_of = _strength("h", h, flat, every, above=True)
        sigma_of = _strength("sigma", sigma, flat, every, above=False)
        y = _filtered(flat, other, inside, h_of, sigma_of, sizes, distances, fast_mode)
    return _given_back(y, x, channel, is_array=is_array)  # type: ignore[no-any-return]


def _given_back(y: Tensor, x: Tensor, channel: int | None, *, is_array: bool) -> Any:
    """In the shape of the image, and its kind of floats."""
    y = _unflat(y, x.shape, channel)
    if x.is_floating_point():
        y = y.to(x.dtype)
    return y.detach().numpy() if is_array else y


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
    strength, noise = (_strength(n, v, x, torch.Size(), n == "h") for n, v in (("h", h), ("sigma", sigma)))
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


def _check_words(patch_size: Any, h: Any, sigma: Any) -> None:
    for name, value, words in (
        ("patch_size", patch_size, ("auto",)),
        ("h", h, ("auto", "sure")),
        ("sigma", sigma, ("auto",)),
    ):
        if isinstance(value, str) and value not in words:
            raise ValueError(f"{name} = {value!r}: numbers, or {' or '.join(map(repr, words))}")


def _by_noise(
    x: Tensor,
    guide: Tensor | None,
    mask: Tensor | None,
    sizes: Sequence[int] | None,
    distances: Sequence[int],
    h: Any,
    sigma: Any,
    fast_mode: bool,
    unit: float,
) -> Tensor:
    """One image (1, channel, *pixels), with what follows from its noise; unit: what counts as one."""
    one_number = torch.Size()
    estimated = isinstance(sigma, str)
    if mask is not None and (estimated or h == "sure"):
        raise ValueError("sigma='auto' and h='sure' look at the whole image: with a mask, give numbers")
    noise = estimate_sigma(x.detach())[0] if estimated else _strength("sigma", sigma, x, one_number, False)
    if not float(noise):
        if estimated:
            return x.clone()  # nothing to take away
        raise ValueError("sigma = 0: 'auto' and 'sure' of other options follow from it; give it, or 'auto'")
    size, factor = rule(float(noise) / unit, x.shape[1])
    sizes = [size] * (x.dim() - 2) if sizes is None else sizes

    def run(image: Tensor, strength: float | Tensor) -> Tensor:
        given = torch.as_tensor(strength, dtype=x.dtype, device=x.device)
        other = image if guide is None else guide
        return _filtered(image, other, mask, given, noise, sizes, distances, fast_mode)

    if isinstance(h, str):
        strength = factor * float(noise)
        if h == "sure":
            with torch.no_grad():
                strength = h_of_least_risk(run, x, float(noise))
        return run(x, strength)
    return run(x, _strength("h", h, x, one_number, True))


def _filtered(
    x: Tensor,
    guide: Tensor,
    mask: Tensor | None,
    h: Tensor,
    sigma: Tensor,
    sizes: Sequence[int],
    patch_distance: Sequence[int],
    all_alike: bool,
) -> Tensor:
    """The shift form, or the compiled kernel where it can run and no gradient is wanted."""
    kernels = [
        torch.tensor(patch_kernel((size,), not all_alike), dtype=x.dtype, device=x.device) for size in sizes
    ]
    wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (x, guide, h, sigma))
    fits = (
        all_alike
        and mask is None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not (h.dim() or sigma.dim())
    )
    if wants_gradient or not fits:
        return nl_means(x, guide, h, sigma, kernels, patch_distance, mask)
    if importlib.util.find_spec("numba") is None:
        _say_once_how_to_be_faster(x.numel())
        return nl_means(x, guide, h, sigma, kernels, patch_distance)
    from nonlocal_nn.ops.means.kernel import nl_means_planes

    padded = mirror_padded(guide, kernels)
    results = [
        nl_means_planes(
            image.numpy(),
            around.numpy(),
            sizes,
            patch_distance,
            float(h),
            float(sigma),
            torch.get_num_threads(),
        )
        for image, around in zip(x.detach(), padded.detach(), strict=True)
    ]
    return torch.from_numpy(np.stack(results))


@functools.cache
def _warn() -> None:
    warnings.warn(
        "non-local means runs in torch; with numba it is about 7 times as fast: "
        "pip install 'nonlocal-nn[denoise]'",
        stacklevel=4,
    )


def _say_once_how_to_be_faster(values: int) -> None:
    if values >= _LARGE:
        _warn()


def _tensor(image: NDArray[Any] | Tensor) -> Tensor:
    if isinstance(image, Tensor):
        return image
    try:
        return torch.from_numpy(np.ascontiguousarray(image)).reshape(image.shape)
    except TypeError:
        raise TypeError(f"an image of {image.dtype}: give floats, or whole numbers without sign") from None


def _channel_axis(x: Tensor, channel_axis: int | None, batch_dims: int) -> int | None:
    if channel_axis is None:
        return None
    if not -x.dim() <= channel_axis < x.dim() or channel_axis % x.dim() < batch_dims:
        raise ValueError(
            f"channel_axis = {channel_axis}: there is no such axis in an image of shape {tuple(x.shape)}"
            + (f" behind {batch_dims} batch axes" if batch_dims else "")
        )
    return channel_axis % x.dim()


def _sizes(name: str, given: Sizes, axes: int) -> list[int]:
    values = [given] * axes if isinstance(given, int) else list(given)
    if len(values) != axes:
        raise ValueError(f"{name} = {given}: the image has {axes} pixel axes, so give one number or {axes}")
    if any(isinstance(value, bool) or int(value) != value or value < 1 for value in values):
        raise ValueError(f"{name} = {given}: whole numbers, 1 or more")
    return [int(value) for value in values]


def _odd(given: Sizes, axes: int) -> list[int]:
    return [size + 1 - size % 2 for size in _sizes("patch_size", given, axes)]


def _scaled(x: Tensor, preserve_range: bool) -> Tensor:
    """Floats to compute with: float32 for half precision and whole numbers of up to 16 bits."""
    if x.dtype in _HALF:
        return x.float()
    if x.is_floating_point():
        return x
    if x.dtype == torch.bool:
        return x.float()
    if x.is_complex() or (torch.iinfo(x.dtype).min < 0 and not preserve_range):
        raise TypeError(
            f"an image of {x.dtype}: floats, or whole numbers without sign; others with preserve_range=True"
        )
    floats = x.float() if x.element_size() <= 2 else x.double()
    return floats / (1 if preserve_range else torch.iinfo(x.dtype).max)


def _flat(x: Tensor, batch_dims: int, channel: int | None) -> Tensor:
    """(batch, channel, *pixels)."""
    x = x.unsqueeze(batch_dims) if channel is None else x.movedim(channel, batch_dims)
    return x.reshape(math.prod(x.shape[:batch_dims]), *x.shape[batch_dims:])


def _unflat(y: Tensor, shape: torch.Size, channel: int | None) -> Tensor:
    if channel is None:
        return y.reshape(shape)
    first = [size for axis, size in enumerate(shape) if axis != channel]
    batch = len(shape) - (y.dim() - 1)  # batch axes
    return y.reshape(*first[:batch], shape[channel], *first[batch:]).movedim(batch, channel)


def _guide(
    guide: NDArray[Any] | Tensor,
    x: Tensor,
    preserve_range: bool,
    batch_dims: int,
    channel: int | None,
    inside: Tensor | None,
) -> Tensor:
    given = _tensor(guide)
    wanted = [size for axis, size in enumerate(x.shape) if axis != channel]
    found = [size for axis, size in enumerate(given.shape) if axis != channel]
    if given.dim() != x.dim() or wanted != found:
        raise ValueError(
            f"guide has the shape {tuple(given.shape)}, the image {tuple(x.shape)}: pixels must be the same"
        )
    flat = _flat(_scaled(given, preserve_range), batch_dims, channel)
    _check_finite("guide", flat, inside)
    return flat.to(_scaled(x, preserve_range).dtype)


def _inside(mask: NDArray[Any] | Tensor, x: Tensor, shape: torch.Size) -> Tensor:
    given = mask if isinstance(mask, Tensor) else torch.from_numpy(np.ascontiguousarray(mask))
    if given.dtype != torch.bool:
        raise ValueError(f"mask is of {given.dtype}: give True for pixels that take part, False for others")
    if given.shape != shape:
        raise ValueError(f"mask has the shape {tuple(given.shape)}: one for each pixel, {tuple(shape)}")
    return given.to(x.device).reshape(x.shape[0], *x.shape[2:])


def _check_finite(name: str, x: Tensor, inside: Tensor | None) -> None:
    finite = x.isfinite() if inside is None else x.isfinite() | ~inside.unsqueeze(1)
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise ValueError(
            f"{count} of {x.numel()} values of the {name} are NaN or infinite; fill them, or leave their "
            "pixels out with mask="
        )


def _strength(name: str, value: Any, x: Tensor, shape: torch.Size, above: bool) -> Tensor:
    """A tensor without axes, or (batch, *pixels); above 0, or 0 and more."""
    given = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, dtype=np.float64))
    given = given.to(device=x.device, dtype=x.dtype)
    bad = ~(given > 0) if above else ~(given >= 0)
    if bool((bad | ~given.isfinite()).any()):
        first = given[bad | ~given.isfinite()].flatten()[0] if given.dim() else given
        raise ValueError(
            f"{name} = {float(first):g}: it must be {'above 0' if above else '0 or more'}, and finite"
        )
    if given.numel() == 1 and given.dim() <= 1:
        return given.reshape(())
    if given.shape != shape:
        raise ValueError(
            f"{name} has the shape {tuple(given.shape)}: one number, or one for each pixel, {tuple(shape)}"
        )
    return given.reshape(x.shape[0], *x.shape[2:])
