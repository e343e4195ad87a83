"""`nonlocal conv-attention`: does self-attention by relative positions become a convolution?"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonlocal_nn.experiments.imitation_result import Imitation

_GOOD = 1e-3


@dataclass(frozen=True, kw_only=True)
class ConvAttentionConfig:
    """Does self-attention by relative positions become a convolution? nonlocal conv-attention imitate

    imitate: one layer of nine heads, with random centres, learns a random 3x3 convolution from noise, once
    a seed. Writes OUT/imitate.csv and a picture of where each head went, OUT/imitate.png. A seed that is
    done is found again, so the same command goes on after Ctrl-C.
    """

    what: str
    """imitate."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One run for each."""
    steps: int = 2000
    """Of training, 16 maps of 12 x 12 each."""
    resets: bool = True
    """Give heads that do nothing new first weights on the way."""
    out: str = "runs/conv-attention"
    """Folder."""
    jobs: int | None = None
    """Processes, each with a seed; none: one for each core."""
    progress: bool = True
    """Show a progress bar."""


def conv_attention_command(config: ConvAttentionConfig) -> int:
    """Run, print and write; 0.

    Raises:
        ValueError: another word than imitate, or numbers that cannot be.
    """
    if config.what != "imitate":
        raise ValueError(f"conv-attention {config.what}: there is imitate")
    for name in ("steps", "jobs"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} = {value}: it must be 1 or more")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"seeds = {config.seeds}: at least one, none twice")
    found = _all_seeds(config)
    _print(found)
    out = Path(config.out)
    name = "imitate" if config.resets else "imitate-without-resets"
    _write_csv(out / f"{name}.csv", found)
    _draw(out / f"{name}.png", found)
    print(f"written: {out / name}.csv, .png")
    return 0


def _all_seeds(config: ConvAttentionConfig) -> list[Imitation]:
    from nonlocal_nn._cores import available_cores
    from nonlocal_nn._files import write_whole
    from nonlocal_nn._progress import percent_bar
    from nonlocal_nn.experiments.imitation_result import Imitation

    files = {seed: _file(config, seed) for seed in config.seeds}
    missing = [seed for seed, file in files.items() if not file.exists()]
    jobs = min(config.jobs or available_cores(), max(1, len(missing)))
    with percent_bar("imitating", shown=config.progress and sys.stderr.isatty()) as bar:
        bar(0, max(1, len(missing)))
        if missing:
            with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
                runs = [pool.submit(_run, seed, config.steps, config.resets) for seed in missing]
                try:
                    for number, run in enumerate(as_completed(runs), start=1):
                        text = json.dumps(run.result())
                        seed = json.loads(text)["seed"]
                        write_whole(files[seed], lambda path, text=text: path.write_text(text))  # type: ignore[misc]
                        bar(number, len(missing))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return [Imitation(**json.loads(file.read_text())) for file in files.values()]


def _file(config: ConvAttentionConfig, seed: int) -> Path:
    from nonlocal_nn.experiments.imitation_result import VERSION

    name = f"v{VERSION}-{config.steps}{'' if config.resets else '-without-resets'}-{seed}.json"
    return Path(config.out) / "imitate" / name


def _run(seed: int, steps: int, resets: bool) -> dict[str, Any]:
    """In a process of its own."""
    import torch

    from nonlocal_nn.experiments.imitation import imitate

    torch.set_num_threads(1)  # so that figures do not depend on how many cores there are
    return imitate(seed, steps, resets=resets).to_dict()


def _print(found: list[Imitation]) -> None:
    from rich.console import Console
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
    console = Console(highlight=False)
    console.print(table)
    good = sum(run.error <= _GOOD for run in found)
    console.print(f"{good} of {len(found)} seeds with an error of {_GOOD:g} or less (of the mean square)")


def _write_csv(path: Path, found: list[Imitation]) -> None:
    import csv

    from nonlocal_nn._files import open_text, write_whole

    names = ("seed", "steps", "error", "kernel_error", "in_window", "on_pixel", "moved", "resets")

    def write(partial: Path) -> None:
        with open_text(partial) as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([getattr(run, name) for name in names] for run in found)

    write_whole(path, write)


def _draw(path: Path, found: list[Imitation]) -> None:
    """Where each head's centre went, and how broad it is."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle, Rectangle

    from nonlocal_nn._files import write_whole

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
    write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=130))
