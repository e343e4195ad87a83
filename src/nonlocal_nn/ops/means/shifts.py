"""Non-local means shift by shift, in torch: any device, memory linear in the image, with its gradients.

A shift s and its opposite share one map of weights, w(p, p + s) = w(p + s, p), where h and sigma are the same
everywhere. The map of a shift is the squared difference of the guide and the shifted guide, averaged over the
patch. The backward pass makes each map again instead of keeping it:

    y = N / C,  N(p) = sum_q w(p, q) x(q)       a = dy / C,  b = -<dy, y> / C
    dw(p, q) = <a(p), x(q)> + b(p)              dx(q) = sum_p w(p, q) a(p)
    dd2 = -w dw / h^2 where d2 > 2 sigma^2      dh = 2 w dw max(d2 - 2 sigma^2, 0) / h^3
    dsigma = 4 sigma w dw / h^2 there           dguide: the patch mean's own backward pass

>>> x = torch.zeros(1, 1, 3, 1, dtype=torch.float64)
>>> x[0, 0, 2] = 1
>>> kernels = [torch.ones(1, dtype=x.dtype)] * 2
>>> nl_means(x, x, torch.ones((), dtype=x.dtype), torch.zeros((), dtype=x.dtype), kernels, (1, 0)).ravel()
tensor([0.0000, 0.1554, 0.7311], dtype=torch.float64)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nonlocal_nn._typing import Float
from nonlocal_nn.ops.means import gpu

Shift = tuple[int, ...]
Progress = Callable[[int, int], None]


def nl_means(
    x: Float[Tensor, "batch channel *pixels"],
    guide: Float[Tensor, "batch guide *pixels"],
    h: Tensor,
    sigma: Tensor,
    kernels: Sequence[Tensor],
    patch_distance: Sequence[int],
    mask: Tensor | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "batch channel *pixels"]:
    """The textbook filter (`reference.py`), differentiable by x, guide, h and sigma.

    Args:
        x, guide: what is averaged, and what weights are made from.
        h, sigma: no axes, or (batch, *pixels).
        kernels: for each pixel axis, what the offsets of a patch count along it; each sums to one.
        patch_distance: for each pixel axis, how far candidates are sought.
        mask: (batch, *pixels), False takes no part, and may hold anything; None: all do.
        progress: called with (shifts done, of how many).
    """
    if mask is None:
        result: Tensor = _NlMeans.apply(x, guide, h, sigma, None, tuple(patch_distance), progress, *kernels)
        return result
    inside = mask.unsqueeze(1)
    x_0, guide_0 = (torch.where(inside, tensor, 0) for tensor in (x, guide))
    y: Tensor = _NlMeans.apply(
        x_0, guide_0, h, sigma, mask.to(x.dtype), tuple(patch_distance), progress, *kernels
    )
    return torch.where(inside, y, x)


class _NlMeans(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        guide: Tensor,
        h: Tensor,
        sigma: Tensor,
        mask: Tensor | None,
        patch_distance: tuple[int, ...],
        progress: Progress | None,
        *kernels: Tensor,
    ) -> Tensor:
        padded, padded_mask = both_padded(guide, mask, kernels)
        shifts = list(half_of_shifts(x.shape[2:], patch_distance))
        if mask is None and gpu.runs(x):
            weighted, total = gpu.sums(x, padded, h, sigma, kernels, shifts, progress)
        else:
            maps = padded, padded_mask
            weighted, total = _sums(x, maps, h, sigma, mask, kernels, reported(shifts, progress))
        weighted /= total.unsqueeze(1)
        ctx.save_for_backward(x, guide, h, sigma, mask, weighted, total, *kernels)
        ctx.patch_distance = patch_distance
        return weighted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, guide, h, sigma, mask, y, total, *kernels = ctx.saved_tensors
        padded, padded_mask = both_padded(guide, mask, kernels)
        a = dy / total.unsqueeze(1)
        b = -(dy * y).sum(dim=1) / total
        dx, dpadded = a.clone(), torch.zeros_like(padded)
        dh, dsigma = torch.zeros_like(h), torch.zeros_like(sigma)
        for shift in half_of_shifts(x.shape[2:], ctx.patch_distance):
            here, there = overlap(shift, x.shape[2:])
            d2, counts = distance(padded, padded_mask, shift, kernels)
            dd2 = torch.zeros_like(d2)
            for at, other in ((here, there), (there, here)):
                h_at, sigma_at = at_places(h, at), at_places(sigma, at)
                weight = weight_map(d2, h_at, sigma_at)
                if mask is not None:
                    weight *= mask[:, *other]
                dx[:, :, *other] += weight.unsqueeze(1) * a[:, :, *at]
                dw = ((a[:, :, *at] * x[:, :, *other]).sum(dim=1) + b[:, *at]) * weight
                above = d2 - 2 * sigma_at**2
                above = torch.where(above.isfinite(), above, 0)  # no pixels to compare: no weight either
                dw = torch.where(above > 0, dw, 0)
                dd2 -= dw / h_at**2
                _add(dh, at, 2 * dw * above / h_at**3)
                _add(dsigma, at, 4 * sigma_at * dw / h_at**2)
            if counts is not None:
                dd2 = torch.where(counts > 0, dd2 / counts, 0)
            _add_distance_gradient(dpadded, padded, padded_mask, dd2, shift, kernels)
        return dx, _folded(dpadded, guide, kernels), dh, dsigma, None, None, None, *(None for _ in kernels)


def _sums(
    x: Tensor,
    maps: tuple[Tensor, Tensor | None],
    h: Tensor,
    sigma: Tensor,
    mask: Tensor | None,
    kernels: Sequence[Tensor],
    shifts: Iterable[Shift],
) -> tuple[Tensor, Tensor]:
    """sum_q w(p, q) x(q), and sum_q w(p, q)."""
    total = x.new_ones(x.shape[0], *x.shape[2:])  # w(p, p) = 1
    weighted = x.clone()
    for shift in shifts:
        here, there = overlap(shift, x.shape[2:])
        d2, _ = distance(*maps, shift, kernels)
        for at, other in ((here, there), (there, here)):
            weight = weight_map(d2, at_places(h, at), at_places(sigma, at))
            if mask is not None:
                weight *= mask[:, *other]
            total[:, *at] += weight
            weighted[:, :, *at] += weight.unsqueeze(1) * x[:, :, *other]
    return weighted, total


def half_of_shifts(shape: Sequence[int], patch_distance: Sequence[int]) -> Iterator[Shift]:
    """One of every pair of opposite shifts that some two pixels of the image have.

    >>> list(half_of_shifts((2, 3), (1, 1)))
    [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    reach = [min(far, length - 1) for far, length in zip(patch_distance, shape, strict=True)]
    zero = (0,) * len(reach)
    return (s for s in itertools.product(*(range(-r, r + 1) for r in reach)) if s > zero)


def reported(shifts: Iterable[Shift], progress: Progress | None) -> Iterator[Shift]:
    """The shifts; `progress` hears of each that is done."""
    every = list(shifts)
    for number, shift in enumerate(every, start=1):
        yield shift
        if progress is not None:
            progress(number, len(every))


def overlap(shift: Shift, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where p and p + shift are both inside: the slices of p, and those of p + shift."""
    here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(shift, shape, strict=True))
    there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(shift, shape, strict=True))
    return here, there


def at_places(value: Tensor, at: tuple[slice, ...]) -> Tensor:
    """One number, or those of these places."""
    return value[:, *at] if value.dim() else value


def _add(total: Tensor, at: tuple[slice, ...], value: Tensor) -> None:
    if total.dim():
        total[:, *at] += value
    else:
        total += value.sum()


def weight_map(d2: Tensor, h: Tensor, sigma: Tensor) -> Tensor:
    """The weights of squared distances."""
    return torch.exp(exponent_map(d2, h, sigma).neg_())


def exponent_map(d2: Tensor, h: Tensor, sigma: Tensor) -> Tensor:
    """What the exponentials are of, without its sign."""
    return (d2 - 2 * sigma**2).clamp_(min=0) / h**2


def distance(
    padded: Tensor, mask: Tensor | None, shift: Shift, kernels: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """d2 of all p with p + shift inside, (batch, *overlap), and the share of the patch that it is a mean of.

    Infinite where the mask leaves nothing to compare.
    """
    here, there = overlap(shift, padded.shape[2:])
    squared = (padded[:, :, *here] - padded[:, :, *there]).square_().mean(dim=1)
    counts = None if mask is None else mask[:, 0][:, *here] * mask[:, 0][:, *there]
    if counts is not None:
        squared *= counts
    for axis, kernel in enumerate(kernels, start=1):
        squared = along(squared, kernel, axis)
        counts = None if counts is None else along(counts, kernel, axis)
    if counts is None:
        return squared, None
    return torch.where(counts > 0, squared / torch.where(counts > 0, counts, 1), torch.inf), counts


def along(values: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """The weighted sum over a window along one axis, which gets shorter by the window less one."""
    length = values.shape[axis] - len(kernel) + 1
    total = values.narrow(axis, 0, length) * kernel[0]
    for place in range(1, len(kernel)):
        total += values.narrow(axis, place, length) * kernel[place]
    return total


def with_zeros(values: Tensor, count: int, axis: int) -> Tensor:
    """So many zeros before and after, along one axis."""
    widths = [0, 0] * values.dim()
    widths[2 * (values.dim() - 1 - axis) : 2 * (values.dim() - axis)] = [count] * 2
    return torch.nn.functional.pad(values, widths)


def _add_distance_gradient(
    dpadded: Tensor,
    padded: Tensor,
    mask: Tensor | None,
    dd2: Tensor,
    shift: Shift,
    kernels: Sequence[Tensor],
) -> None:
    """The backward pass of `distance`."""
    here, there = overlap(shift, padded.shape[2:])
    for axis, kernel in enumerate(kernels, start=1):
        dd2 = along(with_zeros(dd2, len(kernel) - 1, axis), kernel.flip(0), axis)
    if mask is not None:
        dd2 = dd2 * mask[:, 0][:, *here] * mask[:, 0][:, *there]
    both = (padded[:, :, *here] - padded[:, :, *there]) * (dd2 * (2 / padded.shape[1])).unsqueeze(1)
    dpadded[:, :, *here] += both
    dpadded[:, :, *there] -= both


def _mirror(length: int, radius: int, device: torch.device) -> Tensor:
    """Which place of an axis each place of the padded axis shows."""
    at = torch.arange(-radius, length + radius, device=device)
    if length == 1:
        return torch.zeros_like(at)
    at = at % (2 * length - 2)
    return torch.minimum(at, 2 * length - 2 - at)


def both_padded(
    guide: Tensor, mask: Tensor | None, kernels: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Guide and mask with their mirrored edges."""
    padded_mask = None if mask is None else mirror_padded(mask.unsqueeze(1), kernels)
    return mirror_padded(guide, kernels), padded_mask


def mirror_padded(guide: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """The guide with its mirrored edge, half a patch on every side."""
    for axis, kernel in enumerate(kernels, start=2):
        guide = guide.index_select(axis, _mirror(guide.shape[axis], len(kernel) // 2, guide.device))
    return guide


def _folded(dpadded: Tensor, guide: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """The backward pass of `mirror_padded`."""
    for axis in range(len(kernels) + 1, 1, -1):
        length = guide.shape[axis]
        shape = list(dpadded.shape)
        shape[axis] = length
        places = _mirror(length, len(kernels[axis - 2]) // 2, guide.device)
        dpadded = dpadded.new_zeros(shape).index_add_(axis, places, dpadded)
    return dpadded
