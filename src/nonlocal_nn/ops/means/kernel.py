"""The textbook filter in numba, for a CPU, without gradients: compiled at its first call, then kept on disk.

The image is planes of rows: a plane for each channel and each place along the axes before the last two. The
distance of two places is a sum over pairs of planes (channels, and offsets of the patch along those axes) of
squared differences, then over the rows and columns of the patch. For one shift and a band of rows:

1. rows of summed squares, in groups of as many windows as a patch has rows: the sum of a window is that of
   the group's last rows plus that of the first rows after it, three additions a row, all terms positive;
2. the sum over the columns of the patch, the exponential as 2^n times a polynomial of degree 5 (relative
   error 2e-7), and the additions for p and p + shift, row by row while they are in the cache.

Rows are cut into tiles of a fixed width, with zeros around them, so that no loop has a rest: 2.0 times as
fast as loops over the overlap alone. The weights of four neighbouring shifts added together were 1.13 times
as fast, which is not worth it.

Bands are fixed and have sums of their own, which are added in their order: the same bits for any number of
threads. Threads are Python's; the compiled code holds no lock. numba's `parallel` would bring a second OpenMP
beside torch's.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, no_type_check

import numba
import numba.extending
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_BAND_ROWS = 64
_LANES = 16
# 2^f for f from -1/2 to 1/2: a polynomial of degree 5, relative error 2e-7.
_EXP2 = (1.0, 0.69314697, 0.24022651, 0.05550348, 0.00967170, 0.00132754)
_TILES = (64, 128, 256)  # columns
_TILE_COSTS = 24  # columns more


def nl_means_planes(
    x: Floats,
    padded: Floats,
    patch_size: Sequence[int],
    patch_distance: Sequence[int],
    h: float,
    sigma: float,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> Floats:
    """The filtered image (channel, *pixels), float32, patches of equal weights.

    Args:
        x: (channel, *pixels), what is averaged.
        padded: (guide channel, *pixels + patch_size - 1), the guide with its mirrored edge.
        patch_size, patch_distance: for each pixel axis; sizes are odd.
        h, sigma: numbers.
        threads: how many work at a time.
        progress: called with (bands done, of how many).
    """
    channels, pixels = x.shape[0], x.shape[1:]
    outer, (rows, columns) = pixels[:-2], pixels[-2:]
    places = list(np.ndindex(*outer))
    far = patch_distance[-1]
    tile = min(_TILES, key=lambda tile: -(-columns // tile) * (tile + _TILE_COSTS))
    tiled = -(-columns // tile) * tile  # whole tiles, so that no loop has a rest
    planes = _wider(x.reshape(channels, len(places), rows, columns), far, tiled + far)
    guide = _wider(padded.reshape(-1, *padded.shape[-2:]), far, tiled + far + patch_size[-1] + _LANES)
    outer_padded = padded.shape[1:-2]
    shifts = _outer_shifts(outer, patch_distance[:-2])
    scale = -1.0 / (h * h * np.log(2.0))
    per_pixel = 1.0 / (padded.shape[0] * np.prod(patch_size))
    work = _compiled(patch_size[-2], patch_size[-1], tile)
    total = np.ones((len(places), rows, columns), dtype=np.float32)
    weighted = x.reshape(channels, len(places), rows, columns).copy()

    def band(place: int, first: int) -> tuple[int, int, Floats, list[int]]:
        last = min(rows, first + _BAND_ROWS)
        top, bottom = max(0, first - patch_distance[-2]), min(rows, last + patch_distance[-2])
        others, sums = [place], []
        for shift in shifts:
            there = tuple(p + s for p, s in zip(places[place], shift, strict=True))
            if all(0 <= t < n for t, n in zip(there, outer, strict=True)):
                sums.append((shift, there))
        others = sorted({places.index(there) for _, there in sums} | {place})
        local = np.zeros((len(others), 1 + channels, bottom - top, tiled + 2 * far), dtype=np.float32)
        for shift, there in sums:
            a, b = _plane_pairs(padded.shape[0], places[place], shift, patch_size[:-2], outer_padded)
            other = places.index(there)
            work(
                guide,
                a,
                b,
                planes[:, place],
                planes[:, other],
                local[others.index(place)],
                local[others.index(other)],
                first,
                last,
                top,
                columns,
                patch_distance[-2],
                patch_distance[-1],
                any(shift),
                np.float32(scale * per_pixel),
                np.float32(-scale * 2 * sigma * sigma),
            )
        return top, bottom, local, others

    added = 0

    def add(done: tuple[int, int, Floats, list[int]]) -> None:
        nonlocal added
        added += 1
        if progress is not None:
            progress(added, len(tasks))
        top, bottom, local, others = done
        for number, place in enumerate(others):
            total[place, top:bottom] += local[number, 0, :, far : far + columns]
            weighted[:, place, top:bottom] += local[number, 1:, :, far : far + columns]

    tasks = list(itertools.product(range(len(places)), range(0, rows, _BAND_ROWS)))
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            add(band(*task))
    else:
        with ThreadPoolExecutor(threads) as pool:
            running: deque[Future[tuple[int, int, Floats, list[int]]]] = deque()
            for task in tasks:  # few at a time: each holds sums of its own
                if len(running) > threads:
                    add(running.popleft().result())
                running.append(pool.submit(band, *task))
            for future in running:
                add(future.result())
    weighted /= total
    return weighted.reshape(x.shape)


def _wider(planes: Floats, before: int, width: int) -> Floats:
    """Rows with so many zeros before them, and as many after them as fill the width behind these."""
    after = width - planes.shape[-1]
    return np.pad(planes, [(0, 0)] * (planes.ndim - 1) + [(before, max(0, after))])


def _outer_shifts(outer: Sequence[int], far: Sequence[int]) -> list[tuple[int, ...]]:
    """No shift, and one of each pair of opposite shifts along the axes before the last two."""
    zero = (0,) * len(outer)
    every = itertools.product(*(range(-f, f + 1) for f in far))
    return [shift for shift in every if shift >= zero]


def _plane_pairs(
    channels: int, place: Sequence[int], shift: Sequence[int], sizes: Sequence[int], outer: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the padded guide's planes that are compared: all channels, all offsets along outer axes."""
    shape = (channels, *outer)
    pairs = [
        (
            np.ravel_multi_index((c, *(p + o for p, o in zip(place, offset, strict=True))), shape),
            np.ravel_multi_index(
                (c, *(p + s + o for p, s, o in zip(place, shift, offset, strict=True))), shape
            ),
        )
        for c in range(channels)
        for offset in np.ndindex(*sizes)
    ]
    a, b = np.array(pairs, dtype=np.int64).T
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


