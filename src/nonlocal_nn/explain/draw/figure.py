"""The paper's Fig. 3: frames in a row, one position marked, arrows to the positions it looks at most.

>>> import tempfile, torch
>>> from nonlocal_nn.explain.capture.affinity import capture
>>> from nonlocal_nn.models.catalog import create_model
>>> captured = capture(create_model("c2d_tiny_nl2"), torch.randn(1, 3, 8, 48, 48))
>>> figure = draw(captured, View(query=(0, 24, 24), frames=4))
>>> save(figure, Path(tempfile.mkdtemp()) / "arrows.svg").name
'arrows.svg'

Drawn by matplotlib without a window and without its global state; the same capture gives the same file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn._files import write_whole
from nonlocal_nn.explain.capture.affinity import Capture
from nonlocal_nn.explain.capture.block import BlockAffinity
from nonlocal_nn.explain.draw.captions import block_line, short, title_line, weight_note, weight_text
from nonlocal_nn.explain.draw.overlay import (
    NEGATIVE,
    POSITIVE,
    QUIET,
    Arrows,
    draw_heat,
    halo,
    heat,
    largest,
    line_width,
    nearest_shown,
    style,
)
from nonlocal_nn.explain.queries import Query, asked_rows, chosen_frames
from nonlocal_nn.explain.view import Show, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

# Inches.
_MARGIN, _GAP, _HEAD, _CAPTION, _ROW_TITLE, _FOOT, _BAR = 0.2, 0.07, 0.62, 0.22, 0.26, 0.42, 0.75
_WIDTH = 13.0


def draw(captured: Capture, view: View) -> Figure:
    """The figure of one block, or of all of them, for one query or a grid of them; one row for each.

    Args:
        captured: from `capture`.
        view: what is drawn of it.

    Raises:
        ValueError: a block, query, frame or number that does not exist.
        ImportError: matplotlib is missing (it comes with nonlocal-nn[explain]).
    """
    if view.arrows < 1:
        raise ValueError(f"arrows = {view.arrows}: at least one must be drawn")
    if view.show not in get_args(Show):
        raise ValueError(f"show={view.show!r} does not exist; choose 'arrows', 'heat' or 'both'")
    rows = asked_rows(captured, view)
    numbers = chosen_frames(captured, view.frames, [query.frame for _, query in rows])
    with style():
        return _Sheet(captured, view, rows, numbers).draw()


def save(figure: Figure, path: str | Path, *, dots_per_inch: int = 160) -> Path:
    """Write the figure as PNG, SVG or PDF, by the file's ending; whole or not at all.

    Raises ValueError for another ending.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path.name}: a figure is written as {', '.join(SUFFIXES)}, not {path.suffix!r}")
    kind = path.suffix.lower()[1:]
    # What would name the day or the version of matplotlib is left out.
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with style():
        write_whole(path, lambda partial: _print(figure, partial, kind, metadata, dots_per_inch))
    return path


def _print(figure: Figure, path: Path, kind: str, metadata: dict[str, Any], dots_per_inch: int) -> None:
    with warnings.catch_warnings(), path.open("wb") as stream:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a title in a script the font lacks
        figure.savefig(stream, format=kind, dpi=dots_per_inch, metadata=metadata)


