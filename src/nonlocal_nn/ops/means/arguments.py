"""What `denoise_nl_means` is given: checked, and as tensors (batch, channel, *pixels) to compute with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Sizes = int | Sequence[int]

_HALF = (torch.float16, torch.bfloat16)


def as_tensor(image: NDArray[Any] | Tensor) -> Tensor:
    """The same numbers, in the same memory where they lie one after another."""
    if isinstance(image, Tensor):
        return image
    try:
        return torch.from_numpy(np.ascontiguousarray(image)).reshape(image.shape)
    except TypeError:
        raise TypeError(f"an image of {image.dtype}: give floats, or whole numbers without sign") from None


def channel_of(x: Tensor, channel_axis: int | None, batch_dims: int) -> int | None:
    """The channel axis, counted from the front."""
    if channel_axis is None:
        return None
    if not -x.dim() <= channel_axis < x.dim() or channel_axis % x.dim() < batch_dims:
        raise ValueError(
            f"channel_axis = {channel_axis}: there is no such axis in an image of shape {tuple(x.shape)}"
            + (f" behind {batch_dims} batch axes" if batch_dims else "")
        )
    return channel_axis % x.dim()


def sizes_of(name: str, given: Sizes, axes: int) -> list[int]:
    """One whole number for each pixel axis."""
    values = [given] * axes if isinstance(given, int) else list(given)
    if len(values) != axes:
        raise ValueError(f"{name} = {given}: the image has {axes} pixel axes, so give one number or {axes}")
    if any(isinstance(value, bool) or int(value) != value or value < 1 for value in values):
        raise ValueError(f"{name} = {given}: whole numbers, 1 or more")
    return [int(value) for value in values]


def odd_sizes(given: Sizes, axes: int) -> list[int]:
    """Patch sizes; an even one counts one more."""
    return [size + 1 - size % 2 for size in sizes_of("patch_size", given, axes)]


def scaled(x: Tensor, preserve_range: bool) -> Tensor:
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


def flat(x: Tensor, batch_dims: int, channel: int | None) -> Tensor:
    """(batch, channel, *pixels)."""
    x = x.unsqueeze(batch_dims) if channel is None else x.movedim(channel, batch_dims)
    return x.reshape(math.prod(x.shape[:batch_dims]), *x.shape[batch_dims:])


def _unflat(y: Tensor, shape: torch.Size, channel: int | None) -> Tensor:
    if channel is None:
        return y.reshape(shape)
    first = [size for axis, size in enumerate(shape) if axis != channel]
    batch = len(shape) - (y.dim() - 1)  # batch axes
    return y.reshape(*first[:batch], shape[channel], *first[batch:]).movedim(batch, channel)


def guide_of(
    guide: NDArray[Any] | Tensor,
    x: Tensor,
    preserve_range: bool,
    batch_dims: int,
    channel: int | None,
    inside: Tensor | None,
) -> Tensor:
    """The guide as (batch, channel, *pixels)."""
    given = as_tensor(guide)
    wanted = [size for axis, size in enumerate(x.shape) if axis != channel]
    found = [size for axis, size in enumerate(given.shape) if axis != channel]
    if given.dim() != x.dim() or wanted != found:
        raise ValueError(
            f"guide has the shape {tuple(given.shape)}, the image {tuple(x.shape)}: pixels must be the same"
        )
    other = flat(scaled(given, preserve_range), batch_dims, channel)
    check_finite("guide", other, inside)
    return other.to(scaled(x, preserve_range).dtype)


def inside_of(mask: NDArray[Any] | Tensor, x: Tensor, shape: torch.Size) -> Tensor:
    """The mask as (batch, *pixels)."""
    given = mask if isinstance(mask, Tensor) else torch.from_numpy(np.ascontiguousarray(mask))
    if given.dtype != torch.bool:
        raise ValueError(f"mask is of {given.dtype}: give True for pixels that take part, False for others")
    if given.shape != shape:
        raise ValueError(f"mask has the shape {tuple(given.shape)}: one for each pixel, {tuple(shape)}")
    return given.to(x.device).reshape(x.shape[0], *x.shape[2:])


def check_finite(name: str, x: Tensor, inside: Tensor | None) -> None:
    """Refuse NaN and infinite values that take part."""
    finite = x.isfinite() if inside is None else x.isfinite() | ~inside.unsqueeze(1)
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise ValueError(
            f"{count} of {x.numel()} values of the {name} are NaN or infinite; fill them, or leave their "
            "pixels out with mask="
        )


def strength_of(name: str, value: Any, x: Tensor, shape: torch.Size, above: bool) -> Tensor:
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


def check_words(patch_size: Any, h: Any, sigma: Any) -> None:
    """Refuse words that are none of the choices."""
    for name, value, words in (
        ("patch_size", patch_size, ("auto",)),
        ("h", h, ("auto", "sure")),
        ("sigma", sigma, ("auto",)),
    ):
        if isinstance(value, str) and value not in words:
            raise ValueError(f"{name} = {value!r}: numbers, or {' or '.join(map(repr, words))}")


def given_back(y: Tensor, x: Tensor, channel: int | None, *, is_array: bool) -> Any:
    """In the shape of the image, and its kind of floats."""
    y = _unflat(y, x.shape, channel)
    if x.is_floating_point():
        y = y.to(x.dtype)
    return y.detach().numpy() if is_array else y


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The value, which is one of the choices."""
    if isinstance(value, bool) or value not in choices:
        raise ValueError(f"{name} = {value!r}: {' or '.join(map(repr, choices))}")
    return value
