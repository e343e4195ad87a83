"""The softmax average for many keys: tiles of queries x keys, so that no buffer holds a whole row.

The forward pass is torch's flash attention for CPUs, which gives y and lse_i = log sum_j exp(l_ij) with
l_ij = scale theta_i . phi_j. The backward pass goes over tiles. With

    p_ij  = exp(l_ij - lse_i)
    dl_ij = p_ij (dy_i . g_j - dy_i . y_i)

both brackets are one matrix product each, of vectors that are longer by one number:

    l_ij - lse_i            = (scale theta_i, -lse_i) . (phi_j, 1)
    dy_i . g_j - dy_i . y_i = (dy_i, -dy_i . y_i) . (g_j, 1)

so that a tile is touched only to exponentiate and to multiply. An lse next to logits of 1e4 is rounded to
1e-3, as the logits themselves are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nonlocal_nn.ops.cpu.gemm import add_product, product, uses_onednn
from nonlocal_nn.ops.cpu.softmax_rows import TOO_SMALL, Gradients, Wanted
from nonlocal_nn.ops.cpu.workspace import scratch

TILE = (512, 1024)  # queries x keys, two buffers of 2 MB in float32
# Below so many keys whole rows are faster; the flash attention multiplies through MKL.
FEW_KEYS = 4096
FEW_KEYS_ONEDNN = 24576
FEW_KEYS_UNEQUAL = 24576  # where d and channels differ: the attention wants equal widths, zeros fill them up
WIDE = 256  # above, too


def suits(theta: Tensor, phi: Tensor, g: Tensor) -> bool:
    """Whether tiles are the faster way, and one that there is.

    >>> one = torch.zeros(1, 5000, 8, dtype=torch.float64)
    >>> suits(one, one, one), suits(one[:, :9], one[:, :9], one[:, :9]), suits(one, one, one[:, :, :3])
    (True, False, False)
    """
    d, channels, queries, keys = theta.shape[2], g.shape[2], theta.shape[1], phi.shape[1]
    few = FEW_KEYS_ONEDNN if uses_onednn(theta, queries, keys, d) else FEW_KEYS
    if d != channels:
        few = max(few, FEW_KEYS_UNEQUAL)
    return (
        theta.device.type == "cpu"
        and theta.numel() > 0
        and channels > 0
        and max(d, channels) <= WIDE
        and keys >= few
        and queries >= TILE[0]
    )


def forward(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Y (batch, queries, channels) and lse (batch, queries, 1).

    >>> theta, phi = torch.randn(1, 5, 4), torch.randn(1, 6, 4)
    >>> y, lse = forward(theta, phi, phi, 1.0)
    >>> torch.allclose(lse[:, :, 0], (theta @ phi.transpose(1, 2)).logsumexp(dim=2), atol=1e-6)
    True
    """
    channels = g.shape[2]
    width = max(theta.shape[2], channels)
    one_head = (_widened(x, width).unsqueeze(1).contiguous() for x in (theta, phi, g))
    y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*one_head, 0.0, False, scale=scale)
    return y[:, 0, :, :channels].contiguous(), lse.reshape(theta.shape[0], theta.shape[1], 1).to(theta.dtype)


def backward(
    dy: Tensor,
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    y: Tensor,
    lse: Tensor,
    scale: float,
    wanted: Wanted,
) -> Gradients:
    """The gradients of theta, phi and g that are wanted."""
    dtheta = torch.zeros_like(theta, memory_format=torch.contiguous_format) if wanted[0] else None
    dphi = torch.zeros_like(phi.mT, memory_format=torch.contiguous_format) if wanted[1] else None
    dg = torch.zeros_like(g.mT, memory_format=torch.contiguous_format) if wanted[2] else None
    theta = theta * scale
    shifted_theta = torch.cat([theta, -lse], dim=2)
    shifted_dy = torch.cat([dy, -(dy * y).sum(dim=2, keepdim=True)], dim=2)
    phi_one, g_one = (torch.cat([x, torch.ones_like(x[:, :, :1])], dim=2) for x in (phi, g))
    buffers = [scratch((TILE[0] * TILE[1],), theta) for _ in range(2)]
    # lse_i is at least the largest logit, so this is p_ij < TOO_SMALL
    floor = torch.tensor(TOO_SMALL[theta.dtype], dtype=torch.float64).log().item()
    for item in (slice(number, number + 1) for number in range(theta.shape[0])):
        for keys in _parts(phi.shape[1], TILE[1]):
            for rows in _parts(theta.shape[1], TILE[0]):
                shape = (1, rows.stop - rows.start, keys.stop - keys.start)
                first, second = (buffer[: shape[1] * shape[2]].view(shape) for buffer in buffers)
                p = product(shifted_theta[item, rows], phi_one[item, keys], first)
                torch.threshold_(p, floor, float("-inf")).exp_()
                if dg is not None:
                    add_product(dg[item, :, keys], dy[item, rows].mT, p.mT)
                if dtheta is None and dphi is None:
                    continue
                dl = product(shifted_dy[item, rows], g_one[item, keys], second).mul_(p)
                if dtheta is not None:
                    add_product(dtheta[item, rows], dl, phi[item, keys].mT)
                if dphi is not None:
                    add_product(dphi[item, :, keys], theta[item, rows].mT, dl.mT)
    if dtheta is not None:
        dtheta.mul_(scale)
    return dtheta, None if dphi is None else dphi.mT, None if dg is None else dg.mT


def _widened(x: Tensor, width: int) -> Tensor:
    return x if x.shape[2] == width else F.pad(x, (0, width - x.shape[2]))


def _parts(count: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
