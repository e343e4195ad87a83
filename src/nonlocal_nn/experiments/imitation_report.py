"""What `nonlocal conv-attention imitate` shows: a table, a csv and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nonlocal_nn import _files

if TYPE_CHECKING:
    from rich.console import Console

    from nonlocal_nn.experiments.imitation_result import Imitation

_GOOD = 1e-3


def print_table(found: list[Imitation], console: Console) -> None:
    """One row a seed."""
    from rich.table import Table

    table = Table(
        "seed", "error", "kernel's", "least weight in the window", "on a pixel", "moved, pixels", "resets"
    )
    for run in found:
        table.add_row(
            str(run.seed),
            f"{run.error:.1e}",
            f"{run.kernel_error:.1e}",
            f"{100 * run.in_window:.1f} %",
            f"{run.on_pixel} of {len(run.last)}",
            f"{run.moved:.1f}",
            str(run.resets),
        )
    console.print(table)
    good = sum(run.error <= _GOOD for run in found)
    console.print(f"{good} of {len(found)} seeds with an error of {_GOOD:g} or less (of the mean square)")


def write_csv(path: Path, found: list[Imitation]) -> None:
    """The same as a csv."""
    names = ("seed", "steps", "error", "kernel_error", "in_window", "on_pixel", "moved", "resets")
    _files.write_csv(path, names, [[getattr(run, name) for name in names] for run in found])


def draw(path: Path, found: list[Imitation]) -> None:
    """Where each head's centre went, and how broad it is."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle, Rectangle

    columns = min(5, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    for axes, run in zip(figure.subplots(rows, columns, squeeze=False).flat, found, strict=False):
        axes.add_patch(Rectangle((-1.5, -1.5), 3, 3, fill=False, color="0.6"))
        for (y0, x0), (y, x), spread in zip(run.first, run.last, run.spreads, strict=True):
            axes.plot([x0, x], [y0, y], color="0.8", linewidth=0.8, zorder=0)
            axes.add_patch(
                Circle((x, y), min(3.0, 1 / max(spread, 1e-3)), color="C0", alpha=0.25, linewidth=0)
            )
            axes.plot([x], [y], "o", color="C0", markersize=2.5)
        axes.set(xlim=(-4, 4), ylim=(4, -4), aspect="equal", xticks=range(-3, 4), yticks=range(-3, 4))
        axes.set_title(f"seed {run.seed}: {run.error:.0e}", fontsize=8)
        axes.tick_params(labelsize=6)
    for axes in figure.axes[len(found) :]:
        axes.set_axis_off()
    figure.suptitle("centres of nine heads, from random to the end; discs: 1 / spread", fontsize=9)
    _files.write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=130))
