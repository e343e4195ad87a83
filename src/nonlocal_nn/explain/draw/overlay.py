"""What figures and films are drawn of: arrows, the mark of a query, colours over a frame, one style."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn.explain.links import Link
from nonlocal_nn.explain.queries import Query

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# Okabe and Ito's colours, told apart by every kind of colour vision.
POSITIVE, NEGATIVE, CENTRE = "#E69F00", "#56B4E9", "#D55E00"
_INK, QUIET = "#1a1a1a", "#5c5c5c"


@contextmanager
def style() -> Iterator[None]:
    """Our settings of matplotlib, whatever the user's are; ids in an SVG that are the same each time."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        **{"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.0},
        **{"svg.hashsalt": "nonlocal_nn", "svg.fonttype": "path", "pdf.fonttype": 42},
        **{"text.color": _INK, "axes.titlesize": 9.0, "path.simplify": False, "text.parse_math": False},
        **{"figure.facecolor": "white", "savefig.facecolor": "white", "image.interpolation": "antialiased"},
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


@dataclass(frozen=True)
class Arrows:
    """Arrows in the coordinates of a row of frames: `pitch` pixels from one frame to the next.

    The weight `most` gets the thickest arrow; None: the largest of those drawn.
    """

    axes: Axes
    frames: Sequence[int]
    pitch: float
    most: float | None = None

    def _place(self, frame: float, row: float, column: float) -> tuple[float, float]:
        return nearest_shown(frame, self.frames) * self.pitch + column, row

    def draw(self, query: Query, links: Sequence[Link]) -> None:
        """The query's mark and an arrow to each link, the largest on top."""
        from matplotlib.patches import FancyArrowPatch

        start = self._place(query.frame, query.row, query.column)
        flat = self.axes.get_ylim()[0] < 1  # a sequence: arrows along the line would hide each other
        for link in reversed(links):
            end = self._place(link.frame, link.row, link.column)
            colour = POSITIVE if link.weight > 0 else NEGATIVE
            width = line_width(link.weight, self.most or links[0].weight)
            if np.hypot(end[0] - start[0], end[1] - start[1]) < 0.02 * self.pitch:
                self.axes.plot(
                    *end,
                    "o",
                    ms=9 + 2 * width,
                    mfc="none",
                    mec=colour,
                    mew=width,
                    zorder=5,
                    path_effects=halo(width),
                )
                continue
            arrow = FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>,head_length=0.42,head_width=0.2",
                mutation_scale=6 + 3 * width,
                connectionstyle="arc3,rad=-0.45" if flat else "arc3,rad=-0.06",
                shrinkA=3.2,
                shrinkB=0,
                linewidth=width,
                color=colour,
                joinstyle="miter",
                capstyle="round",
                zorder=4,
                path_effects=halo(width),
                clip_on=False,
            )
            self.axes.add_patch(arrow)
        self.axes.plot(*start, "o", ms=7.5, mfc=CENTRE, mec="black", mew=2.6, zorder=6, clip_on=False)
        self.axes.plot(*start, "o", ms=7.5, mfc=CENTRE, mec="white", mew=1.3, zorder=7, clip_on=False)


def overlay(
    axes: Axes,
    picture: NDArray[np.uint8],
    weights: NDArray[np.float64],
    most: float,
    signed: bool,
    extent: tuple[float, float, float, float],
) -> AxesImage:
    """Weights (height, width) as colours over a picture, the stronger the larger; `most` is the strongest."""
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=-40, vmax=320, extent=extent, zorder=1)
    return axes.imshow(
        weights,
        cmap=_colours(signed),
        vmin=-most if signed else 0,
        vmax=most,
        extent=extent,
        alpha=0.9 * np.sqrt(np.minimum(np.abs(weights) / most, 1)),
        zorder=2,
    )


def _colours(signed: bool) -> Any:
    """From nothing to much; for weights of both signs, from blue to orange, as the arrows."""
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap

    if signed:
        return LinearSegmentedColormap.from_list(
            "signed", ["#08306b", NEGATIVE, "#dddddd", POSITIVE, "#7f2704"]
        )
    bright = mpl.colormaps["inferno"](np.linspace(0.25, 1, 256))
    return LinearSegmentedColormap.from_list("weights", bright)


def line_width(weight: float, largest_weight: float) -> float:
    """Points, from 0.7 to 3.2, in proportion to the weight."""
    return 0.7 + 2.5 * abs(weight) / abs(largest_weight)


def halo(width: float) -> list[Any]:
    """A dark rim, so that a line shows on bright and dark pictures."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width + 1.3, foreground="black", alpha=0.55), Normal()]


def nearest_shown(frame: float, shown: Sequence[int]) -> int:
    return int(np.argmin(np.abs(np.asarray(shown) - frame)))
