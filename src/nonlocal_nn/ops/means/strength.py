"""How strong to filter: a rule for h and the patch by the noise, and the h of least Stein risk.

The rules were found on Set12 (3 to 5 of its images, 24 settings each), so expect a little less elsewhere.

>>> rule(15 / 255, channels=1), rule(30 / 255, channels=1), rule(50 / 255, channels=3)
((3, 0.8), (5, 0.7), (5, 0.5))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Up to this sigma (of a range of one): patch and h / sigma, for one channel and for colours together.
_RULE = (
    (20 / 255, (3, 0.8), (3, 0.7)),
    (35 / 255, (5, 0.7), (3, 0.6)),
    (float("inf"), (7, 0.55), (5, 0.5)),
)
# Blockwise with the largest other weight for a pixel itself; the best of 24 settings on Set12's 03 05 07. For
# colours it was not looked for.
_BLOCKWISE_RULE = (
    (35 / 255, (5, 0.6), (5, 0.6)),
    (float("inf"), (9, 0.4), (9, 0.4)),
)
_TRIED = (0.25, 0.35, 0.5, 0.7, 1.0)  # h / sigma, then between the best and its neighbours
_STEP = 1e-3  # of sigma


def rule(sigma: float, channels: int, *, blockwise: bool = False) -> tuple[int, float]:
    """Patch size, and h in units of sigma; sigma of an image whose range is one."""
    for most, grey, colour in _BLOCKWISE_RULE if blockwise else _RULE:
        if sigma <= most:
            return grey if channels == 1 else colour
    raise AssertionError


def h_of_least_risk(run: Callable[[Tensor, float], Tensor], x: Tensor, sigma: float) -> float:
    """The h whose estimated risk is least: seven h, two runs each.

    Stein's unbiased risk estimate for Gaussian noise of a known sigma, with the divergence of the filter by
    one random direction b (Ramani, Blu and Unser, 2008):

        risk(h) = mean (y - x)^2 - sigma^2 + 2 sigma^2 mean b (y(x + e b) - y(x)) / e

    run: the filter, of an image and an h. The direction is the same at every call.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    step = _STEP * sigma

    def risk(factor: float) -> float:
        h = factor * sigma
        y, moved = run(x, h), run(x + step * direction, h)
        divergence = (direction * (moved - y)).double().mean() / step
        return float((y - x).double().square().mean() + 2 * sigma**2 * divergence)

    risks = {factor: risk(factor) for factor in _TRIED}
    best = min(risks, key=risks.__getitem__)
    place = _TRIED.index(best)
    for other in _TRIED[max(0, place - 1) : place] + _TRIED[place + 1 : place + 2]:
        between = (best * other) ** 0.5
        risks[between] = risk(between)
    return min(risks, key=risks.__getitem__) * sigma
