"""The softmax average a few query rows at a time, in one reused buffer that stays in the cache.

With l_ij = scale theta_i . phi_j and p_i = softmax_j(l_ij), chunk by chunk of rows i:

    y_i = sum_j p_ij g_j

and, with dy_i the gradient of y_i,

    dg_j     = sum_i p_ij dy_i
    dl_ij    = p_ij (dy_i . g_j - sum_k p_ik dy_i . g_k)
    dtheta_i = scale sum_j dl_ij phi_j,      dphi_j = scale sum_i dl_ij theta_i

The backward pass uses p where it was kept, which costs four matrix products, or makes it again, five. Between
the products a row is touched twice: by torch's softmax, which finds the maximum, exponentiates and sums while
the row is in the nearest cache, and to set to zero what is too small, see `TOO_SMALL`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nonlocal_nn.ops.cpu.gemm import Right, SumOfProducts, has_half_width, is_transposed, uses_onednn
from nonlocal_nn.ops.cpu.workspace import scratch

# What one buffer of weights may take. The backward pass has two of them. On the CPU a buffer should stay in
# the last-level cache, but matrix products of fewer rows than ROWS lose more than the cache gives.
CPU_CHUNK_BYTES = 8 * 2**20
CPU_LARGE_CHUNK_BYTES = 16 * 2**20
# Where `Right` leaves sums to torch if few chunks follow: few of them. N 3136, d 256: 55.5 ms, not 60.4.
CPU_CHUNK_BYTES_HALF_WIDTH = 20 * 2**20
ROWS = 256
# Multiplications of one matrix from which oneDNN, where its units have half the width, is faster than MKL for
# a batch: 8 x 784 x 784 x 512 take 59.9 ms and 54.8, 8 x 3136 x 784 x 256 111 and 115.
HALF_WIDTH_PRODUCT = 2**29
DEVICE_CHUNK_BYTES = 256 * 2**20

# An error of a logit is a relative error of its weight. Cutting the sum over d for it halves the error of y
# (d = 512, 3136 keys: 2.8e-6 against 1.5e-6) and costs passes over the chunk, cheap where the cache has room.
LONGEST_SUM = 128
LONGEST_SUM_LARGE_CHUNK = 256

# Weights below 4e-18 (float64: 1e-87) are taken as zero. Even a million of them are far below the rounding of
# any sum, but their products with gradients would be denormal numbers, which slow a CPU's matrix products
# many times over: a trained network's backward pass took 225 ms with them and 76 without. Where no backward
# pass follows they stay: the products of a forward pass are added to larger numbers at once.
TOO_SMALL = {torch.float32: 4e-18, torch.float64: 1e-87}

Wanted = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _cpu_chunk_bytes() -> int:
    return CPU_CHUNK_BYTES_HALF_WIDTH if has_half_width() else CPU_CHUNK_BYTES


def chunk_bytes(keys: int, like: Tensor, memory_budget: int | None) -> int:
    """What one of two buffers may take; a budget of 0 means no more than is needed to be fast."""
    row_bytes = keys * like.element_size()
    if like.device.type == "cuda":
        usual = DEVICE_CHUNK_BYTES
    else:
        usual = max(_cpu_chunk_bytes(), min(CPU_LARGE_CHUNK_BYTES, ROWS * row_bytes))
    return min(usual, memory_budget // 2) if memory_budget else usual


def chunks(
    batch: int, queries: int, row_bytes: int, chunk_bytes: int, *, single: bool = False
) -> Iterator[tuple[slice, slice]]:
    """Batch and query slices that cover everything, each with at most `chunk_bytes` of weights (or one row).

    >>> [(b.start, b.stop, q.start, q.stop) for b, q in chunks(2, 5, row_bytes=10, chunk_bytes=30)]
    [(0, 1, 0, 3), (0, 1, 3, 5), (1, 2, 0, 3), (1, 2, 3, 5)]

    single: one entry of the batch at a time.
    """
    rows = max(1, chunk_bytes // max(1, row_bytes))
    # Small matrices (one frame, one position across frames) go many at a time, large ones in equal parts.
    batch_step = 1 if single else max(1, rows // max(1, queries))
    rows = -(-queries // -(-queries // rows)) if queries else 1
    for first in range(0, batch, batch_step):
        for row in range(0, queries, rows):
            yield slice(first, min(first + batch_step, batch)), slice(row, min(row + rows, queries))


def _plan(theta: Tensor, keys: int, memory_budget: int | None) -> list[tuple[slice, slice]]:
    batch, queries, _ = theta.shape
    size = chunk_bytes(keys, theta, memory_budget)
    single = _goes_one_at_a_time(theta, keys)
    return list(chunks(batch, queries, keys * theta.element_size(), size, single=single))


def _goes_one_at_a_time(theta: Tensor, keys: int) -> bool:
    """Whether oneDNN multiplies, which takes no batches."""
    queries, d = theta.shape[1:]
    enough = not has_half_width() or queries * keys * d >= HALF_WIDTH_PRODUCT
    return enough and uses_onednn(theta, queries, keys, d)


class _Buffer:
    """One allocation, lent again and again as (batch, rows, keys); none where products bring their own."""

    def __init__(self, theta: Tensor, keys: int) -> None:
        self._like, self._keys = theta, keys
        self._lends = not _goes_one_at_a_time(theta, keys)
        self._flat: Tensor | None = None

    def take(self, some: slice, rows: slice) -> Tensor | None:
        if not self._lends:
            return None
        batch, count = some.stop - some.start, rows.stop - rows.start
        size = batch * count * self._keys
        if self._flat is None:  # the first chunk is the largest
            self._flat = scratch((size,), self._like)
        return self._flat[:size].view(batch, count, self._keys)


def _weights(logits: Tensor, p: Tensor, *, clean: bool = True) -> Tensor:
    """The rows p of these logits, in `p`, which may be the logits' own memory."""
    torch.softmax(logits, dim=2, out=p)
    if clean and p.device.type == "cpu":
        torch.threshold_(p, TOO_SMALL[p.dtype], 0.0)
    return p


