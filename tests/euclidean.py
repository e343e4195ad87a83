"""A fifth pairwise function, f = exp(-|theta_i - phi_j|^2) with C = sum_j f: all of it in this file.

`docs/extending.md` explains it.
"""

from __future__ import annotations

import torch
from torch import Tensor

import nonlocal_nn as nl


def affinity(theta: Tensor, phi: Tensor) -> Tensor:
    distances = (theta[:, :, None] - phi[:, None]).square().sum(dim=3)
    return (-distances).softmax(dim=2)


def _as_gaussian(theta: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """-|theta - phi|^2 = (2 theta, -1) . (phi, |phi|^2) - |theta|^2, the last the same for all keys."""
    longer_theta = torch.cat([2 * theta, -torch.ones_like(theta[:, :, :1])], dim=2)
    return longer_theta, torch.cat([phi, phi.square().sum(dim=2, keepdim=True)], dim=2)


def average(theta: Tensor, phi: Tensor, g: Tensor, memory_budget: int | None) -> Tensor:
    return nl.functional.gaussian(*_as_gaussian(theta, phi), g, memory_budget=memory_budget)


def sharded(theta: Tensor, phi: Tensor, g: Tensor, group: object, memory_budget: int | None) -> Tensor:
    longer = _as_gaussian(theta, phi)
    return nl.functional.sharded.gaussian(*longer, g, group=group, memory_budget=memory_budget)


ALONE = nl.PairwiseFunction("euclidean", affinity, label="Euclidean", signed=False, sums_to_one=True)
FAST = nl.PairwiseFunction(
    "fast_euclidean", affinity, signed=False, sums_to_one=True, average=average, sharded=sharded
)