@dataclass(frozen=True)
class _Sheet:
    """The arithmetic of a page, in inches, and what is drawn on it."""

    captured: Capture
    view: View
    rows: Sequence[tuple[BlockAffinity, Query]]
    frames: Sequence[int]

    def draw(self) -> Figure:
        from matplotlib.figure import Figure

        height, width = self.captured.frames.shape[1:3]
        bar = _BAR if self.view.show != "arrows" else 0.0
        count = len(self.frames)
        inside = _WIDTH - 2 * _MARGIN - bar
        panel = min(4.2, (inside - (count - 1) * _GAP) / count, 4.5 * width / max(height, 0.2 * width))
        tall = max(panel * height / width, 0.5)
        page = max(7.6, count * panel + (count - 1) * _GAP + 2 * _MARGIN + bar)
        band = _ROW_TITLE + tall + _CAPTION
        total = _HEAD + len(self.rows) * band + (len(self.rows) - 1) * 0.1 + _FOOT
        figure = Figure(figsize=(page, total))

        def text(x: float, y: float, words: str, **how: Any) -> None:
            figure.text(x / page, 1 - y / total, words, va="top", **how)

        room = page - 2 * _MARGIN
        text(_MARGIN, 0.12, short(title_line(self.captured), room, 12), fontsize=12, weight="bold")
        text(_MARGIN, 0.37, short(self._what(), room, 9), fontsize=9, color=QUIET)
        left = _MARGIN
        for number, (block, query) in enumerate(self.rows):
            top = _HEAD + number * (band + 0.1)
            text(left, top + 0.05, short(self._row_title(block, query), room, 9), fontsize=9)
            span = count * panel + (count - 1) * _GAP
            place = (left / page, 1 - (top + _ROW_TITLE + tall) / total, span / page, tall / total)
            axes = figure.add_axes(place)
            row = block.rows([query.position])[0]
            targets = largest(row, block.keys, self.view.arrows)
            stretch = tall / panel * width / height
            colours = self._panels(axes, row, block, _GAP / panel * width, stretch)
            if colours is not None:
                edge = (left + span + 0.1) / page
                self._colour_bar(figure.add_axes((edge, place[1], 0.09 / page, place[3])), colours, block)
            arrows = Arrows(axes, self.frames, width * (1 + _GAP / panel))
            if block.head is not None:
                arrows.draw_head(query, block.head)
            arrows.draw(query, targets if self.view.show != "heat" else [])
            for at, frame in enumerate(self.frames):
                x = left + at * (panel + _GAP) + panel / 2
                words = self._frame_text(frame, panel)
                text(x, top + _ROW_TITLE + tall + 0.05, words, fontsize=8, color=QUIET, ha="center")
        self._foot(figure, page, total, room)
        return figure

    def _what(self) -> str:
        names = list(dict.fromkeys(block.name for block, _ in self.rows))
        return block_line(self.rows[0][0]) if len(names) == 1 else f"{len(names)} blocks: {', '.join(names)}"

    def _row_title(self, block: BlockAffinity, query: Query) -> str:
        several = len({block.name for block, _ in self.rows}) > 1
        frame = f"frame {query.frame:g}, " if len(self.captured.frames) > 1 else ""
        place = f"{frame}row {query.row:g}, column {query.column:g}"
        named = f"{block_line(block)}.  " if several else ""
        return f"{named}Query: {query.text} ({place})"

    def _frame_text(self, frame: int, panel: float) -> str:
        if len(self.captured.frames) == 1:
            return ""
        seconds = self.captured.frame_seconds
        if seconds is None:
            return f"frame {frame}"
        return f"{frame}: {seconds[frame]:.2f} s" if panel < 1.1 else f"frame {frame}, {seconds[frame]:.2f} s"

    def _panels(
        self, axes: Axes, row: NDArray[np.float32], block: BlockAffinity, gap: float, stretch: float
    ) -> Any:
        """The frames beside each other in one coordinate system, with heat over them if it is shown."""
        height, width = self.captured.frames.shape[1:3]
        shown = None
        maps = [heat(row, block.keys, frame, (height, width)) for frame in self.frames]
        most = max(float(np.abs(values).max()) for values in maps) or 1.0
        signed = not block.sums_to_one and float(row.min()) < 0
        for at, frame in enumerate(self.frames):
            x = at * (width + gap)
            extent = (x - 0.5, x + width - 0.5, height - 0.5, -0.5)
            axes.imshow(self.captured.frames[frame], extent=extent, zorder=0)
            if self.view.show != "arrows":
                shown = draw_heat(axes, self.captured.frames[frame], maps[at], most, signed, extent)
        axes.set_xlim(-0.5, (len(self.frames) - 1) * (width + gap) + width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        axes.set_aspect(stretch, adjustable="box")
        axes.axis("off")
        return shown

    def _colour_bar(self, place: Axes, colours: Any, block: BlockAffinity) -> None:
        from matplotlib.figure import Figure

        figure = place.figure
        assert isinstance(figure, Figure)
        bar = figure.colorbar(colours, cax=place)
        bar.solids.set_alpha(1.0) if bar.solids is not None else None
        low, high = colours.get_clim()
        marks = [low, 0.0, high] if low < 0 else [low, high / 2, high]
        bar.set_ticks(marks, labels=[weight_text(mark, block) for mark in marks])
        place.tick_params(labelsize=7.5, length=2, colors=QUIET)
        bar.outline.set_visible(False)

    def _foot(self, figure: Figure, page: float, total: float, room: float) -> None:
        """Samples of arrows with their weights, and what the weights are."""
        from matplotlib.lines import Line2D

        block, query = self.rows[0]
        row = block.rows([query.position])[0]
        targets = largest(row, block.keys, self.view.arrows)
        x, y = _MARGIN, _FOOT - 0.19
        if self.view.show != "heat" and targets and len(self.rows) == 1:
            weights = [targets[0].weight, targets[-1].weight] if len(targets) > 1 else [targets[0].weight]
            for weight in weights:
                width = line_width(weight, targets[0].weight)
                line = Line2D(
                    [x / page, (x + 0.32) / page],
                    [y / total] * 2,
                    color=POSITIVE if weight > 0 else NEGATIVE,
                    linewidth=width,
                    path_effects=halo(width),
                    solid_capstyle="butt",
                )
                figure.add_artist(line)
                label = weight_text(weight, block)
                figure.text((x + 0.4) / page, y / total, label, fontsize=8, color=QUIET, va="center")
                x += 0.4 + 0.075 * len(label) + 0.22
        note = weight_note(block, row, targets, len(self.rows), self.view.show)
        places = [query.frame for _, query in self.rows]
        if self.view.show != "heat":
            places += [target.frame for target in targets]
        if any(abs(self.frames[nearest_shown(place, self.frames)] - place) > 0.5 for place in places):
            note += " Positions between two shown frames are drawn on the nearer one."
        lines = _wrapped(note, room - (x - _MARGIN), 8)[:2]
        for number, line_text in enumerate(lines):
            at = (y + 0.075 * (len(lines) - 1) - 0.15 * number) / total
            figure.text(x / page, at, line_text, fontsize=8, color=QUIET, va="center")


def _wrapped(text: str, inches: float, points: float) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(20, int(inches / (0.0077 * points))))
