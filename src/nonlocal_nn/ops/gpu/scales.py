"""Powers of two that keep what is rounded to float16 inside of its normal range."""

from __future__ import annotations

import torch
from torch import Tensor


def float16_weight_scale(dtype: torch.dtype) -> float:
    """float16 is normal from 6e-5 on; among many keys probabilities are smaller. 2^15 times 1 still fits."""
    return 32768.0 if dtype == torch.float16 else 1.0


def float16_gradient_scale(dy: Tensor, g: Tensor) -> Tensor:
    """The power of two that takes abs(dl_ij) to 2^15 at most, for float16; else 1.

    It is at most 2 max abs(dy_i) max abs(g_j).
    """
    if g.dtype != torch.float16:
        return torch.ones((), dtype=torch.float32, device=g.device)
    longest = [torch.linalg.vector_norm(x, dim=2, dtype=torch.float32).amax() for x in (dy, g)]
    exponent = (14 - torch.log2(longest[0] * longest[1])).floor()
    return torch.exp2(exponent.clamp(-60, 60))  # a bound of 0 gives an infinite exponent
