"""The softmax average a few query rows at a time, in one reused buffer that stays in the cache.

With l_ij = scale theta_i . phi_j and p_i = softmax_j(l_ij), chunk by chunk of rows i:

    y_i = sum_j p_ij g_j

and, with dy_i the gradient of y_i,

    dg_j     = sum_i p_ij dy_i
    dl_ij    = p_ij (dy_i . g_j - sum_k p_ik dy_i . g_k)
    dtheta_i = scale sum_j dl_ij phi_j,      dphi_j = scale sum_i dl_ij theta_i

The backward pass uses p where it was kept, which costs four matrix products, or makes it again, five. Between
the products a row is touched twice: by torch's softmax, which finds the maximum, exponentiates and sums while
the row is in the nearest cache, and to set to zero what is too small, see `SMALLEST_WEIGHT`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nonlocal_nn.ops import dispatch
from nonlocal_nn.ops.cpu.gemm import add_product, has_onednn, product, uses_onednn
from nonlocal_nn.ops.cpu.workspace import buffer
from nonlocal_nn.ops.layout import empty_as, is_transposed
from nonlocal_nn.ops.rows import chunk_bytes, chunks, made_again

# Weights below are taken as zero. Even a million of them are far below the rounding of any sum, but their
# products with gradients would be denormal numbers, which slow a CPU's matrix products many times over: a
# trained network's backward pass took 225 ms with them and 76 without. Where no backward pass follows they
# stay: the products of a forward pass are added to larger numbers at once.
SMALLEST_WEIGHT = {torch.float32: 4e-18, torch.float64: 1e-87}

Wanted = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class _Chunks:
    """The slices that a pass goes through, and buffers (batch, rows, keys) for them."""

    def __init__(self, theta: Tensor, keys: int, memory_budget: int | None) -> None:
        batch, queries, d = theta.shape
        self._like, self._keys = theta, keys
        # oneDNN takes no batches, and brings memory of its own.
        self._onednn = uses_onednn(theta, queries, keys, d)
        most = chunk_bytes(keys, theta, memory_budget, 2)
        row_bytes = keys * theta.element_size()
        self.slices = list(chunks(batch, queries, row_bytes, most, single=self._onednn))
        self._flat: dict[int, Tensor] = {}

    def buffer(self, number: int, some: slice, rows: slice) -> Tensor | None:
        """Buffer `number`, the same memory for each chunk."""
        if self._onednn:
            return None
        shape = (some.stop - some.start, rows.stop - rows.start, self._keys)
        size = shape[0] * shape[1] * shape[2]
        if number not in self._flat:  # the first chunk is the largest
            self._flat[number] = buffer((size,), self._like)
        return self._flat[number][:size].view(shape)


def _weights(logits: Tensor, p: Tensor, *, clean: bool) -> Tensor:
    """The rows p of these logits, in `p`, which may be the logits' own memory."""
    torch.softmax(logits, dim=2, out=p)
    if clean and p.device.type == "cpu":
        torch.threshold_(p, SMALLEST_WEIGHT[p.dtype], 0.0)
    return p


