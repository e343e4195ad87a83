"""The sums of the textbook filter on a GPU, in Triton: many shifts at a time, in three passes or a few more.

For a group of shifts, and with it for their opposites:

1. squared differences, averaged over channels and summed along the rows of the patch;
2. sums along the patch's other axes but the last but one, where it has any;
3. the last sums, the exponentials, and at each pixel p the sums over p + s and p - s.

The torch form starts 25 programs for each shift. Groups are as large as `GROUP_BYTES` allows: memory is
linear in the image.

>>> runs(torch.zeros(1, 1, 4, 4))
False
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nonlocal_nn.ops.gpu.available import available, device_of

GROUP_BYTES = 64 * 2**20
"""Of one map of distances for each shift of a group."""
_BLOCK = 256
_CHANNELS = 4  # at a time; weights are made again for the next ones
_LARGEST = 2**31 - 1  # numbers of a map, which are counted in 32 bits


def runs(x: Tensor) -> bool:
    """Whether `sums` takes tensors like x."""
    return (
        x.device.type == "cuda"
        and x.dtype in (torch.float32, torch.float64)
        and x[0].numel() < _LARGEST // 2
        and available(x.device)
    )


def sums(
    x: Tensor,
    padded: Tensor,
    h: Tensor,
    sigma: Tensor,
    kernels: Sequence[Tensor],
    shifts: Sequence[tuple[int, ...]],
    progress: Callable[[int, int], None] | None = None,
    group_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """What is averaged, summed with its weights, as x; and the sums of weights, (batch, *pixels).

    Args:
        x: (batch, channel, *pixels), up to four pixel axes.
        padded: the guide, (batch, channel, *pixels + size - 1), with its mirrored edge.
        h, sigma: no axes, or (batch, *pixels).
        kernels: for each pixel axis, what the offsets of a patch count along it.
        shifts: one of each pair of opposite ones, the first number that is not 0 positive.
        progress: called with (shifts done, of how many).
        group_bytes: instead of `GROUP_BYTES`.
    """
    missing = 4 - len(kernels)
    kernels = [x.new_ones(1)] * missing + [kernel.contiguous() for kernel in kernels]
    pixels = [1] * missing + list(x.shape[2:])
    around = [1] * missing + list(padded.shape[2:])
    weighted = x.clone(memory_format=torch.contiguous_format)
    groups = -(-x.shape[1] // _CHANNELS)
    total = x.new_ones(len(x), groups, *x.shape[2:])  # w(p, p) = 1
    table = torch.tensor([(0,) * missing + shift for shift in shifts], dtype=torch.int32).to(x.device)
    each = around[0] * around[1] * around[2] * pixels[3] * x.element_size()
    step = max(1, (GROUP_BYTES if group_bytes is None else group_bytes) // max(1, each))
    done, of_all = 0, len(shifts) * len(x)
    with device_of(x):
        for number in range(len(x)):
            for first in range(0, len(shifts), step):
                some = table[first : first + step]
                _add(
                    x[number].contiguous(),
                    weighted[number],
                    total[number],
                    padded[number].contiguous(),
                    _own(h, number),
                    _own(sigma, number),
                    kernels,
                    some,
                    pixels,
                    around,
                )
                done += len(some)
                if progress is not None:
                    progress(done, of_all)
    return weighted, total[:, 0]


def _add(
    x: Tensor,
    weighted: Tensor,
    total: Tensor,
    padded: Tensor,
    h: Tensor,
    sigma: Tensor,
    kernels: Sequence[Tensor],
    shifts: Tensor,
    pixels: Sequence[int],
    around: Sequence[int],
) -> None:
    """One group of shifts of one image."""
    from nonlocal_nn.ops.means import gpu_programs

    count, channels = len(shifts), len(x)
    lengths = [*around[:3], pixels[3]]
    distances = x.new_empty(count, *lengths)
    gpu_programs.row_distances[(_blocks(distances[0].numel()),)](
        padded,
        distances,
        shifts,
        kernels[3],
        count,
        len(padded),
        *around,
        pixels[3],
        SIZE=len(kernels[3]),
        BLOCK=_BLOCK,
    )
    for axis in (0, 1):
        if len(kernels[axis]) == 1:
            continue
        lengths[axis] = pixels[axis]
        summed = x.new_empty(count, *lengths)
        inner = lengths[3] * lengths[2] * (lengths[1] if axis == 0 else 1)
        gpu_programs.axis_sums[(_blocks(summed.numel()),)](
            distances,
            summed,
            kernels[axis],
            summed.numel(),
            pixels[axis],
            inner,
            SIZE=len(kernels[axis]),
            BLOCK=_BLOCK,
        )
        distances = summed
    gpu_programs.add_weighted[(_blocks(x[0].numel()), len(total))](
        x,
        weighted,
        total,
        distances,
        shifts,
        kernels[2],
        h,
        sigma,
        count,
        channels,
        *pixels,
        H_STEP=int(h.dim() > 0),
        SIGMA_STEP=int(sigma.dim() > 0),
        SIZE=len(kernels[2]),
        CHANNELS=min(_CHANNELS, 1 << (channels - 1).bit_length()),
        BLOCK=_BLOCK,
    )


def _own(value: Tensor, number: int) -> Tensor:
    return value[number].contiguous() if value.dim() else value


def _blocks(count: int) -> int:
    return -(-count // _BLOCK)
