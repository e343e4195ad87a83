"""What one block, or one head of attention, looks at in a clip: any row, computed when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.pairwise import PairwiseFunction


@dataclass(frozen=True)
class HeadShape:
    """Where a head looks, whatever the picture: a Gaussian around a place that moves with the query.

    Attributes:
        centre: (rows, columns) from the query, in input pixels.
        covariance: (2, 2), in input pixels squared; infinite for a head that looks everywhere alike.
    """

    centre: tuple[float, float]
    covariance: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True)
class BlockAffinity:
    """What one non-local block looks at in one clip.

    Attributes:
        name: as in `model.named_modules()`; "name (run 2)" for the second run of a block that runs twice.
        function: f and C of the block, an entry of the table of pairwise functions.
        span: "spacetime", "space" or "time": which positions a query sees.
        temporal_groups: runs of frames that see each other.
        queries: where the positions of the block's input lie in the clip.
        keys: where the positions that are looked at lie; fewer where the block subsamples.
        layer: of a head of self-attention, the layer's name; "" for a block.
        head: of a head that has one, where it looks by itself.
    """

    name: str
    function: PairwiseFunction
    span: str
    temporal_groups: int
    queries: GridGeometry
    keys: GridGeometry
    compute_rows: Callable[[NDArray[np.int64]], NDArray[np.float32]] = field(repr=False)
    responses: NDArray[np.float32] = field(repr=False)
    layer: str = ""
    head: HeadShape | None = None

    @property
    def pairwise(self) -> str:
        """The name of the function."""
        return self.function.name

    @property
    def sums_to_one(self) -> bool:
        """Whether rows are a softmax; otherwise weights are unnormalised, and some may be negative."""
        return self.function.sums_to_one

    def rows(self, positions: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Rows of f/C for these flat positions, (positions, keys): computed for these alone.

        Raises ValueError for a position that is not there.
        """
        wanted = np.asarray(positions, dtype=np.int64).reshape(-1)
        wrong = wanted[(wanted < 0) | (wanted >= self.queries.positions)]
        if len(wrong):
            raise ValueError(
                f"position {wrong[0]} is not one of the {self.queries.positions} of {self.name}: its map is "
                f"{' x '.join(map(str, self.queries.shape))}"
            )
        if not len(wanted):
            return np.zeros((0, self.keys.positions), np.float32)
        return self.compute_rows(wanted)

    def response(self) -> NDArray[np.float32]:
        """How strongly each position responds: the norm over channels of z - x, the block's change of it."""
        return self.responses
