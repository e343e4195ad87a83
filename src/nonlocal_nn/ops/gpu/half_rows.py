"""The softmax average in half precision on a GPU: chunks of rows through cuBLAS, linear in the positions.

With l_ij = scale theta_i . phi_j, chunk by chunk of rows i, in float32 but for what goes into a product:

    m_i = max_j l_ij,   s_i = sum_j exp(l_ij - m_i),   y_i = (1/s_i) sum_j exp(l_ij - m_i) g_j

and, with p_ij = exp(l_ij - m_i) / s_i and delta_i = y_i . dy_i,

    dg_j   = sum_i p_ij dy_i                    dl_ij    = p_ij (dy_i . g_j - delta_i)
    dphi_j = scale sum_i dl_ij theta_i          dtheta_i = scale sum_j dl_ij phi_j

Products of half-precision numbers are exact in float32, and summed there. exp(l - m), p and dl are rounded to
the inputs' type before they go into one, as in every fused kernel, float16 after scaling by a power of two
(`gpu/softmax.py` says why). A chunk's float32 logits are written and read once: `gpu/row_programs.py` makes
of them, in one pass, all that the products need. Sums over chunks are float32.

>>> theta, phi, g = (torch.randn(1, n, 8, dtype=torch.bfloat16) for n in (5, 4, 4))
>>> y, statistics = forward(theta, phi, g, 0.5, None, chunk_bytes=32)  # two rows of 4 logits at a time
>>> exact = (0.5 * theta.double() @ phi.double().mT).softmax(dim=2) @ g.double()
>>> bool((y - exact).abs().max() < 0.02), tuple(statistics.shape)
(True, (1, 5, 2))
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nonlocal_nn.ops import dispatch
from nonlocal_nn.ops.cpu.workspace import ALWAYS_BYTES, usual_budget
from nonlocal_nn.ops.gpu.available import available, device_of
from nonlocal_nn.ops.gpu.scales import float16_gradient_scale, float16_weight_scale
from nonlocal_nn.ops.layout import empty_as
from nonlocal_nn.ops.rows import chunks

Wanted = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]

_BYTES_A_PAIR = 12  # of two maps of float32 and two of the inputs' type, in the backward pass
_BLOCK = 1024


def forward(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    scale: float,
    memory_budget: int | None,
    *,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Y (batch, queries, channels) in g's type, and each row's m and s, (batch, queries, 2) in float32.

    With s counts the power of two by which float16's weights are scaled.

    chunk_bytes: of float32 logits at a time; None: as `dispatch.THRESHOLDS` says.
    """
    batch, queries, _ = theta.shape
    y = empty_as(g, queries)
    statistics = torch.zeros(batch, queries, 2, dtype=torch.float32, device=theta.device)
    for some, rows in _chunks(theta, phi, memory_budget, chunk_bytes):
        logits = _product(theta[some, rows], phi[some].mT)
        of_rows = torch.empty(*logits.shape[:2], 2, dtype=torch.float32, device=theta.device)
        weights = _make_weights(logits, scale, of_rows, g.dtype)
        del logits
        torch.div(_product(weights, g[some]), of_rows[:, :, 1:], out=y[some, rows])
        statistics[some, rows] = of_rows
    return y, statistics


def backward(
    dy: Tensor,
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    y: Tensor,
    statistics: Tensor,
    scale: float,
    wanted: Wanted,
    memory_budget: int | None,
    *,
    chunk_bytes: int | None = None,
) -> Gradients:
    """The gradients of theta, phi and g that are wanted, from dy and what `forward` returned."""
    dtheta = empty_as(theta, theta.shape[1]) if wanted[0] else None
    dphi, dg = (
        torch.zeros_like(x, dtype=torch.float32) if want else None
        for x, want in zip((phi, g), wanted[1:], strict=True)
    )
    if not theta.shape[0] * theta.shape[1]:  # no query: nothing depends on the keys
        return dtheta, None if dphi is None else dphi.to(g.dtype), None if dg is None else dg.to(g.dtype)
    weight_scale, gradient_scale = float16_weight_scale(g.dtype), float16_gradient_scale(dy, g)
    back = scale / gradient_scale
    delta = (y.float() * dy).sum(dim=2, keepdim=True)
    for some, rows in _chunks(theta, phi, memory_budget, chunk_bytes):
        logits = _product(theta[some, rows], phi[some].mT)
        dp = logits if dtheta is None and dphi is None else _product(dy[some, rows], g[some].mT)
        weights = None if dg is None else torch.empty_like(logits, dtype=g.dtype)
        dl = None if dp is logits else torch.empty_like(logits, dtype=g.dtype)
        of_rows = torch.cat((statistics[some, rows], delta[some, rows]), dim=2)
        _make_gradients(logits, dp, scale, of_rows, gradient_scale, weights, dl)
        del logits, dp
        if dg is not None and weights is not None:
            _add_product(dg[some], weights.mT, dy[some, rows])
        if dtheta is not None and dl is not None:
            torch.mul(_product(dl, phi[some]), back, out=dtheta[some, rows])
        if dphi is not None and dl is not None:
            _add_product(dphi[some], dl.mT, theta[some, rows])
    return (
        dtheta,
        None if dphi is None else dphi.mul_(back).to(phi.dtype),
        None if dg is None else dg.div_(weight_scale).to(g.dtype),
    )


