"""A convolution as self-attention, and the way back (Cordonnier, Loukas and Jaggi, ICLR 2020).

A head whose weights all lie on one offset reads one tap of a kernel. The other way round, heads whose scores
look at offsets alone are a convolution, sharp or not: K(delta) = sum_h A_h(delta) W_h.

>>> from torch import nn
>>> taps_of(nn.Conv2d(3, 4, (1, 2), dilation=3)).tolist()
[[0, 0], [0, 3]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Padding = tuple[int, int, int, int]  # left, right, top, bottom, as in torch.nn.functional.pad

_NOTHING = 1e-12  # of the largest tap: what is left between the taps of a dilated kernel


class Geometry(NamedTuple):
    """Where queries stand, and what lies around the map."""

    stride: tuple[int, int]
    padding: Padding
    padding_mode: PaddingMode
    extent: tuple[int, int]  # rows and columns from a query on that must be in the padded map

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The queries' rows and columns of a map.

        Raises:
            ValueError: a map with none, or too small for its padding.
        """
        left, right, top, bottom = self.padding
        sizes = (height + top + bottom, width + left + right)
        if min(height, width) < 1 or any(
            size < extent for size, extent in zip(sizes, self.extent, strict=True)
        ):
            raise ValueError(
                f"a map of {height} x {width}, padded to {sizes[0]} x {sizes[1]}, is smaller than the "
                f"{self.extent[0]} x {self.extent[1]} that a query looks at"
            )
        least = {"reflect": 1, "circular": 0}.get(self.padding_mode)
        if least is not None and (max(top, bottom) + least > height or max(left, right) + least > width):
            raise ValueError(
                f"{self.padding_mode} padding of {self.padding} (left, right, top, bottom) is wider than a "
                f"map of {height} x {width} allows"
            )
        rows, columns = (
            (size - extent) // stride + 1
            for size, extent, stride in zip(sizes, self.extent, self.stride, strict=True)
        )
        return rows, columns

    def padded(self, x: Tensor) -> Tensor:
        """The map with what lies around it."""
        if not any(self.padding):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return nn.functional.pad(x, self.padding, mode=mode)


