"""How (batch, positions, channels) lies in memory: by rows, or as maps do, channels before positions.

Results are laid out as g is, so that the layers that follow find maps as they expect them: batch norm's
backward pass over 8 x 1024 x 14x14 took 17 ms in the other order, and 1 in this.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_transposed(x: Tensor) -> bool:
    """Whether channels lie before positions.

    >>> is_transposed(torch.zeros(1, 4, 3).mT), is_transposed(torch.zeros(1, 3, 4))
    (True, False)
    """
    return x.mT.is_contiguous() and not x.is_contiguous()


def empty_as(x: Tensor, positions: int) -> Tensor:
    """Memory for (batch, positions, channels), laid out as x is.

    >>> empty_as(torch.zeros(1, 4, 3).mT, 5).stride()
    (20, 1, 5)
    """
    batch, _, channels = x.shape
    if is_transposed(x):
        return x.new_empty(batch, channels, positions).mT
    return x.new_empty(batch, positions, channels)


def product_as(g: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Left (batch, queries, k) times right (batch, k, channels), laid out as g is.

    >>> product_as(torch.zeros(1, 4, 3).mT, torch.ones(1, 2, 5), torch.ones(1, 5, 4)).stride()
    (8, 1, 2)
    """
    return torch.bmm(right.mT, left.mT).mT if is_transposed(g) else torch.bmm(left, right)
