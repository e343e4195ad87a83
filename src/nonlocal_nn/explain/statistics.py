"""How blocks look, over many clips: how far in space and time, how widely, how much beyond the own frame.

>>> import numpy as np
>>> from nonlocal_nn.explain.capture.geometry import GridGeometry
>>> grid = GridGeometry((2, 1, 2), (0, 0, 0), (1, 1, 8))
>>> row = np.array([[0.5, 0, 0, 0.5]])  # half at itself, half one frame later and 8 pixels to the right
>>> measure(row, np.array([0]), grid, grid)
Measures(space_pixels=4.0, time_frames=0.5, entropy_bits=1.0, outside_frame=0.5)

Weights count by their size; where a row does not sum to one (dot product, concatenation) it is divided by its
sum first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn._files import write_whole
from nonlocal_nn.explain.capture.affinity import Capture
from nonlocal_nn.explain.capture.block import BlockAffinity
from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.explain.draw.overlay import NEGATIVE, POSITIVE, QUIET, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS_AT_ONCE = 64  # so that memory stays in proportion to the keys
# Of the plot: measure, title, unit, factor.
_PANELS = (
    ("space_pixels", "distance in space", "pixels", 1.0),
    ("time_frames", "distance in time", "frames", 1.0),
    ("entropy_bits", "entropy of the weights", "bits", 1.0),
    ("outside_frame", "weight outside the own frame", "%", 100.0),
)


@dataclass(frozen=True)
class Measures:
    """Means over queries.

    Attributes:
        space_pixels: distance in the plane from a query to what it looks at, in input pixels, weighted.
        time_frames: distance in time, in frames of the clip, weighted.
        entropy_bits: of the weights: 0 where one key has everything, log2 of the keys where all are equal.
        outside_frame: share of the weight on other frames than the query's, 0 to 1.
    """

    space_pixels: float
    time_frames: float
    entropy_bits: float
    outside_frame: float


@dataclass(frozen=True)
class BlockMeasures:
    """One block in one clip: what it does, and what equal weights on all keys that it sees would do."""

    video: str
    block: str
    queries: int
    measured: Measures
    even: Measures


def measure(
    rows: NDArray[np.floating[Any]],
    positions: NDArray[np.integer[Any]],
    queries: GridGeometry,
    keys: GridGeometry,
) -> Measures:
    """The measures of rows (positions, keys) of f/C for these flat positions; rows without weight count 0."""
    weights = np.abs(np.asarray(rows, dtype=np.float64))
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    at, to = queries.centres()[positions], keys.centres()
    space = np.hypot(at[:, None, 1] - to[None, :, 1], at[:, None, 2] - to[None, :, 2])
    time = np.abs(at[:, None, 0] - to[None, :, 0])
    logs = np.log2(weights, out=np.zeros_like(weights), where=weights > 0)
    per_frame = keys.shape[1] * keys.shape[2]
    own = np.array([keys.nearest(frame, 0, 0) // per_frame for frame in at[:, 0]])
    outside = own[:, None] != np.arange(keys.positions)[None, :] // per_frame
    return Measures(
        space_pixels=float((weights * space).sum(axis=1).mean()),
        time_frames=float((weights * time).sum(axis=1).mean()),
        entropy_bits=float(-(weights * logs).sum(axis=1).mean()),
        outside_frame=float((weights * outside).sum(axis=1).mean()),
    )


def measure_blocks(captured: Capture, queries: int, video: str = "") -> list[BlockMeasures]:
    """Every block of one clip, asked for up to `queries` positions spread evenly over its map.

    Raises ValueError for fewer than one.
    """
    if queries < 1:
        raise ValueError(f"queries = {queries}: at least one position must be asked")
    found = []
    for block in captured.blocks.values():
        count = block.queries.positions
        positions = np.arange(count)
        if count > queries:
            positions = np.unique(np.linspace(0, count - 1, queries).round().astype(np.int64))
        parts: list[tuple[int, Measures, Measures]] = []
        for begin in range(0, len(positions), _ROWS_AT_ONCE):
            some = positions[begin : begin + _ROWS_AT_ONCE]
            measured = measure(block.rows(some), some, block.queries, block.keys)
            even = measure(seen_keys(block, some), some, block.queries, block.keys)
            parts.append((len(some), measured, even))
        counts = [part[0] for part in parts]
        means = (_mean([part[1] for part in parts], counts), _mean([part[2] for part in parts], counts))
        found.append(BlockMeasures(video, block.name, len(positions), *means))
    return found


def seen_keys(block: BlockAffinity, positions: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """1 for every key that a position sees by the block's span and temporal groups, else 0."""
    frames, height, width = block.queries.shape
    frame, place = np.divmod(positions, height * width)
    per_frame = block.keys.shape[1] * block.keys.shape[2]
    key_frame, key_place = np.divmod(np.arange(block.keys.positions), per_frame)
    run = 1 if block.span == "space" else frames // block.temporal_groups
    seen = (frame // run)[:, None] == (key_frame // run)[None, :]
    if block.span == "time":
        seen &= place[:, None] == key_place[None, :]
    weights: NDArray[np.float64] = seen.astype(np.float64)
    return weights


def average(measures: Sequence[BlockMeasures]) -> list[BlockMeasures]:
    """One entry a block: the mean over the videos, each counting the same."""
    names = list(dict.fromkeys(one.block for one in measures))
    averaged = []
    for name in names:
        of_block = [one for one in measures if one.block == name]
        ones = [1] * len(of_block)
        mean = (_mean([one.measured for one in of_block], ones), _mean([one.even for one in of_block], ones))
        queries = sum(one.queries for one in of_block)
        averaged.append(BlockMeasures(f"mean of {len(of_block)}", name, queries, *mean))
    return averaged


def write_csv(measures: Iterable[BlockMeasures], path: str | Path) -> None:
    """One row for each video and block; columns `even_...` are what equal weights would give."""
    names = [field.name for field in fields(Measures)]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(["video", "block", "queries", *names, *(f"even_{name}" for name in names)])
    for one in measures:
        values = [*asdict(one.measured).values(), *asdict(one.even).values()]
        writer.writerow([one.video, one.block, one.queries, *(f"{value:.6g}" for value in values)])
    text = stream.getvalue()
    write_whole(Path(path), lambda partial: partial.write_text(text, encoding="utf-8", newline=""))


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
    generator = np.random.default_rng(0)
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
            spread = generator.uniform(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
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


def _mean(measures: Sequence[Measures], counts: Sequence[int]) -> Measures:
    table = np.array([list(asdict(one).values()) for one in measures])
    return Measures(*(float(value) for value in np.average(table, axis=0, weights=counts)))
