"""Equations 1 to 5 of the paper as they are written, with all of f in memory: the oracle of every test.

    y_i = 1 / C(x) sum_j f(x_i, x_j) g(x_j)                                        (Eq. 1)

    gaussian         f = exp(theta_i . phi_j)              C = sum_j f             (Eqs. 2 and 3)
    dot_product      f = theta_i . phi_j                   C = N, the keys j       (Eq. 4)
    concatenation    f = ReLU(w_f . [theta_i, phi_j])      C = N                   (Eq. 5)

>>> import torch
>>> theta, phi, g = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
>>> torch.equal(gaussian(theta, phi, g), gaussian_affinity(theta, phi) @ g)
True

Eq. 2 has theta = phi = x. Concatenation takes the two halves of its product, a_i = theta_i . w_f[:d] and
b_j = phi_j . w_f[d:]. Every function raises a ValueError for shapes, dtypes or devices that do not fit.
"""

from __future__ import annotations

from torch import Tensor

from nonlocal_nn._typing import Float
from nonlocal_nn.ops.checks import check_embeddings, check_scores

Embedded = Float[Tensor, "batch query d"]
Keys = Float[Tensor, "batch key d"]
Values = Float[Tensor, "batch key channel"]
Weights = Float[Tensor, "batch query key"]
Average = Float[Tensor, "batch query channel"]


def gaussian_affinity(theta: Embedded, phi: Keys, scale: float = 1.0) -> Weights:
    """F / C with f = exp(scale theta_i . phi_j), C = sum_j f: a softmax over the keys.

    >>> import torch
    >>> gaussian_affinity(torch.randn(1, 5, 3), torch.randn(1, 4, 3)).sum(dim=2).allclose(torch.ones(1, 5))
    True
    """
    check_embeddings(theta, phi)
    return (scale * (theta @ phi.mT)).softmax(dim=2)


def dot_product_affinity(theta: Embedded, phi: Keys, scale: float = 1.0) -> Weights:
    """F / C with f = scale theta_i . phi_j, C = N.

    >>> import torch
    >>> dot_product_affinity(torch.ones(1, 1, 3), torch.ones(1, 2, 3))
    tensor([[[1.5000, 1.5000]]])
    """
    check_embeddings(theta, phi)
    return (theta * scale if scale != 1 else theta) @ phi.mT / phi.shape[1]


def concatenation_affinity(a: Float[Tensor, "batch query"], b: Float[Tensor, "batch key"]) -> Weights:
    """F / C with f = ReLU(a_i + b_j), C = N.

    >>> import torch
    >>> concatenation_affinity(torch.tensor([[1.0]]), torch.tensor([[3.0, -2.0]]))
    tensor([[[2., 0.]]])
    """
    check_scores(a, b)
    return (a[:, :, None] + b[:, None, :]).relu() / b.shape[1]


def gaussian(theta: Embedded, phi: Keys, g: Values, scale: float = 1.0) -> Average:
    """Eq. 1 with `gaussian_affinity`."""
    check_embeddings(theta, phi, g)
    return gaussian_affinity(theta, phi, scale) @ g


def dot_product(theta: Embedded, phi: Keys, g: Values) -> Average:
    """Eq. 1 with `dot_product_affinity`."""
    check_embeddings(theta, phi, g)
    return dot_product_affinity(theta, phi) @ g


def concatenation(a: Float[Tensor, "batch query"], b: Float[Tensor, "batch key"], g: Values) -> Average:
    """Eq. 1 with `concatenation_affinity`."""
    check_scores(a, b, g)
    return concatenation_affinity(a, b) @ g
