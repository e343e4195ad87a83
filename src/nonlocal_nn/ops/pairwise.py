"""Eq. 1 of the paper, exact, without the queries x keys matrix: memory linear in N, forward and backward.

>>> import torch
>>> from nonlocal_nn.ops import reference
>>> theta, phi, g = torch.randn(2, 70, 8), torch.randn(2, 60, 8), torch.randn(2, 60, 5)
>>> torch.allclose(gaussian(theta, phi, g), reference.gaussian(theta, phi, g), atol=1e-6)
True

Same names, arguments and results as `nonlocal_nn.ops.reference`. Half precisions are summed in float32, also
under autocast.
"""

from __future__ import annotations

from torch import Tensor

from nonlocal_nn._typing import Float
from nonlocal_nn.ops.checks import check_embeddings, check_scores, without_autocast, working_dtype
from nonlocal_nn.ops.hinge_sums import HingeSum
from nonlocal_nn.ops.softmax_rows import SoftmaxAverage


def gaussian(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
    scale: float = 1.0,
) -> Float[Tensor, "batch query channel"]:
    """y_i = sum_j softmax_j(scale theta_i . phi_j) g_j (Eqs. 1 to 3), a few query rows at a time.

    >>> import torch
    >>> theta, phi = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    >>> gaussian(theta, phi, torch.ones(1, 4, 2)).allclose(torch.ones(1, 5, 2))  # weights sum to one
    True

    The backward pass recomputes the rows. Second derivatives raise NotImplementedError.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, with the offending values.
    """
    check_embeddings(theta, phi, g)
    with without_autocast(theta.device):
        y: Tensor = SoftmaxAverage.apply(theta, phi, g, scale)
    return y


def dot_product(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
) -> Float[Tensor, "batch query channel"]:
    """y_i = 1/N sum_j (theta_i . phi_j) g_j (Eqs. 1 and 4), the products in the cheaper order.

    >>> import torch
    >>> dot_product(torch.ones(1, 1, 3), torch.ones(1, 2, 3), torch.tensor([[[1.0], [3.0]]]))
    tensor([[[6.]]])

    theta (phi^T g) / N has no queries x keys matrix. (theta phi^T) g / N is used where it is less work, that
    is queries keys (d + channels) < (queries + keys) d channels. Its matrix is then smaller than the inputs,
    as queries keys < (queries + keys) min(d, channels). Memory is linear either way.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, with the offending values.
    """
    check_embeddings(theta, phi, g)
    queries, keys, d, channels = theta.shape[1], phi.shape[1], theta.shape[2], g.shape[2]
    dtype, work = theta.dtype, working_dtype(theta.dtype)
    with without_autocast(theta.device):
        theta, phi, g = theta.to(work), phi.to(work), g.to(work)
        if queries * keys * (d + channels) < (queries + keys) * d * channels:
            y = ((theta @ phi.transpose(1, 2)) / keys) @ g
        else:
            y = theta @ ((phi.transpose(1, 2) @ g) / keys)
        return y.to(dtype)


def concatenation(
    a: Float[Tensor, "batch query"],
    b: Float[Tensor, "batch key"],
    g: Float[Tensor, "batch key channel"],
) -> Float[Tensor, "batch query channel"]:
    """y_i = 1/N sum_j ReLU(a_i + b_j) g_j (Eqs. 1 and 5) by sorting b: O(N log N + N channels).

    >>> import torch
    >>> concatenation(torch.tensor([[1.0]]), torch.tensor([[3.0, -2.0]]), torch.tensor([[[1.0], [5.0]]]))
    tensor([[[2.]]])

    w_f . [theta_i, phi_j] of the paper is a_i + b_j with a_i = theta_i . w_f[:d] and b_j = phi_j . w_f[d:].

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, with the offending values.
    """
    check_scores(a, b, g)
    work = working_dtype(g.dtype)
    with without_autocast(g.device):
        total: Tensor = HingeSum.apply(a.to(work), b.to(work), g.to(work))
        return (total / b.shape[1]).to(g.dtype)