# 2^f for f from -1/2 to 1/2: a polynomial of degree 5, relative error 2e-7.


@numba.extending.intrinsic
@no_type_check
def _as_float(typing, bits):  # noqa: ARG001 - numba calls it with both
    """The float32 of these 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return numba.float32(numba.int32), generate


@functools.cache
@no_type_check  # numba compiles what stands here, not what a checker has wrapped
def _compiled(patch_rows: int, patch_columns: int, tile: int) -> Callable[..., None]:
    """The work of a band for one pair of places along the outer axes, compiled for these sizes.

    What it closes over are numbers: numba then finds it again on disk in the next process.
    """
    size_y, size_x = patch_rows, patch_columns
    wide = tile + -(-(size_x - 1) // _LANES) * _LANES
    c0, c1, c2, c3, c4, c5 = (np.float32(c) for c in _EXP2)
    half, low, high = np.float32(0.5), np.float32(-126), np.float32(0)

    def work(
        guide: Any,
        a: Any,
        b: Any,
        x_here: Any,
        x_there: Any,
        sums_here: Any,
        sums_there: Any,
        first: int,
        last: int,
        top: int,
        columns: int,
        far_y: int,
        far_x: int,
        both_signs: bool,
        scale: Any,
        offset: Any,
    ) -> None:
        channels, rows = x_here.shape[:2]
        lines = np.empty((2 * size_y - 1, wide), np.float32)
        prefix = np.empty(wide, np.float32)
        window = np.empty(wide, np.float32)
        weight = np.empty(tile, np.float32)
        for dy in range(-far_y if both_signs else 0, far_y + 1):
            begin, end = max(first, -dy), min(last, rows - dy)
            for start in range(begin, end, size_y):
                stop = min(start + size_y, end)
                for p in range(0, columns, tile):
                    for dx in range(-far_x if both_signs or dy > 0 else 1, far_x + 1):
                        left, right = max(0, -dx) - p, columns - max(0, dx) - p
                        if left >= tile or right <= 0:
                            continue
                        q = p + dx + far_x
                        for line in range(stop - start + size_y - 1):
                            out = lines[line]
                            for k in range(len(a)):
                                row_a = guide[a[k], start + line, p + far_x : p + far_x + wide]
                                row_b = guide[b[k], start + line + dy, q : q + wide]
                                if k == 0:
                                    for i in range(wide):
                                        d = row_a[i] - row_b[i]
                                        out[i] = d * d
                                else:
                                    for i in range(wide):
                                        d = row_a[i] - row_b[i]
                                        out[i] += d * d
                        # The windows that begin in this group of rows: the sum of its rows from there on, and
                        # of those after the group up to there.
                        for line in range(size_y - 2, -1, -1):
                            upper, lower = lines[line], lines[line + 1]
                            for i in range(wide):
                                upper[i] += lower[i]
                        for i in range(wide):
                            prefix[i] = 0
                        for line in range(stop - start):
                            upper = lines[line]
                            if line > 0:
                                lower = lines[line + size_y - 1]
                                for i in range(wide):
                                    prefix[i] += lower[i]
                            for i in range(wide):
                                window[i] = upper[i] + prefix[i]
                            for i in range(tile):
                                s = window[i]
                                for o in range(1, size_x):
                                    s += window[i + o]
                                e = min(max(s * scale + offset, low), high)
                                n = np.int32(e - half)
                                f = e - np.float32(n)
                                two_to_n = _as_float(np.int32((n + 127) << 23))
                                weight[i] = two_to_n * (
                                    c0 + f * (c1 + f * (c2 + f * (c3 + f * (c4 + f * c5))))
                                )
                            for i in range(left):  # p or p + shift outside of the image
                                weight[i] = 0
                            for i in range(right, tile):
                                weight[i] = 0
                            y = start + line
                            here = sums_here[0, y - top, p + far_x : p + far_x + tile]
                            there = sums_there[0, y + dy - top, q : q + tile]
                            here_c = sums_here[1, y - top, p + far_x : p + far_x + tile]
                            there_c = sums_there[1, y + dy - top, q : q + tile]
                            mine = x_here[0, y, p + far_x : p + far_x + tile]
                            theirs = x_there[0, y + dy, q : q + tile]
                            for i in range(tile):
                                here[i] += weight[i]
                                here_c[i] += weight[i] * theirs[i]
                            for i in range(tile):
                                there[i] += weight[i]
                                there_c[i] += weight[i] * mine[i]
                            for c in range(1, channels):
                                mine = x_here[c, y, p + far_x : p + far_x + tile]
                                theirs = x_there[c, y + dy, q : q + tile]
                                here_c = sums_here[1 + c, y - top, p + far_x : p + far_x + tile]
                                there_c = sums_there[1 + c, y + dy - top, q : q + tile]
                                for i in range(tile):
                                    here_c[i] += weight[i] * theirs[i]
                                for i in range(tile):
                                    there_c[i] += weight[i] * mine[i]

    options = {"fastmath": True, "nogil": True}
    try:
        return numba.njit(**options, cache=True)(work)
    except RuntimeError:  # no folder for the cache can be written
        return numba.njit(**options)(work)
