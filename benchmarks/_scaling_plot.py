"""Time and memory against the number of positions, one small log-log panel for each function."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _cases import FUNCTIONS
from _store import Row
from nonlocal_nn._files import write_whole

GREY = "#808080"  # readable on white and on black
COLOURS = {
    "ours": "#d6336c",
    "ours_linear": "#f08c00",
    "plain": "#868e96",
    "sdpa": "#2b8ae2",
    "Non-local_pytorch": "#37a169",
    "mmcv": "#9b6dff",
    "SlowFast": "#12a5b8",
}
PLOTS = {
    "operators_time.svg": ("seconds", "seconds", 1.0),
    "operators_memory.svg": ("peak_bytes", "peak memory, MB", 1e6),
}


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Write both plots; the backgrounds are clear, so that they suit a light and a dark page."""
    measured = [row for row in rows if row["status"] == "measured"]
    written = []
    for name, (field, label, unit) in PLOTS.items():
        path = folder / name
        figure = make(measured, field, label, unit)
        settings = {"svg.hashsalt": "nonlocal_nn", "svg.fonttype": "none"}
        with mpl.rc_context(settings):
            write_whole(
                path,
                lambda partial, figure=figure: figure.savefig(  # type: ignore[misc]
                    partial, format="svg", transparent=True, metadata={"Date": None}
                ),
            )
        written.append(path)
    return written


def make(rows: list[Row], field: str, label: str, unit: float) -> Figure:
    """Two by two panels that share their axes, and one legend."""
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, function in zip(panels.flat, FUNCTIONS, strict=True):
        panel(axes, [row for row in rows if row["function"] == function and field in row], field, unit)
        axes.set_title(function.replace("_", " "), color=GREY, fontsize=10)
    for axes in panels[1]:
        axes.set_xlabel("positions", color=GREY)
    for axes in panels[:, 0]:
        axes.set_ylabel(label, color=GREY)
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    if lines:
        figure.legend(
            lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False,
            labelcolor=GREY, fontsize=9,
        )  # fmt: skip
    return figure


def panel(axes: Axes, rows: Iterable[Row], field: str, unit: float) -> None:
    """One curve for each contender, points where it was measured."""
    curves: dict[str, list[tuple[int, float]]] = {}
    labels: dict[str, str] = {}
    for row in rows:
        curves.setdefault(row["contender"], []).append((row["queries"], row[field] / unit))
        labels[row["contender"]] = row["label"]
    for name, points in curves.items():
        x, y = zip(*sorted(points), strict=True)
        ours = name.startswith("ours")
        style = {
            "linewidth": 2.0 if ours else 1.2,
            "markersize": 4 if ours else 3,
            "zorder": 3 if ours else 2,
        }
        axes.plot(x, y, marker="o", color=COLOURS.get(name, GREY), label=labels[name], **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(visible=True, color=GREY, alpha=0.25, linewidth=0.5)
    axes.tick_params(colors=GREY, which="both", labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(GREY)
