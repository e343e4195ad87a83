"""Eq. 1 of the paper as it is written, y_i = 1/C(x) sum_j f(x_i, x_j) g(x_j), with all of f in memory.

>>> import torch
>>> theta, phi, g = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
>>> torch.equal(gaussian(theta, phi, g), gaussian_affinity(theta, phi) @ g)
True

This is the oracle that the fast forms in `nonlocal_nn.ops.pairwise` are tested against, and, given a few
chosen query rows, the way to look at f/C itself. Every function takes plain tensors:

    theta (batch, queries, d)   phi (batch, keys, d)   g (batch, keys, channels)
    a (batch, queries)          b (batch, keys)

A `mask` (queries, keys) names the keys that a query sees; the others get weight 0 and do not count in C(x).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nonlocal_nn._typing import Bool, Float
from nonlocal_nn.ops.checks import check_embeddings, check_scores


def gaussian_affinity(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    scale: float = 1.0,
    mask: Bool[Tensor, "query key"] | None = None,
) -> Float[Tensor, "batch query key"]:
    """Softmax over the keys: f = exp(scale theta_i . phi_j), C = sum_j f (Eqs. 2 and 3).

    >>> gaussian_affinity(torch.randn(1, 5, 3), torch.randn(1, 4, 3)).sum(dim=2).allclose(torch.ones(1, 5))
    True

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together.
    """
    check_embeddings(theta, phi)
    logits = scale * (theta @ phi.transpose(1, 2))
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(dim=-1)


def dot_product_affinity(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    mask: Bool[Tensor, "query key"] | None = None,
) -> Float[Tensor, "batch query key"]:
    """Products over N: f = theta_i . phi_j, C = N, the number of keys (Eq. 4).

    >>> dot_product_affinity(torch.ones(1, 1, 3), torch.ones(1, 2, 3))
    tensor([[[1.5000, 1.5000]]])

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together.
    """
    check_embeddings(theta, phi)
    return _over_key_count(theta @ phi.transpose(1, 2), mask)


def concatenation_affinity(
    a: Float[Tensor, "batch query"],
    b: Float[Tensor, "batch key"],
    mask: Bool[Tensor, "query key"] | None = None,
) -> Float[Tensor, "batch query key"]:
    """Rectified sums over N: f = ReLU(w_f . [theta_i, phi_j]) = ReLU(a_i + b_j), C = N (Eq. 5).

    a_i = theta_i . w_f[:d] and b_j = phi_j . w_f[d:] are the two halves of the product with the concatenated
    vector.

    >>> concatenation_affinity(torch.tensor([[1.0]]), torch.tensor([[3.0, -2.0]]))
    tensor([[[2., 0.]]])

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together.
    """
    check_scores(a, b)
    return _over_key_count((a[:, :, None] + b[:, None, :]).relu(), mask)


def _over_key_count(f: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return f / f.shape[2]
    return (f * mask) / mask.sum(dim=1, keepdim=True)


def gaussian(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
    scale: float = 1.0,
) -> Float[Tensor, "batch query channel"]:
    """y_i = sum_j softmax_j(scale theta_i . phi_j) g_j.

    >>> theta, phi = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    >>> gaussian(theta, phi, torch.ones(1, 4, 2)).allclose(torch.ones(1, 5, 2))
    True

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together.
    """
    check_embeddings(theta, phi, g)
    return gaussian_affinity(theta, phi, scale) @ g


def dot_product(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
) -> Float[Tensor, "batch query channel"]:
    """y_i = 1/N sum_j (theta_i . phi_j) g_j.

    >>> dot_product(torch.ones(1, 1, 3), torch.ones(1, 2, 3), torch.tensor([[[1.0], [3.0]]]))
    tensor([[[6.]]])

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together.
    """
    check_embeddings(theta, phi, g)
    return dot_product_affinity(theta, phi) @ g


def concatenation(
    a: Float[Tensor, "batch query"],
    b: Float[Tensor, "batch key"],
    g: Float[Tensor, "batch key channel"],
) -> Float[Tensor, "batch query channel"]:
    """y_i = 1/N sum_j ReLU(a_i + b_j) g_j.

    >>> concatenation(torch.tensor([[1.0]]), torch.tensor([[3.0, -2.0]]), torch.tensor([[[1.0], [5.0]]]))
    tensor([[[2.]]])

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together.
    """
    check_scores(a, b, g)
    return concatenation_affinity(a, b) @ g
