"""What lies over the frames of figures and films: arrows to the largest weights, heat of all, the query.

Also the colours and the style of everything that is drawn with matplotlib.

>>> import numpy as np
>>> from nonlocal_nn.explain.capture.geometry import GridGeometry
>>> keys = GridGeometry((1, 2, 2), (0, 1.5, 1.5), (1, 4, 4))
>>> targets = largest(np.array([0.125, 0.5, 0, 0.25]), keys, count=2)
>>> [(target.row, target.column, target.weight) for target in targets]
[(1.5, 5.5, 0.5), (5.5, 5.5, 0.25)]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn.explain.capture.block import HeadShape
from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.explain.queries import Query

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# Okabe and Ito's colours, told apart by every kind of colour vision.
POSITIVE, NEGATIVE, CENTRE = "#E69F00", "#56B4E9", "#D55E00"
_INK, QUIET = "#1a1a1a", "#5c5c5c"
_BROAD = 1e4  # pixels: an ellipse beyond every picture

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Target:
    """A key that an arrow goes to: where it lies in the input, and how much it weighs."""

    key: int
    frame: float
    row: float
    column: float
    weight: float


def largest(row: Floats, keys: GridGeometry, count: int) -> list[Target]:
    """The `count` keys whose weights are largest in size, largest first; none whose weight is zero.

    Equal weights come in the order of the keys, so that a picture is the same each time.
    """
    order = np.argsort(-np.abs(row), kind="stable")[:count]
    centres = keys.centres()
    return [
        Target(int(key), *(float(value) for value in (*centres[key], row[key])))
        for key in order
        if row[key] != 0
    ]


def heat(row: Floats, keys: GridGeometry, frame: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """The weights on one frame, (height, width) pixels, linear between the centres of the keys.

    Shown are the keys that lie nearest in time to the frame.
    """
    frames, height, width = keys.shape
    at = min(frames - 1, max(0, int(np.floor((frame - keys.first[0]) / keys.step[0] + 0.5))))
    grid = np.asarray(row, dtype=np.float64).reshape(frames, height, width)[at]
    _, rows, columns = keys.axis_centres()
    on_pixels: NDArray[np.float64] = _between(rows, size[0]) @ grid @ _between(columns, size[1]).T
    return on_pixels


def weight_by_frame(row: Floats, keys: GridGeometry) -> NDArray[np.float64]:
    """The share of the row's weight (in size) that lies on each frame of the keys, (frames,); sums to 1."""
    weights = np.abs(np.asarray(row, dtype=np.float64)).reshape(keys.shape[0], -1).sum(axis=1)
    total = weights.sum()
    shares: NDArray[np.float64] = weights / (total or 1.0)
    return shares


def _between(centres: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(size, centres): how much each centre counts at each pixel; constant beyond the outermost."""
    pixels = np.arange(size)
    return np.stack([np.interp(pixels, centres, one) for one in np.eye(len(centres))], axis=1)


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

    def draw(self, query: Query, targets: Sequence[Target]) -> None:
        """The query's mark and an arrow to each target, the largest on top."""
        from matplotlib.patches import FancyArrowPatch

        start = self._place(query.frame, query.row, query.column)
        flat = self.axes.get_ylim()[0] < 1  # a sequence: arrows along the line would hide each other
        for target in reversed(targets):
            end = self._place(target.frame, target.row, target.column)
            colour = POSITIVE if target.weight > 0 else NEGATIVE
            width = line_width(target.weight, self.most or targets[0].weight)
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

    def draw_head(self, query: Query, head: HeadShape) -> None:
        """Where a head looks by itself: an arrow to its centre, an ellipse of one sigma."""
        from matplotlib.patches import Ellipse, FancyArrowPatch

        start = self._place(query.frame, query.row, query.column)
        end = (start[0] + head.centre[1], start[1] + head.centre[0])
        values, vectors = np.linalg.eigh(np.nan_to_num(head.covariance[::-1, ::-1], posinf=_BROAD**2))
        sizes = 2 * np.sqrt(np.minimum(np.maximum(values, 0), _BROAD**2))
        angle = float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])))
        self.axes.add_patch(
            Ellipse(
                end, sizes[1], sizes[0], angle=angle, fill=False, edgecolor=CENTRE, linewidth=1.4, zorder=5
            )
        )
        if np.hypot(end[0] - start[0], end[1] - start[1]) < 0.02 * self.pitch:
            return
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=9,
                shrinkA=3.2,
                shrinkB=0,
                linewidth=1.4,
                linestyle="--",
                color=CENTRE,
                zorder=5,
                path_effects=halo(1.4),
                clip_on=False,
            )
        )


def draw_heat(
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
