"""The softmax average on a GPU, for any d and any number of channels, in memory linear in the positions.

>>> available(torch.device("meta"))
False

Flash attention keeps a whole row of theta, and of y, on the chip, and stops at 256 numbers a row. The paper's
res4 has 512, its gaussian form 1024. Here logits are summed over d a few columns at a time, and y is made for
up to 512 channels at a time. With l_ij = scale theta_i . phi_j:

    m_i = max_j l_ij,   s_i = sum_j exp(l_ij - m_i),   y_i = (1/s_i) sum_j exp(l_ij - m_i) g_j

and, with p_ij = exp(l_ij - m_i) / s_i and delta_i = y_i . dy_i,

    dg_j   = sum_i p_ij dy_i                    dl_ij    = p_ij (dy_i . g_j - delta_i)
    dphi_j = scale sum_i dl_ij theta_i          dtheta_i = scale sum_j dl_ij phi_j

m and s are kept apart, not as one log-sum-exp: next to logits of 1e4 the logarithm of s would be rounded to
1e-3. Sums are held in float32. The order in which programs run changes no bit.

These are plain functions without autograd. docs/gpu.md says what they cost and what has been measured.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nonlocal_nn._typing import Float
from nonlocal_nn.ops.checks import check_embeddings
from nonlocal_nn.ops.gpu.scales import float16_gradient_scale, float16_weight_scale
from nonlocal_nn.ops.gpu.tiles import DotPrecision, Tiles, blocks, default_tiles, groups_of_columns

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)  # compute capability: what Triton supports


def available(device: torch.device) -> bool:
    """Whether `forward` and `backward` run on tensors of this device.

    That is: Triton is installed, and the device is an NVIDIA GPU of compute capability 8.0 or higher, or the
    CPU while Triton interprets its programs (TRITON_INTERPRET=1: slow, for tests).
    """
    if not _triton_is_installed():
        return False
    if device.type == "cpu":
        return _is_interpreted()
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability(device) >= OLDEST
    )


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


@torch.no_grad()
def forward(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
    scale: float = 1.0,
    *,
    precision: DotPrecision | None = None,
    tiles: Tiles | None = None,
) -> tuple[
    Float[Tensor, "batch query channel"], Float[Tensor, "batch query 1"], Float[Tensor, "batch query 1"]
]:
    """The result y, in the dtype and the memory layout of g, and in float32 each row's m and s.

    Args:
        precision: how float32 numbers are multiplied: "ieee"; "tf32", rounded to 10 bits after the point; or
            "tf32x3", three such products for nearly all of the bits. None: as torch's matmul does now.
        tiles: for measurements and tests. None: `default_tiles`.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, or that this kernel does not take.
    """
    _check(theta, phi, g)
    (batch, queries, d), (_, keys, channels) = theta.shape, g.shape
    y = _empty_like(g, queries)
    row_max, row_sum = (
        torch.empty(batch, queries, 1, dtype=torch.float32, device=theta.device) for _ in range(2)
    )
    if batch == 0 or queries == 0:
        return y, row_max, row_sum
    theta, phi, g = (_readable(x) for x in (theta, phi, g))
    mode, compiled_mode = _modes(precision, theta)
    cut = tiles or default_tiles(theta.dtype, channels, mode)
    width, groups = groups_of_columns(channels, cut.width)

    from nonlocal_nn.ops.gpu import forward as triton_forward

    with device_of(theta):
        triton_forward.forward[(blocks(queries, cut.rows) * groups * batch,)](
            *_with_strides(theta, phi, g, y),
            row_max,
            row_sum,
            queries,
            keys,
            float(scale),
            D=d,
            CHANNELS=channels,
            GROUPS=groups,
            QUERIES=cut.rows,
            KEYS=cut.others,
            DEPTH=cut.depth,
            WIDTH=width,
            FLOAT16_SCALE=float16_weight_scale(theta.dtype),
            PRECISION=compiled_mode,
            num_warps=cut.warps,
            num_stages=cut.stages,
        )
    return y, row_max, row_sum


@torch.no_grad()
def backward(
    dy: Float[Tensor, "batch query channel"],
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
    y: Float[Tensor, "batch query channel"],
    row_max: Float[Tensor, "batch query 1"],
    row_sum: Float[Tensor, "batch query 1"],
    scale: float = 1.0,
    needs: tuple[bool, bool, bool] = (True, True, True),
    *,
    precision: DotPrecision | None = None,
    tiles: Tiles | None = None,
) -> tuple[
    Float[Tensor, "batch query d"] | None,
    Float[Tensor, "batch key d"] | None,
    Float[Tensor, "batch key channel"] | None,
]:
    """Gradients dtheta, dphi and dg from what `forward` took and returned; None where `needs` says False.

    Raises:
        ValueError: as `forward`, and for a dy, y, row_max or row_sum that does not belong to the others.
    """
    _check(theta, phi, g)
    (batch, queries, d), (_, keys, channels) = theta.shape, g.shape
    _check_results(dy, y, row_max, row_sum, theta.dtype, (batch, queries, channels))
    dtheta, dphi, dg = (
        torch.empty_like(x) if wanted else None for x, wanted in zip((theta, phi, g), needs, strict=True)
    )
    if batch == 0 or queries == 0:  # no query: nothing depends on the keys
        return dtheta, None if dphi is None else dphi.zero_(), None if dg is None else dg.zero_()
    mode, compiled_mode = _modes(precision, theta)
    theta, phi, g, dy, y = (_readable(x) for x in (theta, phi, g, dy, y))
    row_max, row_sum = row_max.contiguous(), row_sum.contiguous()
    delta = torch.empty_like(row_max)
    common = (*_with_strides(theta, phi, g, dy), row_max, row_sum, delta, float16_gradient_scale(dy, g))
    sizes = {"D": d, "CHANNELS": channels, "PRECISION": compiled_mode}

    from nonlocal_nn.ops.gpu import backward as triton_backward

    def make_delta() -> None:
        rows = 64
        triton_backward.row_products[(blocks(queries, rows) * batch,)](
            *_with_strides(y, dy), delta, queries, CHANNELS=channels, QUERIES=rows, DEPTH=64
        )

    def make_dtheta(dtheta: Tensor) -> None:
        cut = tiles or default_tiles(theta.dtype, d, mode)
        width, groups = groups_of_columns(d, cut.width)
        triton_backward.theta_gradient[(blocks(queries, cut.rows) * groups * batch,)](
            *common,
            *_with_strides(dtheta),
            queries,
            keys,
            float(scale),
            **sizes,
            GROUPS=groups,
            QUERIES=cut.rows,
            KEYS=cut.others,
            DEPTH=cut.depth,
            WIDTH=width,
            num_warps=cut.warps,
            num_stages=cut.stages,
        )

    def make_dphi_and_dg(dphi: Tensor | None, dg: Tensor | None) -> None:
        columns = (0 if dphi is None else d) + (0 if dg is None else channels)
        cut = tiles or default_tiles(theta.dtype, columns, mode)
        phi_width, phi_groups = (0, 1) if dphi is None else groups_of_columns(d, cut.width)
        g_width, g_groups = (0, 1) if dg is None else groups_of_columns(channels, cut.width)
        if phi_width and g_width and (phi_width + g_width > cut.width or phi_groups + g_groups > 2):
            # Too wide for one program's registers: the logits are made twice.
            make_dphi_and_dg(dphi, None)
            make_dphi_and_dg(None, dg)
            return
        groups = max(phi_groups, g_groups)
        triton_backward.key_gradients[(blocks(keys, cut.rows) * groups * batch,)](
            *common,
            # Of width 0 nothing is written.
            *_with_strides(phi if dphi is None else dphi, g if dg is None else dg),
            queries,
            keys,
            float(scale),
            **sizes,
            GROUPS=groups,
            QUERIES=cut.others,
            KEYS=cut.rows,
            DEPTH=cut.depth,
            PHI_WIDTH=phi_width,
            G_WIDTH=g_width,
            FLOAT16_SCALE=float16_weight_scale(theta.dtype),
            num_warps=cut.warps,
            num_stages=cut.stages,
        )

    with device_of(theta):
        if dtheta is not None or dphi is not None:
            make_delta()
        if dtheta is not None:
            make_dtheta(dtheta)
        if dphi is not None or dg is not None:
            make_dphi_and_dg(dphi, dg)
    return dtheta, dphi, dg


def _check(theta: Tensor, phi: Tensor, g: Tensor) -> None:
    check_embeddings(theta, phi, g)
    if theta.dtype not in DTYPES:
        raise ValueError(f"the Triton kernel takes float32, bfloat16 and float16, got {theta.dtype}")
    if not available(theta.device):
        raise ValueError(
            "the Triton kernel needs Triton and an NVIDIA GPU of compute capability 8.0 or higher, "
            f"got tensors on {theta.device}; use nonlocal_nn.functional"
        )


def _check_results(
    dy: Tensor, y: Tensor, row_max: Tensor, row_sum: Tensor, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    expected = {"dy": (dy, shape, dtype), "y": (y, shape, dtype)}
    statistics = {"row_max": row_max, "row_sum": row_sum}
    expected |= {name: (x, (*shape[:2], 1), torch.float32) for name, x in statistics.items()}
    for name, (x, wanted, kind) in expected.items():
        if tuple(x.shape) != wanted or x.dtype != kind:
            raise ValueError(
                f"{name} must be {kind} of shape {wanted} here, as forward gave it; "
                f"got {x.dtype} of shape {tuple(x.shape)}"
            )


def _modes(precision: DotPrecision | None, theta: Tensor) -> tuple[DotPrecision, str]:
    """How to multiply, and the name of that for the programs."""
    if precision is None:
        # What `allow_tf32`, `set_float32_matmul_precision` and their successors have come to: this reads all.
        precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return precision, "interpreted" if _is_interpreted() and theta.dtype == torch.bfloat16 else precision


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton starts programs on the current GPU: make that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _readable(x: Tensor) -> Tensor:
    """The tensor itself where a program can load 16 bytes at a time from it, else a copy, row by row.

    Channels first in memory is fine where the number of positions is a multiple of 16, as in most maps. In
    others no two rows of a tile would be aligned alike, and each number would have to be loaded alone.
    """
    channels_first = x.stride(1) == 1 and x.stride(2) % 16 == 0 and x.shape[1] % 16 == 0
    return x if x.stride(2) == 1 or channels_first else x.contiguous()


def _with_strides(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(part for tensor in tensors for part in (tensor, tensor.stride()))


def _empty_like(g: Tensor, queries: int) -> Tensor:
    """Memory for y: channels first in memory where g is, so that what follows needs no copy either."""
    batch, _, channels = g.shape
    if g.stride(1) == 1 and g.stride(2) != 1:
        return g.new_empty(batch, channels, queries).transpose(1, 2)
    return g.new_empty(batch, queries, channels)
