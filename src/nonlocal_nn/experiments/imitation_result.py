"""What a run of `imitation.py` found, as plain data; no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

VERSION = 1  # raise when what a run does changes: results of an older version are made anew


@dataclass(frozen=True)
class Imitation:
    """What one run found.

    Attributes:
        error: mean squared error over the mean square of the convolution, on new noise.
        kernel_error: the same of the kernel that the layer amounts to; of infinity where it is none.
        in_window: the least share of a head's weight that lies on the 3x3 pixels.
        on_pixel: heads whose centre is within a quarter of a pixel of a pixel, in both axes.
        moved: pixels that a centre moved, in the mean.
        resets: heads that got new first weights.
        first, last: centres of the heads at the start and the end, (row, column).
        spreads: at the end.
    """

    seed: int
    steps: int
    error: float
    kernel_error: float
    in_window: float
    on_pixel: int
    moved: float
    resets: int
    first: list[list[float]]
    last: list[list[float]]
    spreads: list[float]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