def geometry_of(conv: nn.Conv2d) -> Geometry:
    """Of a convolution, whose queries stand at the first tap.

    Raises:
        TypeError: anything but a Conv2d.
    """
    if not isinstance(conv, nn.Conv2d) or conv.transposed:
        raise TypeError(f"from_conv takes an nn.Conv2d, got {type(conv).__name__}")
    extent = tuple(d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if isinstance(conv.padding, str):
        around = [0, 0, 0, 0]
        if conv.padding == "same":  # torch puts the odd one to the right and below
            for axis, span in enumerate(extent):
                around[2 * (1 - axis)] = (span - 1) // 2
                around[2 * (1 - axis) + 1] = span - 1 - (span - 1) // 2
    else:
        vertical, horizontal = conv.padding
        around = [horizontal, horizontal, vertical, vertical]
    mode = conv.padding_mode
    assert mode in get_args(PaddingMode), mode
    return Geometry(_pair(conv.stride), (around[0], around[1], around[2], around[3]), mode, _pair(extent))


def taps_of(conv: nn.Conv2d) -> Tensor:
    """The offset of each kernel tap from the first one, (taps, 2), row by row."""
    rows, columns = (
        torch.arange(size) * step for size, step in zip(conv.kernel_size, conv.dilation, strict=True)
    )
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


class Convolution(NamedTuple):
    """What a layer without content amounts to."""

    conv: nn.Conv2d
    border: Padding
    """Columns left and right, rows above and below, of the output, where the layer's softmax renormalises,
    and the convolution does not."""
    error: float
    """Elsewhere no output differs by more than this times the largest number of the map."""


class Kernel(NamedTuple):
    """Taps from offset `first` on."""

    weight: Tensor  # (out, in, rows, columns), float64
    first: tuple[int, int]
    error: float


def kernel_of(weights: Tensor, first: tuple[int, int], value: Tensor, tolerance: float) -> Kernel:
    """The smallest kernel whose missing weights stay below `tolerance`.

    Args:
        weights: (head, offset row, offset column), what each head gives to the offsets from `first` on.
        value: (head, out, in).

    Raises:
        ValueError: no kernel does, with what the largest one leaves.
    """
    weights, value = weights.double(), value.double()
    sizes = value.abs().sum(dim=2)  # (head, out)
    top, left, bottom, right = 0, 0, weights.shape[1], weights.shape[2]

    def error(top: int, left: int, bottom: int, right: int) -> float:
        missing = (1 - weights[:, top:bottom, left:right].sum(dim=(1, 2))).clamp(min=0, max=1 - 1e-12)
        # What is left out, and what the softmax over a map without it gives to the others instead.
        return float(((2 * missing / (1 - missing)).unsqueeze(1) * sizes).sum(dim=0).amax())

    least = error(top, left, bottom, right)
    if least > tolerance:
        raise ValueError(
            f"tolerance = {tolerance:g}: a kernel of {bottom} x {right} still leaves {least:.2g}; heads as "
            "broad as that are no convolution of a useful size"
        )
    window = [top, left, bottom, right]
    steps = (1, 1, -1, -1)
    while True:  # the side whose loss costs least goes first
        trials = []
        for side, step in enumerate(steps):
            trial = window.copy()
            trial[side] += step
            if trial[0] < trial[2] and trial[1] < trial[3]:
                trials.append((error(*trial), trial))
        cost, trial = min(trials, default=(float("inf"), window))
        if cost > tolerance:
            break
        window = trial
    top, left, bottom, right = window
    made = torch.einsum("hrc,hoi->oirc", weights[:, top:bottom, left:right], value)
    return Kernel(made, (first[0] + top, first[1] + left), error(*window))


def as_conv(
    kernel: Kernel, geometry: Geometry, groups: int, bias: Tensor | None, like: Tensor
) -> Convolution:
    """The convolution with this kernel, at the layer's queries."""
    left, right, top, bottom = geometry.padding
    plans = [
        _axis(kernel.first[axis], kernel.weight.shape[2 + axis], sides, geometry.extent[axis])
        for axis, sides in enumerate(((top, bottom), (left, right)))
    ]
    out, each = kernel.weight.shape[:2]
    whole = kernel.weight.new_zeros(out, each, plans[0].size, plans[1].size)
    rows, columns = (
        slice(plan.start, plan.start + count)
        for plan, count in zip(plans, kernel.weight.shape[2:], strict=True)
    )
    whole[:, :, rows, columns] = kernel.weight
    dilation = tuple(_dilation(whole.abs().amax(dim=(0, 1)).amax(dim=1 - axis)) for axis in (0, 1))
    all_taps = whole.abs().sum(dim=(1, 2, 3))
    whole = whole[:, :, :: dilation[0], :: dilation[1]]
    error = kernel.error + float((all_taps - whole.abs().sum(dim=(1, 2, 3))).clamp(min=0).amax())
    conv = nn.Conv2d(
        each * groups,
        out,
        _pair(whole.shape[2:]),
        geometry.stride,
        (plans[0].padding, plans[1].padding),
        _pair(dilation),
        groups,
        bias is not None,
        geometry.padding_mode,
    ).to(device=like.device, dtype=like.dtype)
    with torch.no_grad():
        conv.weight.copy_(whole)
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
    sides = []
    for axis in (1, 0):
        stride, before = geometry.stride[axis], -kernel.first[axis]
        after = kernel.first[axis] + kernel.weight.shape[2 + axis] - geometry.extent[axis]
        sides += [max(0, -(-before // stride)), max(0, -(-after // stride))]
    return Convolution(conv, (sides[0], sides[1], sides[2], sides[3]), error)


class _Plan(NamedTuple):
    padding: int
    size: int  # of the kernel
    start: int  # where the first tap lies in it


def _axis(first: int, count: int, sides: tuple[int, int], extent: int) -> _Plan:
    """Padding p' on both sides, and a kernel for as many queries: 2 p' - size = before + after - extent."""
    before, after = sides
    padding = max(0, before - first)
    while True:
        size = 2 * padding - before - after + extent
        start = first + padding - before
        if size >= start + count and size > 0:
            return _Plan(padding, size, start)
        padding += 1


def _dilation(sizes: Tensor) -> int:
    """The largest step from the first tap to the last that passes over nothing that counts."""
    span = len(sizes) - 1
    for step in range(span, 1, -1):
        if span % step == 0 and not bool(
            (sizes[[n for n in range(len(sizes)) if n % step]] > _NOTHING * sizes.amax()).any()
        ):
            return step
    return 1
