"""Powers of two that keep what `triton_softmax.py` rounds to float16 inside of float16's normal range.

>>> probability_lift(torch.float16), probability_lift(torch.bfloat16)
(32768.0, 1.0)
"""

from __future__ import annotations

import torch
from torch import Tensor


def probability_lift(dtype: torch.dtype) -> float:
    """float16 is normal from 6e-5 on; among many keys probabilities are smaller. 2^15 times 1 still fits."""
    return 32768.0 if dtype == torch.float16 else 1.0


def gradient_lift(dy: Tensor, g: Tensor) -> Tensor:
    """The power of two that takes |dl_ij| <= 2 max |dy_i| max |g_j| to 2^15 at most, for float16; else 1."""
    if g.dtype != torch.float16:
        return torch.ones((), dtype=torch.float32, device=g.device)
    longest = [torch.linalg.vector_norm(x, dim=2, dtype=torch.float32).amax() for x in (dy, g)]
    exponent = (14 - torch.log2(longest[0] * longest[1])).floor()
    return torch.exp2(exponent.clamp(-60, 60))  # a bound of 0 gives an infinite exponent
