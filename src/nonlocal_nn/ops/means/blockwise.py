"""Non-local means blockwise, and with the largest other weight for a pixel itself, in torch.

Blockwise, a pixel r becomes the mean of what the patches around it say, each averaged as a whole:

    y(r) = sum_s x(r + s) B_s(r) / sum_s B_s(r),   B_s(r) = sum_o w(r - o, r - o + s) / C(r - o)

so a shift costs a sum over a window more than in `shifts.py`; C takes a pass of its own before.
With gradients, every shift's maps are made again in the backward pass: memory is linear in the image.

>>> x = torch.zeros(1, 1, 3, 1, dtype=torch.float64)
>>> x[0, 0, 2] = 1
>>> kernels = [torch.ones(1, dtype=x.dtype)] * 2
>>> h, sigma = torch.ones((), dtype=x.dtype), torch.zeros((), dtype=x.dtype)
>>> blockwise_means(x, x, h, sigma, kernels, (1, 0)).ravel()
tensor([0.0000, 0.1554, 0.7311], dtype=torch.float64)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nonlocal_nn._typing import Float
from nonlocal_nn.ops.checks import wants_gradient
from nonlocal_nn.ops.means.shifts import (
    Progress,
    Shift,
    along,
    at_places,
    both_padded,
    distance,
    exponent_map,
    half_of_shifts,
    mirror_padded,
    overlap,
    reported,
    with_zeros,
)


def blockwise_means(
    x: Float[Tensor, "batch channel *pixels"],
    guide: Float[Tensor, "batch guide *pixels"],
    h: Tensor,
    sigma: Tensor,
    kernels: Sequence[Tensor],
    patch_distance: Sequence[int],
    mask: Tensor | None = None,
    *,
    patches: bool = True,
    own_max: bool = False,
    progress: Progress | None = None,
) -> Float[Tensor, "batch channel *pixels"]:
    """The filter of `reference.py` with `blockwise` and `own_max`, differentiable by x, guide, h and sigma.

    Args:
        x, guide, h, sigma, kernels, patch_distance, mask: as for `shifts.nl_means`.
        patches: average whole patches; False: pixels.
        own_max: w(p, p) is the largest other weight, instead of 1. Where several are largest, the first has
            the gradient.
        progress: called with (shifts done, of how many), in the last and longest of its passes.
    """
    inside = x.new_ones(x.shape[0], *x.shape[2:]) if mask is None else mask.to(x.dtype)
    if mask is not None:
        x_in, guide = (torch.where(mask.unsqueeze(1), tensor, 0) for tensor in (x, guide))
    else:
        x_in = x
    padded, padded_mask = both_padded(guide, None if mask is None else inside, kernels)
    windows = [torch.ones_like(kernel if patches else kernel[:1]) for kernel in kernels]
    shape = x.shape[2:]
    shifts = list(half_of_shifts(shape, patch_distance))
    run: Callable[..., Any] = _kept if not wants_gradient(x, guide, h, sigma) else _made_again

    def exponents(shift: Shift, padded: Tensor, h: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """-log w(p, p + shift) and -log w(p, p - shift), infinite where the other pixel is not there."""
        d2, _ = distance(padded, padded_mask, shift, kernels)
        comparable = d2.isfinite()  # not where the mask leaves nothing of both patches
        d2 = torch.where(comparable, d2, 0)
        both = []
        for at, other in _directions(shift, shape):
            counts = comparable & (inside[:, *other] > 0) & (inside[:, *at] > 0)
            exponent = exponent_map(d2, at_places(h, at), at_places(sigma, at))
            both.append(_placed(torch.where(counts, exponent, torch.inf), at, shape, torch.inf))
        return both[0], both[1]

    least = torch.zeros_like(inside)  # exponents are taken from here on, which cancels in w / C
    if own_max:
        least, first = torch.full_like(inside, torch.inf), torch.full_like(inside, -1, dtype=torch.int32)
        with torch.no_grad():
            for number, shift in enumerate(shifts):
                for side, exponent in enumerate(exponents(shift, padded, h, sigma)):
                    first = torch.where(exponent < least, 2 * number + side, first)
                    least = torch.minimum(exponent, least)
        least = torch.where(least.isfinite(), least, 0)
        if run is _made_again:

            def chosen(shift: Shift, number: int, padded: Tensor, h: Tensor, sigma: Tensor) -> Tensor:
                there, back = exponents(shift, padded, h, sigma)
                return torch.where(first == 2 * number, there, 0) + torch.where(
                    first == 2 * number + 1, back, 0
                )

            least = torch.zeros_like(inside)
            for number, shift in enumerate(shifts):
                least = least + run(chosen, shift, number, padded, h, sigma)

    def maps(shift: Shift, padded: Tensor, h: Tensor, sigma: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        """W(p, p + shift) and w(p, p - shift), over exp(-least)."""
        there, back = exponents(shift, padded, h, sigma)
        return torch.exp(least - there), torch.exp(least - back)

    total = torch.ones_like(inside)  # w(p, p)
    for shift in shifts:
        there, back = run(maps, shift, padded, h, sigma, least)
        total = total + there + back
    share = inside / total
    wide = mirror_padded(torch.cat((x_in, inside.unsqueeze(1)), dim=1), windows)

    def sums(
        shift: Shift, padded: Tensor, h: Tensor, sigma: Tensor, least: Tensor, share: Tensor, wide: Tensor
    ) -> Tensor:
        """What a shift and its opposite add to the weighted sum and, in the last channel, to the weights."""
        added = torch.zeros_like(wide[:, :, *(slice(0, n) for n in shape)])
        for sign, weight in zip((1, -1), maps(shift, padded, h, sigma, least), strict=True):
            there = [sign * s for s in shift]
            added = added + _window_sum(weight * share, there, windows, wide)
        return added

    zero = (0,) * len(shape)
    both = run(_window_sum, share, zero, windows, wide)
    for shift in reported(shifts, progress):
        both = both + run(sums, shift, padded, h, sigma, least, share, wide)
    weights = both[:, -1:]
    y = both[:, :-1] / torch.where(weights > 0, weights, 1)
    return y if mask is None else torch.where(mask.unsqueeze(1), y, x)


def _window_sum(weight: Tensor, shift: Sequence[int], windows: Sequence[Tensor], wide: Tensor) -> Tensor:
    """x(r + shift) times the sum of the weights around r, for all r; 0 where r + shift is not in `wide`."""
    shape, edges = weight.shape[1:], [len(window) // 2 for window in windows]
    for axis, window in enumerate(windows, start=1):
        if len(window) > 1:
            weight = along(with_zeros(weight, len(window) // 2, axis), window, axis)
    at = tuple(
        slice(max(0, -s - edge), min(n, n - s + edge)) for s, n, edge in zip(shift, shape, edges, strict=True)
    )
    source = tuple(
        slice(place.start + s + edge, place.stop + s + edge)
        for place, s, edge in zip(at, shift, edges, strict=True)
    )
    return _placed(weight[:, *at].unsqueeze(1) * wide[:, :, *source], at, shape)


def _placed(values: Tensor, at: Sequence[slice], shape: Sequence[int], around: float = 0.0) -> Tensor:
    """A constant of this shape, with the values at these places of the last axes."""
    edges = [edge for place, n in zip(at, shape, strict=True) for edge in (n - place.stop, place.start)]
    return torch.nn.functional.pad(values, edges[::-1], value=around)


def _directions(shift: Shift, shape: Sequence[int]) -> tuple[Any, Any]:
    here, there = overlap(shift, shape)
    return (here, there), (there, here)


def _kept(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _made_again(function: Callable[..., Any], *arguments: Any) -> Any:
    """Called once more in the backward pass, so that nothing of it is kept."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
