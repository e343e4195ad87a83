"""The programs that `means/gpu.py` starts: for many shifts at a time, one pixel a thread.

Pixels have four axes, of lengths N0 to N3; P0 to P3 are their lengths with the mirrored edge. `shifts` holds
four numbers a shift. No two threads add to the same memory, so the same inputs give the same bits.
"""

from __future__ import annotations

from typing import no_type_check

from nonlocal_nn.ops.gpu.language import jit, tl


@jit
@no_type_check
def row_distances(
    guide,
    distances,
    shifts,
    kernel,
    count,
    channels,
    P0,
    P1,
    P2,
    P3,
    N3,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For each shift, (P0, P1, P2, N3): the mean over channels of squared differences, summed along rows."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, i3 = at // N3, at % N3
    i2, i1, i0 = row % P2, row // P2 % P1, row // P2 // P1
    here = row * P3 + i3
    size = P0 * P1 * P2 * N3
    for number in range(count):
        s0, s1 = tl.load(shifts + 4 * number), tl.load(shifts + 4 * number + 1)
        s2, s3 = tl.load(shifts + 4 * number + 2), tl.load(shifts + 4 * number + 3)
        inside = (at < size) & (i0 + s0 < P0) & (i1 + s1 >= 0) & (i1 + s1 < P1)  # s0 >= 0
        inside = inside & (i2 + s2 >= 0) & (i2 + s2 < P2) & (i3 + s3 >= 0) & (i3 + s3 < N3)
        offset = ((s0 * P1 + s1) * P2 + s2) * P3 + s3
        summed = tl.zeros([BLOCK], distances.dtype.element_ty)
        for channel in range(channels):
            plane = guide + tl.cast(channel, tl.int64) * (P0 * P1 * P2 * P3)
            for k in tl.static_range(SIZE):
                a = tl.load(plane + here + k, mask=inside, other=0.0)
                b = tl.load(plane + here + offset + k, mask=inside, other=0.0)
                summed += tl.load(kernel + k) * (a - b) * (a - b)
        place = tl.cast(number, tl.int64) * size + at
        tl.store(distances + place, summed / channels, mask=at < size)


@jit
@no_type_check
def axis_sums(before, after, kernel, total, length, inner, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """(..., length, inner) from (..., length + SIZE - 1, inner): the weighted sum along that axis."""
    at = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    outer, rest = at // (length * inner), at % (length * inner)
    place = outer * ((length + SIZE - 1) * inner) + rest
    summed = tl.zeros([BLOCK], after.dtype.element_ty)
    for k in tl.static_range(SIZE):
        summed += tl.load(kernel + k) * tl.load(before + place + k * inner, mask=at < total, other=0.0)
    tl.store(after + at, summed, mask=at < total)


@jit
@no_type_check
def weight(distances, place, inside, kernel, variance, h, N3, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The weights of the patches at these places, zero where the other pixel is outside of the image."""
    d2 = tl.zeros([BLOCK], distances.dtype.element_ty)
    for k in tl.static_range(SIZE):
        d2 += tl.load(kernel + k) * tl.load(distances + place + k * N3, mask=inside, other=0.0)
    return tl.where(inside, tl.exp(-tl.maximum(d2 - variance, 0.0) / (h * h)), 0.0)


@jit
@no_type_check
def add_weighted(
    x,
    weighted,
    total,
    distances,
    shifts,
    kernel,
    h,
    sigma,
    count,
    channels,
    N0,
    N1,
    N2,
    N3,
    H_STEP: tl.constexpr,
    SIGMA_STEP: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds, for each shift s, what p + s and p - s weigh at p, and so much of their CHANNELS values.

    `distances` holds (N0, N1, N2 + SIZE - 1, N3) for each shift, still to be summed along the columns.
    """
    P2 = N2 + SIZE - 1
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixels = N0 * N1 * N2 * N3
    valid = at < pixels
    i3, i2, i1, i0 = at % N3, at // N3 % N2, at // N3 // N2 % N1, at // N3 // N2 // N1
    own_h = tl.load(h + at * H_STEP, mask=valid, other=1.0)
    own_sigma = tl.load(sigma + at * SIGMA_STEP, mask=valid, other=0.0)
    variance = 2 * own_sigma * own_sigma
    group = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    planes = x + tl.cast(group, tl.int64)[:, None] * pixels
    sums = weighted + tl.cast(group, tl.int64)[:, None] * pixels + at[None, :]
    known = (group < channels)[:, None]
    added = tl.load(sums, mask=known & valid[None, :], other=0.0)
    weights = tl.load(total + tl.program_id(1) * pixels + at, mask=valid, other=0.0)
    for number in range(count):
        s0, s1 = tl.load(shifts + 4 * number), tl.load(shifts + 4 * number + 1)
        s2, s3 = tl.load(shifts + 4 * number + 2), tl.load(shifts + 4 * number + 3)
        offset = ((s0 * N1 + s1) * N2 + s2) * N3 + s3
        place = tl.cast(number, tl.int64) * (N0 * N1 * P2 * N3) + ((i0 * N1 + i1) * P2 + i2) * N3 + i3
        back = ((s0 * N1 + s1) * P2 + s2) * N3 + s3
        # p + s, of the map at p
        inside = valid & (i0 + s0 < N0) & (i1 + s1 >= 0) & (i1 + s1 < N1) & (i2 + s2 >= 0) & (i2 + s2 < N2)
        inside = inside & (i3 + s3 >= 0) & (i3 + s3 < N3)
        w = weight(distances, place, inside, kernel, variance, own_h, N3, SIZE, BLOCK)
        weights += w
        values = tl.load(planes + (at + offset)[None, :], mask=known & inside[None, :], other=0.0)
        added += w[None, :] * values
        # p - s, of the map at p - s
        inside = valid & (i0 - s0 >= 0) & (i1 - s1 >= 0) & (i1 - s1 < N1) & (i2 - s2 >= 0) & (i2 - s2 < N2)
        inside = inside & (i3 - s3 >= 0) & (i3 - s3 < N3)
        w = weight(distances, place - back, inside, kernel, variance, own_h, N3, SIZE, BLOCK)
        weights += w
        values = tl.load(planes + (at - offset)[None, :], mask=known & inside[None, :], other=0.0)
        added += w[None, :] * values
    tl.store(sums, added, mask=known & valid[None, :])
    tl.store(total + tl.program_id(1) * pixels + at, weights, mask=valid)
