"""The one place where the benchmarks call the operators and the block that they measure."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nonlocal_nn import NonLocalBlock, functional

KEEP_NOTHING = 0
KEEP_ALL = 1 << 50


def gaussian(theta: Tensor, phi: Tensor, g: Tensor, memory_budget: int | None) -> Tensor:
    """The softmaxes. `memory_budget` bytes may be kept for the backward pass; None is the default."""
    return functional.gaussian(theta, phi, g, memory_budget=memory_budget)


def dot_product(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Needs no budget: it has no queries x keys matrix."""
    return functional.dot_product(theta, phi, g)


def concatenation(theta: Tensor, phi: Tensor, w_f: Tensor, g: Tensor) -> Tensor:
    """From the same inputs as the other forms: the scores a and b are part of the work."""
    d = theta.shape[2]
    return functional.concatenation(theta @ w_f[:d], phi @ w_f[d:], g)


def concatenation_of_scores(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """As the operator takes them."""
    return functional.concatenation(a, b, g)


def block(memory_budget: int | None = None, **options: Any) -> NonLocalBlock:
    """A block with weights that make all of it matter; `options` are NonLocalBlock's."""
    return NonLocalBlock(**options, memory_budget=memory_budget)