class _Rights:
    """What the chunks of a plan are multiplied with, the same for all of them."""

    def __init__(self, plan: list[tuple[slice, slice]]) -> None:
        self._rows = max((rows.stop - rows.start for _, rows in plan), default=0)
        self._uses = sum(some == plan[0][0] for some, _ in plan)

    def of_logits(self, phi: Tensor) -> Right:
        fits_twice = self._rows * phi.shape[1] * phi.element_size() <= _cpu_chunk_bytes()
        longest = LONGEST_SUM if fits_twice else LONGEST_SUM_LARGE_CHUNK
        return Right(phi, self._rows, self._uses, longest)

    def of_others(self, right: Tensor) -> Right:
        return Right(right, self._rows, self._uses)


def forward(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    scale: float,
    *,
    keep: bool,
    memory_budget: int | None,
    for_backward: bool = True,
) -> tuple[Tensor, Tensor]:
    """Y (batch, queries, channels), and p (batch, queries, keys) if it is to be kept, else an empty tensor.

    >>> theta, phi, g = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    >>> y, p = forward(theta, phi, g, 1.0, keep=True, memory_budget=None)
    >>> torch.allclose(y, p @ g), bool((p.sum(dim=2) - 1).abs().max() < 1e-6)
    (True, True)
    """
    batch, queries, keys = theta.shape[0], theta.shape[1], phi.shape[1]
    y = _empty_like(g, queries)
    kept = scratch((batch, queries, keys), theta) if keep else theta.new_empty(0)
    buffer = _Buffer(theta, keys)
    theta = theta if scale == 1 else theta * scale
    plan = _plan(theta, keys, memory_budget)
    rights = _Rights(plan)
    for_logits, for_y = rights.of_logits(phi), rights.of_others(g.transpose(1, 2))
    for some, rows in plan:
        place = kept[some, rows] if keep else None
        lent = buffer.take(some, rows) if place is None else place
        logits = for_logits.product(some, theta[some, rows], lent)
        p = _weights(logits, logits if place is None else place, clean=keep or for_backward)
        y = _put(for_y, some, p, y, rows)
    return y, kept


def backward(
    dy: Tensor,
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    scale: float,
    kept: Tensor | None,
    wanted: Wanted,
    *,
    memory_budget: int | None,
) -> Gradients:
    """The gradients of theta, phi and g that are wanted, from dy (batch, queries, channels)."""
    keys = phi.shape[1]
    dtheta = _empty_like(theta, theta.shape[1]) if wanted[0] else None
    dphi = SumOfProducts(phi) if wanted[1] else None
    dg = SumOfProducts(g) if wanted[2] else None
    first, second = _Buffer(theta, keys), _Buffer(theta, keys)
    theta = theta if scale == 1 else theta * scale
    plan = _plan(theta, keys, memory_budget)
    rights = _Rights(plan)
    for_logits, for_dl = rights.of_logits(phi), rights.of_others(g)
    for_dtheta = rights.of_others(phi.transpose(1, 2))
    for some, rows in plan:
        if kept is not None:
            p = kept[some, rows]
        else:
            logits = for_logits.product(some, theta[some, rows], first.take(some, rows))
            p = _weights(logits, logits)
        if dg is not None:
            dg.add(some, p, dy[some, rows])
        if dtheta is None and dphi is None:
            continue
        dl = for_dl.product(some, dy[some, rows], second.take(some, rows))
        torch.ops.aten._softmax_backward_data.out(dl, p, 2, dl.dtype, grad_input=dl)
        if dtheta is not None:
            dtheta = _put(for_dtheta, some, dl, dtheta, rows)
        if dphi is not None:
            dphi.add(some, dl, theta[some, rows])
    if dtheta is not None and scale != 1:
        dtheta.mul_(scale)
    return dtheta, None if dphi is None else dphi.result(), None if dg is None else dg.result()


def _empty_like(x: Tensor, positions: int) -> Tensor:
    """(batch, positions, channels), laid out in memory as x is."""
    batch, _, channels = x.shape
    if is_transposed(x):
        return x.new_empty(batch, channels, positions).transpose(1, 2)
    return x.new_empty(batch, positions, channels)


def _put(right: Right, some: slice, left: Tensor, whole: Tensor, rows: slice) -> Tensor:
    """`whole` with the product with a left matrix at [some, rows]; the product itself where that is all."""
    target = whole[some, rows]
    is_all = target.shape == whole.shape
    if is_transposed(whole) and not right.rearranges:
        made = right.transposed_product(some, left)
    else:
        made = right.product(some, left, None if is_all else target)
    if is_all:
        return made
    if made is not target:
        target.copy_(made)
    return whole
