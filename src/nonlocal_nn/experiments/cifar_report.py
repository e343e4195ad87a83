"""What `nonlocal conv-attention cifar` shows: a table, a csv, a picture and a film of where heads go."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonlocal_nn import _files
from nonlocal_nn.experiments.cifar_result import NEAR, SHARP

if TYPE_CHECKING:
    from rich.console import Console

    from nonlocal_nn.experiments.cifar_result import CifarRun

_CHANCE = (2 * NEAR) ** 2


def print_table(found: list[CifarRun], console: Console) -> None:
    """Accuracy of every seed, and of every layer where its heads are."""
    from rich.table import Table

    layers = len(found[0].centres[0])
    table = Table(
        "seed", "accuracy, %", "layer", "distance, first", "last", "sharp heads", "of them on a pixel"
    )
    for run in found:
        for layer in range(layers):
            sharp, on_pixel = run.sharp(layer)
            table.add_row(
                str(run.seed) if layer == 0 else "",
                f"{run.accuracy:.1f}" if layer == 0 else "",
                str(layer + 1),
                f"{run.distance(layer, 0):.1f}",
                f"{run.distance(layer, -1):.1f}",
                str(sharp),
                str(on_pixel),
            )
    console.print(table)
    accuracies = [run.accuracy for run in found]
    spread = f" (s.d. {statistics.stdev(accuracies):.1f})" if len(found) > 1 else ""
    console.print(f"accuracy {statistics.mean(accuracies):.1f} %{spread} of {len(found)} seeds")
    for layer in range(layers):
        sharp, on_pixel = map(sum, zip(*(run.sharp(layer) for run in found), strict=True))
        console.print(
            f"layer {layer + 1}: {on_pixel} of {sharp} sharp heads (spread of {SHARP:g} or more) within "
            f"{NEAR:g} of a pixel, chance {100 * _CHANCE:.0f} %"
        )


def write_csv(path: Path, found: list[CifarRun]) -> None:
    """A row for every head."""
    names = ("seed", "accuracy", "layer", "head", "first_row", "first_column", "row", "column", "spread")
    rows: list[list[Any]] = []
    for run in found:
        for layer, (before, after) in enumerate(zip(run.centres[0], run.centres[-1], strict=True)):
            for head, (first, last) in enumerate(zip(before, after, strict=True)):
                spread = run.spreads[-1][layer][head]
                rows.append([run.seed, run.accuracy, layer + 1, head, *first, *last, spread])
    _files.write_csv(path, names, rows)


def draw(path: Path, found: list[CifarRun]) -> None:
    """The heads of every seed and layer, at the end."""
    from matplotlib.figure import Figure

    layers = len(found[0].centres[0])
    figure = Figure(figsize=(2.0 * len(found), 2.2 * layers), layout="constrained")
    grid = figure.subplots(layers, len(found), squeeze=False)
    for column, run in enumerate(found):
        for layer in range(layers):
            _heads(grid[layer][column], run, layer, -1)
            if layer == 0:
                grid[layer][column].set_title(f"seed {run.seed}: {run.accuracy:.1f} %", fontsize=8)
    for layer in range(layers):
        grid[layer][0].set_ylabel(f"layer {layer + 1}", fontsize=8)
    _files.write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=130))


def film(path: Path, run: CifarRun) -> None:
    """One seed, from before the training to its end, epoch by epoch, as an animated WebP."""
    import io

    from matplotlib.figure import Figure
    from PIL import Image

    layers = len(run.centres[0])
    frames = []
    for epoch in range(len(run.centres)):
        figure = Figure(figsize=(2.4 * layers, 2.7), layout="constrained")
        for layer, axes in enumerate(figure.subplots(1, layers, squeeze=False)[0]):
            _heads(axes, run, layer, epoch)
            axes.set_title(f"layer {layer + 1}", fontsize=8)
        figure.suptitle(f"seed {run.seed}, after {epoch} of {run.epochs} epochs", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        frames.append(Image.open(buffer).convert("RGB"))
    first, *others = frames
    _files.write_whole(
        path,
        lambda partial: first.save(
            partial, format="WEBP", save_all=True, append_images=others, duration=700, loop=0, quality=80
        ),
    )


def _heads(axes: Any, run: CifarRun, layer: int, epoch: int) -> None:
    """Centres about the query, which stands at 0, 0, on the grid of pixels; discs: 1 / spread."""
    from matplotlib.patches import Circle

    axes.grid(color="0.9", linewidth=0.6)
    axes.plot([0], [0], "s", color="0.3", markersize=4)
    for (row, column), spread in zip(run.centres[epoch][layer], run.spreads[epoch][layer], strict=True):
        colour = "C3" if spread >= SHARP else "C0"
        radius = min(8.0, 1 / max(spread, 1e-3))
        axes.add_patch(Circle((column, row), radius, color=colour, alpha=0.15, linewidth=0))
        axes.plot([column], [row], "o", color=colour, markersize=3)
    axes.set(xlim=(-5, 5), ylim=(5, -5), aspect="equal", xticks=range(-5, 6), yticks=range(-5, 6))
    axes.tick_params(labelsize=5, length=0)
