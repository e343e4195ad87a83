"""What is drawn of a capture, as one value; without torch or numpy, so that `ExplainConfig` can read it.

>>> view = View(query="centre", show="both")
>>> view.override(arrows=5, query=(4, 24, 20))
View(block=None, query=(4, 24, 20), frames=None, arrows=5, show='both')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

QueryLike = str | Sequence[float]
Show = Literal["arrows", "heat", "both"]

QUERY = "strongest"
ARROWS = 20  # as in the paper's Fig. 3
SHOW: Show = "arrows"


@dataclass(frozen=True)
class View:
    """Which block is asked at which position, and how the answer is drawn.

    Nothing is checked here: a block, query or frame exists in one capture and not in another, and what draws
    or asks refuses it.

    Attributes:
        block: its name, or that of a layer of self-attention for all its heads; None: the last one; "all":
            all of them (a row of the figure for each).
        query: (frame, row, column) in frames and pixels of the clip, (row, column) of an image, "centre",
            "strongest" (the position that the block changes most) or "grid" ("grid:2x3").
        frames: how many are shown in a figure, spread evenly, or which ones (numbers in the clip, from 0);
            None: six, or all where there are no more than eight.
        arrows: how many of the largest weights are drawn.
        show: "arrows", "heat" (all weights, as colours over the frames) or "both".
    """

    block: str | None = None
    query: QueryLike = QUERY
    frames: int | Sequence[int] | None = None
    arrows: int = ARROWS
    show: Show = SHOW

    def override(
        self,
        block: str | None = None,
        query: QueryLike | None = None,
        frames: int | Sequence[int] | None = None,
        arrows: int | None = None,
        show: Show | None = None,
    ) -> View:
        """The view with what is given here; None leaves what was."""
        return View(
            self.block if block is None else block,
            self.query if query is None else query,
            self.frames if frames is None else frames,
            self.arrows if arrows is None else arrows,
            self.show if show is None else show,
        )
