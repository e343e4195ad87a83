"""Second derivatives of the softmax average: the derivative of its backward pass, some rows at a time.

The backward pass maps dy, theta, phi and g to dtheta, dphi and dg (see `softmax_rows`). Let a, b and c be the
gradients of these three. With

    dp_ij = dy_i . g_j                        delta_i = sum_j p_ij dp_ij      dl_ij = p_ij (dp_ij - delta_i)
    D_ij  = scale (a_i . phi_j + theta_i . b_j)                               mu_i  = sum_j p_ij D_ij
    E_ij  = p_ij (D_ij - mu_i)
    F_ij  = dp_ij (D_ij - mu_i) - delta_i D_ij + dy_i . c_j
    G_ij  = p_ij (F_ij - sum_k p_ik F_ik)

the gradients are

    of dy_i:    sum_j p_ij c_j + E_ij g_j                  of g_j:    sum_i E_ij dy_i
    of theta_i: scale sum_j dl_ij b_j + G_ij phi_j         of phi_j:  scale sum_i dl_ij a_i + G_ij theta_i
"""

from __future__ import annotations

import torch
from torch import Tensor

from nonlocal_nn.ops.cpu.softmax_rows import chunks

CHUNK_BYTES = 8 * 2**20  # of one of about eight matrices (rows, keys)


def backward(
    second: tuple[Tensor, Tensor, Tensor], dy: Tensor, theta: Tensor, phi: Tensor, g: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (dy, theta, phi, g) from `second`, those of (dtheta, dphi, dg)."""
    a, b, c = second
    into_dy, into_theta = torch.empty_like(dy), torch.empty_like(theta)
    into_phi, into_g = torch.zeros_like(phi), torch.zeros_like(g)
    row_bytes = phi.shape[1] * phi.element_size()
    for some, rows in chunks(theta.shape[0], theta.shape[1], row_bytes, CHUNK_BYTES):
        theta_i, dy_i, a_i = theta[some, rows], dy[some, rows], a[some, rows]
        phi_j, g_j, b_j, c_j = phi[some], g[some], b[some], c[some]
        p = (scale * (theta_i @ phi_j.mT)).softmax(dim=2)
        dp = dy_i @ g_j.mT
        delta = (p * dp).sum(dim=2, keepdim=True)
        dl = p * (dp - delta)
        D = scale * (a_i @ phi_j.mT + theta_i @ b_j.mT)
        centred = D - (p * D).sum(dim=2, keepdim=True)
        E = p * centred
        F = dp * centred - delta * D + dy_i @ c_j.mT
        G = p * (F - (p * F).sum(dim=2, keepdim=True))
        into_dy[some, rows] = p @ c_j + E @ g_j
        into_theta[some, rows] = scale * (dl @ b_j + G @ phi_j)
        into_phi[some] += scale * (dl.mT @ a_i + G.mT @ theta_i)
        into_g[some] += E.mT @ dy_i
    return into_dy, into_theta, into_phi, into_g
