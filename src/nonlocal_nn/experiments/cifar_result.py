"""What a run of `cifar.py` found, as plain data; no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

VERSION = 1  # raise when what a run does changes: results of an older version are made anew

SHARP = 2.0  # a spread from which on nearly all of a head's weight lies on one or two pixels
NEAR = 0.25  # pixels from a pixel, in both axes; chance gives a quarter


@dataclass(frozen=True)
class CifarRun:
    """One training.

    Attributes:
        accuracy: on the test images, percent.
        train_seconds: of wall time.
        centres: (row, column) of every head, by layer, at the start and after every epoch.
        spreads: the same for their spreads.
    """

    seed: int
    epochs: int
    accuracy: float
    train_seconds: float
    centres: list[list[list[tuple[float, float]]]]
    spreads: list[list[list[float]]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def distance(self, layer: int, epoch: int) -> float:
        """Of a layer's centres from the query, in the mean, in positions.

        >>> CifarRun(0, 1, 50.0, 1.0, [[[(3.0, 4.0), (0.0, 1.0)]]], [[[1.0, 1.0]]]).distance(0, 0)
        3.0
        """
        centres = self.centres[epoch][layer]
        return sum(math.hypot(*centre) for centre in centres) / len(centres)

    def sharp(self, layer: int, epoch: int = -1) -> tuple[int, int]:
        """Heads with a spread of `SHARP` or more, and how many of them stand on a pixel."""
        there = [
            centre
            for centre, spread in zip(self.centres[epoch][layer], self.spreads[epoch][layer], strict=True)
            if spread >= SHARP
        ]
        return len(there), sum(all(abs(at - round(at)) <= NEAR for at in centre) for centre in there)

    def near(self, layer: int, epoch: int = -1) -> int:
        """Heads, sharp or not, that stand on a pixel."""
        return sum(all(abs(at - round(at)) <= NEAR for at in centre) for centre in self.centres[epoch][layer])
