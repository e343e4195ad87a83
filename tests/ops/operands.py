"""Random inputs of the pairwise functions, and what they give."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ["gaussian", "dot_product", "concatenation"]


def inputs(
    name: str, batch: int, queries: int, keys: int, d: int, channels: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    if name == "concatenation":
        shapes: list[tuple[int, ...]] = [(batch, queries), (batch, keys), (batch, keys, channels)]
    else:
        shapes = [(batch, queries, d), (batch, keys, d), (batch, keys, channels)]
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def values_and_gradients(function, arguments: tuple[Tensor, ...], dy: Tensor) -> list[Tensor]:
    y = function(*arguments)
    return [y.detach(), *torch.autograd.grad(y, arguments, dy)]
