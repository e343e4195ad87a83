"""The forward program of `gpu/softmax.py`, which has its equations."""

from __future__ import annotations

from typing import no_type_check

from nonlocal_nn.ops.gpu.parts import dot, jit, load_tile, own_place, products, store_tile, tl


@jit
@no_type_check
def forward(
    theta,
    theta_strides,
    phi,
    phi_strides,
    g,
    g_strides,
    y,
    y_strides,
    row_max,
    row_sum,
    queries,
    keys,
    scale,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    FLOAT16_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """WIDTH channels of y in QUERIES rows, and by the first group of channels the rows' statistics."""
    start, batch, group = own_place(queries, GROUPS, QUERIES)
    theta += batch * theta_strides[0] + start * theta_strides[1]
    phi += batch * phi_strides[0]
    g += batch * g_strides[0]
    left = queries - start
    key = tl.arange(0, KEYS)

    m = tl.full([QUERIES], -float("inf"), tl.float32)
    s = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    for first in range(0, keys, KEYS):
        other = tl.cast(first, tl.int64)
        logits = scale * products(
            theta,
            theta_strides,
            left,
            phi + other * phi_strides[1],
            phi_strides,
            keys - first,
            D,
            QUERIES,
            KEYS,
            DEPTH,
            PRECISION,
        )
        logits = tl.where((key < keys - first)[None, :], logits, -float("inf"))
        higher = tl.maximum(m, tl.max(logits, 1))
        shrink = tl.exp(m - higher)
        e = tl.exp(logits - higher[:, None])
        m = higher
        s = s * shrink + tl.sum(e, 1)
        values = load_tile(
            g + other * g_strides[1], g_strides, keys - first, group * WIDTH, CHANNELS, KEYS, WIDTH
        )
        weights = (e * FLOAT16_SCALE).to(values.dtype)
        sums = dot(weights, values, sums * shrink[:, None], PRECISION)

    y += batch * y_strides[0] + start * y_strides[1]
    store_tile(
        y, y_strides, left, group * WIDTH, CHANNELS, sums / (s * FLOAT16_SCALE)[:, None], QUERIES, WIDTH
    )
    if group == 0:
        query = tl.arange(0, QUERIES)
        place = batch * queries + start + query
        tl.store(row_max + place, m, mask=query < left)
        tl.store(row_sum + place, s, mask=query < left)
