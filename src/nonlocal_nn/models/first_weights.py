"""First weights as a function of (seed, layer name): two networks start alike in every layer they share.

Drawn one after the other from one source of random numbers, the layers after a non-local block would start
from other numbers than in the network without it, and a difference between the two would be partly one of
first weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

# The source of random numbers for a layer's weights, by the layer's name; None: torch's global one.
Draws = Callable[[str], torch.Generator | None]


def draws_by_layer(seed: int | None) -> Draws:
    """The source for every layer of a network; seed None: torch's global one for all.

    >>> def numbers(layer):
    ...     return torch.randn(3, generator=draws_by_layer(0)(layer))
    >>> torch.equal(numbers("conv1"), numbers("conv1")), torch.equal(numbers("conv1"), numbers("conv2"))
    (True, False)
    """

    def draw(layer: str) -> torch.Generator | None:
        if seed is None:
            return None
        digest = hashlib.sha256(f"{seed} {layer}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    return draw
