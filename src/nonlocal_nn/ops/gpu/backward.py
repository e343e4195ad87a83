"""The backward programs of `gpu/softmax.py`, which has their equations."""

from __future__ import annotations

from typing import no_type_check

from nonlocal_nn.ops.gpu.parts import dot, jit, load_tile, own_place, products, store_tile, tl


@jit
@no_type_check
def row_products(
    y,
    y_strides,
    dy,
    dy_strides,
    delta,
    queries,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """delta_i = y_i . dy_i, summed in float32."""
    start, batch, _ = own_place(queries, 1, QUERIES)
    y += batch * y_strides[0] + start * y_strides[1]
    dy += batch * dy_strides[0] + start * dy_strides[1]
    left = queries - start
    sums = tl.zeros([QUERIES], tl.float32)
    for first in range(0, CHANNELS, DEPTH):
        one = load_tile(y, y_strides, left, first, CHANNELS, QUERIES, DEPTH).to(tl.float32)
        two = load_tile(dy, dy_strides, left, first, CHANNELS, QUERIES, DEPTH).to(tl.float32)
        sums += tl.sum(one * two, 1)
    query = tl.arange(0, QUERIES)
    tl.store(delta + batch * queries + start + query, sums, mask=query < left)


@jit
@no_type_check
def theta_gradient(
    theta,
    theta_strides,
    phi,
    phi_strides,
    g,
    g_strides,
    dy,
    dy_strides,
    row_max,
    row_sum,
    delta,
    gradient_scale,
    dtheta,
    dtheta_strides,
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
    PRECISION: tl.constexpr,
):
    """WIDTH columns of dtheta in QUERIES rows, over all keys."""
    start, batch, group = own_place(queries, GROUPS, QUERIES)
    theta += batch * theta_strides[0] + start * theta_strides[1]
    dy += batch * dy_strides[0] + start * dy_strides[1]
    phi += batch * phi_strides[0]
    g += batch * g_strides[0]
    left = queries - start
    query = tl.arange(0, QUERIES)
    place = batch * queries + start + query
    m = tl.load(row_max + place, mask=query < left, other=0.0)
    s = tl.load(row_sum + place, mask=query < left, other=1.0)
    mean = tl.load(delta + place, mask=query < left, other=0.0)
    factor = tl.load(gradient_scale)
    key = tl.arange(0, KEYS)

    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    for first in range(0, keys, KEYS):
        other = tl.cast(first, tl.int64)
        phi_here = phi + other * phi_strides[1]
        logits = scale * products(
            theta,
            theta_strides,
            left,
            phi_here,
            phi_strides,
            keys - first,
            D,
            QUERIES,
            KEYS,
            DEPTH,
            PRECISION,
        )
        logits = tl.where((key < keys - first)[None, :], logits, -float("inf"))
        dp = products(
            dy,
            dy_strides,
            left,
            g + other * g_strides[1],
            g_strides,
            keys - first,
            CHANNELS,
            QUERIES,
            KEYS,
            DEPTH,
            PRECISION,
        )
        # Not divided by s yet: the largest weight is 1 here, however many keys share the sum.
        dlogits = tl.exp(logits - m[:, None]) * ((dp - mean[:, None]) * factor)
        columns = load_tile(phi_here, phi_strides, keys - first, group * WIDTH, D, KEYS, WIDTH)
        sums = dot(dlogits.to(columns.dtype), columns, sums, PRECISION)

    dtheta += batch * dtheta_strides[0] + start * dtheta_strides[1]
    sums *= (scale / (s * factor))[:, None]
    store_tile(dtheta, dtheta_strides, left, group * WIDTH, D, sums, QUERIES, WIDTH)


@jit
@no_type_check
def key_gradients(
    theta,
    theta_strides,
    phi,
    phi_strides,
    g,
    g_strides,
    dy,
    dy_strides,
    row_max,
    row_sum,
    delta,
    gradient_scale,
    dphi,
    dphi_strides,
    dg,
    dg_strides,
    queries,
    keys,
    scale,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PHI_WIDTH: tl.constexpr,  # 0: no dphi
    G_WIDTH: tl.constexpr,  # 0: no dg
    FLOAT16_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """PHI_WIDTH columns of dphi and G_WIDTH of dg in KEYS rows, over all queries."""
    start, batch, group = own_place(keys, GROUPS, KEYS)
    phi += batch * phi_strides[0] + start * phi_strides[1]
    g += batch * g_strides[0] + start * g_strides[1]
    theta += batch * theta_strides[0]
    dy += batch * dy_strides[0]
    left = keys - start
    query = tl.arange(0, QUERIES)
    factor = tl.load(gradient_scale)

    if PHI_WIDTH > 0:
        phi_sums = tl.zeros([KEYS, PHI_WIDTH], tl.float32)
    if G_WIDTH > 0:
        g_sums = tl.zeros([KEYS, G_WIDTH], tl.float32)
    for first in range(0, queries, QUERIES):
        other = tl.cast(first, tl.int64)
        theta_here = theta + other * theta_strides[1]
        dy_here = dy + other * dy_strides[1]
        more = queries - first
        place = batch * queries + other + query
        m = tl.load(row_max + place, mask=query < more, other=float("inf"))  # so that p is 0 beyond the edge
        s = tl.load(row_sum + place, mask=query < more, other=1.0)
        # Rows and columns are exchanged here: these products are what the sums over queries need.
        logits = scale * products(
            phi, phi_strides, left, theta_here, theta_strides, more, D, KEYS, QUERIES, DEPTH, PRECISION
        )
        p = tl.exp(logits - m[None, :]) * (1.0 / s)[None, :]
        if G_WIDTH > 0:
            columns = load_tile(dy_here, dy_strides, more, group * G_WIDTH, CHANNELS, QUERIES, G_WIDTH)
            g_sums = dot((p * FLOAT16_SCALE).to(columns.dtype), columns, g_sums, PRECISION)
        if PHI_WIDTH > 0:
            mean = tl.load(delta + place, mask=query < more, other=0.0)
            dp = products(
                g, g_strides, left, dy_here, dy_strides, more, CHANNELS, KEYS, QUERIES, DEPTH, PRECISION
            )
            dlogits = p * ((dp - mean[None, :]) * factor)
            columns = load_tile(theta_here, theta_strides, more, group * PHI_WIDTH, D, QUERIES, PHI_WIDTH)
            phi_sums = dot(dlogits.to(columns.dtype), columns, phi_sums, PRECISION)

    if PHI_WIDTH > 0:
        dphi += batch * dphi_strides[0] + start * dphi_strides[1]
        phi_sums *= scale / factor
        store_tile(dphi, dphi_strides, left, group * PHI_WIDTH, D, phi_sums, KEYS, PHI_WIDTH)
    if G_WIDTH > 0:
        dg += batch * dg_strides[0] + start * dg_strides[1]
        store_tile(dg, dg_strides, left, group * G_WIDTH, CHANNELS, g_sums / FLOAT16_SCALE, KEYS, G_WIDTH)
