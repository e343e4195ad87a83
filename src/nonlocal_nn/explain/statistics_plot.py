"""The plot of attention statistics: one panel a measure, one column a block, one dot a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nonlocal_nn.explain.draw.overlay import NEGATIVE, POSITIVE, QUIET, style
from nonlocal_nn.explain.statistics import BlockMeasures, average

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("space_pixels", "distance in space", "pixels", 1.0),
    ("time_frames", "distance in time", "frames", 1.0),
    ("entropy_bits", "entropy of the weights", "bits", 1.0),
    ("outside_frame", "weight outside the own frame", "%", 100.0),
)


def plot(measures: Sequence[BlockMeasures], title: str = "") -> Figure:
    """Four panels; a bar is the mean over the videos, a dashed line what equal weights would give.

    Raises ValueError where there is nothing to plot.
    """
    if not measures:
        raise ValueError("no video was measured, so there is nothing to plot")
    with style():
        return _plot(measures, title)


def _plot(measures: Sequence[BlockMeasures], title: str) -> Figure:
    from matplotlib.figure import Figure

    means = average(measures)
    names = [mean.block for mean in means]
    longest = max(map(len, names))
    width, below = max(11.0, 4 * (0.8 + 0.34 * len(names))), 0.5 + 0.045 * longest
    total = 2.8 + below
    figure = Figure(figsize=(width, total))
    figure.text(0.25 / width, 1 - 0.15 / total, title, va="top", fontsize=11, weight="bold")
    chance = np.random.default_rng(0)
    for number, (field, words, unit, factor) in enumerate(_PANELS):
        left = 0.6 + number * (width - 0.4) / 4
        place = (
            left / width,
            below / total,
            ((width - 0.4) / 4 - 0.75) / width,
            (total - below - 0.75) / total,
        )
        axes = figure.add_axes(place)
        axes.set_title(words, loc="left", fontsize=9, pad=6)
        for at, mean in enumerate(means):
            values = [factor * getattr(one.measured, field) for one in measures if one.block == mean.block]
            axes.bar([at], [factor * getattr(mean.measured, field)], width=0.62, color=POSITIVE, zorder=2)
            spread = chance.uniform(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
            axes.plot(at + spread, values, "o", ms=2.6, color="#333333", alpha=0.55, mew=0, zorder=3)
            even = factor * getattr(mean.even, field)
            axes.plot([at - 0.42, at + 0.42], [even, even], "--", color=NEGATIVE, linewidth=1.8, zorder=4)
        axes.set_xticks(range(len(names)), labels=names, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_ylabel(unit, fontsize=8, color=QUIET)
        axes.set_ylim(bottom=0)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.tick_params(labelsize=8, colors=QUIET, length=2)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.7, zorder=0)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color("#bbbbbb")
    videos = len({one.video for one in measures})
    note = (
        f"Bars: mean over {videos} video{'s' * (videos != 1)}; dots: each of them. Dashed: equal weights on "
        "all keys that a query sees. Weights count by their size."
    )
    figure.text(0.25 / width, 0.1 / total, note, fontsize=8, color=QUIET)
    return figure