def _chunks(
    theta: Tensor, phi: Tensor, memory_budget: int | None, chunk_bytes: int | None
) -> Iterator[tuple[slice, slice]]:
    batch, queries, _ = theta.shape
    most = dispatch.THRESHOLDS.gpu_half_chunk_bytes if chunk_bytes is None else chunk_bytes
    budget = memory_budget or max(ALWAYS_BYTES, usual_budget(theta.device))
    most = min(most, 4 * budget // _BYTES_A_PAIR)
    return chunks(batch, queries, 4 * phi.shape[1], most)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """In float32; torch has such a product on GPUs alone, elsewhere the same numbers come slower."""
    if left.device.type == "cuda":
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.device.type == "cuda":
        torch.baddbmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.baddbmm_(left.float(), right.float())


# --- what is between the products ---


def _make_weights(logits: Tensor, scale: float, of_rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns exp(scale logits - m), times float16's scale; `of_rows` gets m, and s times that scale."""
    factor = float16_weight_scale(dtype)
    if not available(logits.device):
        scaled = logits * scale
        maximum = scaled.amax(dim=2, keepdim=True)
        made = scaled.sub_(maximum).exp_().mul_(factor)
        of_rows[:, :, :1], of_rows[:, :, 1:] = maximum, made.sum(dim=2, keepdim=True)
        return made.to(dtype)
    from nonlocal_nn.ops.gpu import row_programs

    weights = torch.empty_like(logits, dtype=dtype)
    with device_of(logits):
        row_programs.weights[(logits.shape[0] * logits.shape[1],)](
            logits, weights, of_rows, logits.shape[2], scale, FACTOR=factor, BLOCK=_BLOCK, num_warps=4
        )
    return weights


def _make_gradients(
    logits: Tensor,
    dp: Tensor,
    scale: float,
    of_rows: Tensor,
    gradient_scale: Tensor,
    weights: Tensor | None,
    dl: Tensor | None,
) -> None:
    """Fills p, times float16's scale, into `weights`, and p (dp - delta) gradient_scale into `dl`.

    of_rows: m, s times float16's scale, delta.
    """
    either = weights if dl is None else dl
    assert either is not None, "one of them is asked for"
    factor = float16_weight_scale(either.dtype)
    if not available(logits.device):
        maximum, total, delta = (of_rows[:, :, n : n + 1] for n in range(3))
        p = (logits * scale).sub_(maximum).exp_().mul_(factor).div_(total)
        if weights is not None:
            torch.mul(p, factor, out=weights)
        if dl is not None:
            torch.mul(p.mul_(dp - delta), gradient_scale, out=dl)
        return
    from nonlocal_nn.ops.gpu import row_programs

    rows, keys = logits.shape[0] * logits.shape[1], logits.shape[2]
    blocks = -(-keys // _BLOCK)
    with device_of(logits):
        row_programs.gradients[(rows * blocks,)](
            logits,
            dp,
            of_rows,
            gradient_scale,
            either if weights is None else weights,
            either if dl is None else dl,
            keys,
            blocks,
            scale,
            FACTOR=factor,
            WEIGHTS=weights is not None,
            GRADIENTS=dl is not None,
            BLOCK=_BLOCK,
            num_warps=4,
        )
