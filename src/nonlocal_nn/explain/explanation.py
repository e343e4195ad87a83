"""`nl.explain`: one clip through a network, then figures, films and a page of what its blocks looked at.

>>> import tempfile, torch
>>> from nonlocal_nn.models.catalog import create_model
>>> explanation = explain(create_model("c2d_tiny_nl2"), torch.randn(1, 3, 8, 48, 48), query="centre")
>>> explanation.save(Path(tempfile.mkdtemp()) / "arrows.png").name
'arrows.png'
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.explain.capture.affinity import Capture, capture
from nonlocal_nn.explain.draw import animation, figure
from nonlocal_nn.explain.draw.overlay import style
from nonlocal_nn.explain.queries import asked_rows
from nonlocal_nn.explain.view import ARROWS, QUERY, SHOW, QueryLike, Show, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_SUFFIXES = (".html", ".htm")
SUFFIXES = (*figure.SUFFIXES, *animation.SUFFIXES, *PAGE_SUFFIXES)


@dataclass(frozen=True)
class Explanation:
    """What `explain` gives: shows itself in a notebook, and is saved as a figure, a film or a page.

    Attributes:
        captured: the frames, the classes, and rows of f/C for any position of any block.
        view: what is drawn unless a call says otherwise.
    """

    captured: Capture
    view: View = field(default_factory=View)

    def figure(
        self,
        block: str | None = None,
        *,
        query: QueryLike | None = None,
        frames: int | Sequence[int] | None = None,
        arrows: int | None = None,
        show: Show | None = None,
    ) -> Figure:
        """The figure, as matplotlib has them; options as for `nonlocal_nn.explain.view.View`."""
        return figure.draw(self.captured, self.view.override(block, query, frames, arrows, show))

    def save(
        self,
        path: str | Path,
        block: str | None = None,
        *,
        query: QueryLike | None = None,
        frames: int | Sequence[int] | None = None,
        arrows: int | None = None,
        show: Show | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Write what the ending says: a figure (.png, .svg, .pdf), a film (.mp4, .gif) or a page (.html).

        The page shows every block and answers for every position, so the options do not concern it.
        `progress` is called with (done, all) while a film is drawn.
        Raises ValueError for another ending.
        """
        path = check_suffix(path)
        suffix = path.suffix.lower()
        if suffix in PAGE_SUFFIXES:
            from nonlocal_nn.explain.explorer.write import write_explorer

            return write_explorer(self.captured, path)
        view = self.view.override(block, query, frames, arrows, show)
        if suffix in animation.SUFFIXES:
            return animation.save_animation(self.captured, path, view, progress=progress)
        return figure.save(figure.draw(self.captured, view), path)

    def _repr_png_(self) -> bytes:
        """The figure, as a notebook shows it."""
        stream = io.BytesIO()
        with style():
            self.figure().savefig(stream, format="png", dpi=110, metadata={"Software": None})
        return stream.getvalue()

    def __repr__(self) -> str:
        frames, height, width = self.captured.frames.shape[:3]
        names = list(self.captured.blocks)
        listed = ", ".join(names if len(names) <= 5 else [*names[:2], "...", names[-1]])
        return (
            f"Explanation of {len(names)} block{'s' * (len(names) != 1)} ({listed}) in {frames} "
            f"frame{'s' * (frames != 1)} of {height} x {width}"
        )


def explain(
    model: nn.Module,
    clip: Tensor,
    *,
    block: str | None = None,
    query: QueryLike = QUERY,
    arrows: int = ARROWS,
    show: Show = SHOW,
    pictures: NDArray[np.uint8] | None = None,
    frame_seconds: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    title: str = "",
) -> Explanation:
    """Run `clip` through `model` and see what the non-local blocks relate; `nl.explain`.

    >>> import torch
    >>> import nonlocal_nn as nl
    >>> model = nl.insert_blocks(nn.Sequential(nn.Conv2d(3, 8, 4, stride=4)), after="0")
    >>> nl.explain(model, torch.rand(3, 64, 64), query=(20, 30))
    Explanation of 1 block (0.nonlocal_block) in 1 frame of 64 x 64

    In a notebook the result shows its figure; `.figure(...)` gives others, `.save("page.html")` a page one
    can click, `.save("film.gif")` a film; `.captured.blocks[name].rows(positions)` has the numbers.

    Args:
        model: any network with non-local blocks: ours, or one that had blocks inserted.
        clip: what the model takes, with or without a batch axis of one: (3, frames, height, width), an image
            (3, height, width), ...
        block, query, arrows, show: what is drawn, see `nonlocal_nn.explain.view.View`.
        pictures: the frames that the clip was made from, uint8 (frames, height, width, 3); None: made of the
            clip.
        frame_seconds: when each frame is shown.
        classes: names of the model's outputs; None: `model.classes`, or numbers.
        title: such as the video's name.

    Raises:
        ValueError: a model without non-local blocks, a block that does not exist (the nearest are named), a
            query outside the clip, a clip that is not one clip.
    """
    dims = {module.dims for module in model.modules() if isinstance(module, NonLocalBlock)}
    if dims and clip.dim() == max(dims) + 1:
        clip = clip[None]
    captured = capture(
        model, clip, frames=pictures, frame_seconds=frame_seconds, classes=classes, title=title
    )
    view = View(block=block, query=query, arrows=arrows, show=show)
    asked_rows(captured, view)  # refused here, not when the figure is drawn
    return Explanation(captured, view)


def check_suffix(path: str | Path) -> Path:
    """The path, if its ending is one we write.

    >>> check_suffix("arrows.jpeg")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: arrows.jpeg: cannot write '.jpeg'; the endings are .png, .svg, .pdf (figure), ...
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        what = repr(path.suffix) if path.suffix else "a file without an ending"
        raise ValueError(
            f"{path.name}: cannot write {what}; the endings are {', '.join(figure.SUFFIXES)} (figure), "
            f"{', '.join(animation.SUFFIXES)} (film) and {', '.join(PAGE_SUFFIXES)} (page one can click)"
        )
    return path


__all__ = ["SUFFIXES", "Explanation", "check_suffix", "explain"]
