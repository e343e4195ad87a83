"""The programs between the products of `gpu/half_rows.py`, which has their equations."""

from __future__ import annotations

from typing import no_type_check

from nonlocal_nn.ops.gpu.language import jit, tl


@jit
@no_type_check
def weights(logits, weights, of_rows, keys, scale, FACTOR: tl.constexpr, BLOCK: tl.constexpr):  # one row
    """A row's m and s FACTOR, in `of_rows`, and exp(scale l - m) FACTOR in the type of `weights`."""
    row = tl.program_id(0)
    start = tl.cast(row, tl.int64) * keys
    column = tl.arange(0, BLOCK)
    m = tl.full([BLOCK], -float("inf"), tl.float32)
    s = tl.zeros([BLOCK], tl.float32)
    for first in range(0, keys, BLOCK):
        inside = column < keys - first
        l = scale * tl.load(logits + start + first + column, mask=inside, other=0.0)  # noqa: E741
        l = tl.where(inside, l, -float("inf"))  # noqa: E741
        higher = tl.maximum(m, l)  # a NaN is not higher, but s becomes NaN
        shrink = tl.where(m == higher, 1.0, tl.exp(m - higher))
        s = s * shrink + tl.where(l == -float("inf"), 0.0, tl.exp(l - higher))
        m = higher
    highest = tl.max(m, 0)
    total = tl.sum(tl.where(m == -float("inf"), 0.0, s * tl.exp(m - highest)), 0)
    tl.store(of_rows + 2 * row, highest)
    tl.store(of_rows + 2 * row + 1, total * FACTOR)
    for first in range(0, keys, BLOCK):
        inside = column < keys - first
        l = scale * tl.load(logits + start + first + column, mask=inside, other=0.0)  # noqa: E741
        e = tl.exp(l - highest) * FACTOR
        tl.store(weights + start + first + column, e.to(weights.dtype.element_ty), mask=inside)


@jit
@no_type_check
def gradients(
    logits,
    dp,
    of_rows,
    gradient_scale,
    weights,
    dl,
    keys,
    blocks,
    scale,
    FACTOR: tl.constexpr,
    WEIGHTS: tl.constexpr,
    GRADIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK keys of one row: p FACTOR, and p (dp - delta) times the gradients' scale.

    `of_rows` holds m, s FACTOR and delta of each row.
    """
    program = tl.program_id(0)
    row = program // blocks
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < keys
    places = tl.cast(row, tl.int64) * keys + column
    l = scale * tl.load(logits + places, mask=inside, other=0.0)  # noqa: E741
    p = tl.exp(l - tl.load(of_rows + 3 * row)) * (FACTOR / tl.load(of_rows + 3 * row + 1))
    if WEIGHTS:
        tl.store(weights + places, (p * FACTOR).to(weights.dtype.element_ty), mask=inside)
    if GRADIENTS:
        change = tl.load(dp + places, mask=inside, other=0.0) - tl.load(of_rows + 3 * row + 2)
        made = p * change * tl.load(gradient_scale)
        tl.store(dl + places, made.to(dl.dtype.element_ty), mask=inside)