def _logits(theta: Tensor, phi: Tensor, out: Tensor | None) -> Tensor:
    return product(theta, phi, out, longest_sum=dispatch.THRESHOLDS.onednn_longest_sum)


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
    y = empty_as(g, queries)
    kept = buffer((batch, queries, keys), theta) if keep else theta.new_empty(0)
    theta = theta if scale == 1 else theta * scale
    plan = _Chunks(theta, keys, memory_budget)
    for some, rows in plan.slices:
        place = kept[some, rows] if keep else plan.buffer(0, some, rows)
        logits = _logits(theta[some, rows], phi[some], place)
        p = _weights(logits, place if keep and place is not None else logits, clean=keep or for_backward)
        y = _stored(y, some, rows, p, g[some])
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
    dtheta = empty_as(theta, theta.shape[1]) if wanted[0] else None
    dphi = _sum_like(phi) if wanted[1] else None
    dg = _sum_like(g) if wanted[2] else None
    theta = theta if scale == 1 else theta * scale
    plan = _Chunks(theta, phi.shape[1], memory_budget)
    if not plan.slices:  # no query: nothing depends on the keys
        return dtheta, None if dphi is None else dphi.zero_(), None if dg is None else dg.zero_()
    for some, rows in plan.slices:
        if kept is not None:
            p = kept[some, rows]
        else:
            logits = _logits(theta[some, rows], phi[some], plan.buffer(0, some, rows))
            p = _weights(logits, logits, clean=True)
        if dg is not None:
            _add(dg[some], p, dy[some, rows], first=rows.start == 0)
        if dtheta is None and dphi is None:
            continue
        dl = product(dy[some, rows], g[some], plan.buffer(1, some, rows))
        if torch._C._len_torch_dispatch_stack():  # torch's modes of that kind do not know this `out`
            dl = torch.ops.aten._softmax_backward_data(dl, p, 2, dl.dtype)
        else:
            torch.ops.aten._softmax_backward_data.out(dl, p, 2, dl.dtype, grad_input=dl)
        if dtheta is not None:
            dtheta = _stored(dtheta, some, rows, dl, phi[some])
        if dphi is not None:
            _add(dphi[some], dl, theta[some, rows], first=rows.start == 0)
    if dtheta is not None and scale != 1:
        dtheta.mul_(scale)
    return dtheta, dphi, dg


def _stored(whole: Tensor, some: slice, rows: slice, left: Tensor, right: Tensor) -> Tensor:
    """`whole` with left (batch, rows, keys) times right (batch, keys, n) at [some, rows].

    The product itself where that is all.
    """
    turned = is_transposed(whole)
    made = product(right.mT, left).mT if turned else product(left, right.mT)
    if made.shape == whole.shape:
        return made
    whole[some, rows] = made
    return whole


def _sum_like(x: Tensor) -> Tensor:
    """Memory for sums over chunks: as maps lie, or as oneDNN reads the large matrix without a copy."""
    if has_onednn(x) and not is_transposed(x):
        batch, positions, channels = x.shape
        return x.new_empty(batch, channels, positions).mT
    return empty_as(x, x.shape[1])


def _add(target: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Target (batch, keys, n) += left (batch, rows, keys)^T right (batch, rows, n)."""
    if target.is_contiguous():
        add_product(target, left.mT, right.mT, first=first)
    else:
        add_product(target.mT, right.mT, left.mT, first=first)


def differentiable_gradients(dy: Tensor, theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Gradients:
    """The same gradients by operations that torch differentiates, any number of times; slower.

    >>> theta, phi, g = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    >>> dy, options = torch.randn(1, 5, 2), {"memory_budget": None}
    >>> ours = differentiable_gradients(dy, theta, phi, g, 0.5)
    >>> fast = backward(dy, theta, phi, g, 0.5, None, (True, True, True), **options)
    >>> all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, fast))
    True
    """
    batch, keys = phi.shape[:2]
    row_bytes = max(1, batch * keys * theta.element_size())
    step = max(1, dispatch.THRESHOLDS.cpu_chunk_bytes // row_bytes)

    parts = [
        made_again(_gradients_as_written, *some, phi, g, scale)
        for some in zip(torch.split(dy, step, dim=1), torch.split(theta, step, dim=1), strict=True)
    ]
    dtheta, dphi, dg = zip(*parts, strict=True)
    return torch.cat(dtheta, dim=1), sum(dphi), sum(dg)


def _gradients_as_written(
    dy: Tensor, theta: Tensor, phi: Tensor, g: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    p = (scale * (theta @ phi.mT)).softmax(dim=2)
    dp = dy @ g.mT
    dl = scale * p * (dp - (p * dp).sum(dim=2, keepdim=True))
    return dl @ phi, dl.mT @ theta, p.mT @ dy
