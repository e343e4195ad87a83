"""`nonlocal ablate`: run a table of the paper, and say what its figures show."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from nonlocal_nn.experiments.grid import Failure
    from nonlocal_nn.experiments.image_cells import AnyCell
    from nonlocal_nn.experiments.report import Row
    from nonlocal_nn.experiments.tables import Table


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Run a table of the paper's ablations, small, on rendered videos of known distance; or on your videos.

    se and se-long compare squeeze-and-excitation's places, reductions and pooling, on images that --train and
    --test name: nonlocal ablate se --train cifar/train --test cifar/test

    Every cell (a variant with a seed) is an ordinary run, trained and tested, in OUT/cells. What is finished
    is found again, so the same command goes on after Ctrl-C or a kill, and tables share the cells they have
    in common. At the end: the table here, OUT/TABLE.csv, .md, .svg, .png. `--list` shows the tables,
    `--dry-run` what a table would do and how long it would take. Exit code 1 if a cell failed; the others
    are finished.
    """

    table: str | None = None
    """Which: 2a to 2g as in the paper, distance, what the paper left open, se; `--list` lists them."""
    list: bool = False
    """List the tables, and run none."""
    dry_run: bool = False
    """Show the cells, what is done and how long the rest will take, and run none."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One training of every variant for each."""
    out: str = "runs/ablate"
    """Folder of the grid; all tables can share it."""
    jobs: int | None = None
    """Processes, each with a cell; none: one for each core, or each GPU. The figures do not depend on it."""
    threads: int = 1
    """CPU threads of a process. Another number rounds otherwise."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Device to train and test on."""
    engine: Literal["local", "slurm"] = "local"
    """local: processes here; slurm: a job array, `jobs` at a time, that this command waits for. Stopped, the
    same command finds what the jobs have finished."""
    slurm_partition: str | None = None
    """With --engine slurm: where the jobs go; none: the cluster's default."""
    slurm_minutes: int = 120
    """With --engine slurm: limit of a job; one that is cut off or preempted is queued again and goes on."""
    data: str = "rendered"
    """rendered: the long-range set of the table; or a csv with the columns path and label."""
    fold_by: str | None = None
    """With --data PATH: column whose values stay together, as a recording or a person; each fold of them is
    tested once, by a network that was trained on the others."""
    folds: int = 3
    """With --data PATH: number of folds."""
    recipe: str | None = None
    """With --data PATH: YAML file with options of `nonlocal train` (clips, optimizer, length) for every
    cell."""
    clips: int = 10
    """With --data PATH: clips of a test video."""
    crops: Literal[1, 3] = 3
    """With --data PATH: crops of a test clip."""
    short_side: int | None = None
    """With --data PATH: shorter side of test frames in pixels; none: as trained."""
    train: str | None = None
    """Of a table about images: what to train on, squares of a multiple of 16 pixels, one folder a class, in a
    folder or a zip file."""
    test: str | None = None
    """Of a table about images: what to test on, with the same classes."""
    progress: bool = True
    """Show a progress bar."""


def ablate_command(config: AblateConfig) -> int:
    """Run or list; 0, or 1 if a cell failed.

    Raises:
        ValueError: an unknown table, options that cannot be, or a grid in use.
    """
    from rich.console import Console

    from nonlocal_nn.experiments.tables import get_table

    console = Console(soft_wrap=True, highlight=False)
    if config.list:
        _print_tables(console)
        return 0
    if config.table is None:
        raise ValueError("which table? `nonlocal ablate --list` lists them; for example: nonlocal ablate 2d")
    table = get_table(config.table)
    _check(config, table)
    root = Path(config.out)
    cells = _cells(table, config, root)
    macs = _build_all(table, cells)
    if config.dry_run:
        _print_plan(table, cells, config, console)
        return 0
    from nonlocal_nn.experiments.grid import grid_lock

    with grid_lock(root):
        _render(cells, config)
        failures = _run(table, cells, config)
        rows = _write(table, cells, macs, root, config)
    _print_table(table, rows, console)
    name = _name(table, config)
    if rows:
        console.print(f"written: {root / name}.csv, .md, .svg, .png", markup=False)
    for failure in failures:
        cell = failure.cell
        fold = f", fold {cell.fold}" if cell.fold else ""
        sys.stderr.write(
            f"failed: {cell.variant}, seed {cell.seed}{fold}: {failure.reason} "
            f"({cell.folder.with_suffix('.log')})\n"
        )
    return 1 if failures else 0


def _check(config: AblateConfig, table: Table) -> None:
    if not config.seeds:
        raise ValueError("seeds: give at least one, such as --seeds 0,1,2,3,4")
    twice = sorted({seed for seed in config.seeds if config.seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"seeds = {', '.join(map(str, config.seeds))}: {twice[0]} stands there twice")
    if config.engine == "slurm" and shutil.which("srun") is None:
        raise ValueError("--engine slurm: there is no srun here; call it on a machine of the cluster")
    if config.engine == "local" and config.slurm_partition is not None:
        raise ValueError("--slurm_partition belongs to --engine slurm")
    for name in ("jobs", "threads", "clips", "slurm_minutes"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} = {value}: it must be 1 or more")
    if table.images is not None:
        _check_images(config, table)
    elif config.train is not None or config.test is not None:
        raise ValueError(f"--train and --test belong to tables about images; {table.name} is about videos")
    if config.data == "rendered":
        for name in ("fold_by", "recipe"):
            if getattr(config, name) is not None:
                raise ValueError(f"--{name} belongs to --data PATH; the rendered set has its own")
    elif config.fold_by is None:
        raise ValueError(
            "--data PATH needs --fold_by COLUMN: what stays together, so that no video is tested by a "
            "network that was trained on its like"
        )


def _check_images(config: AblateConfig, table: Table) -> None:
    from nonlocal_nn.data.class_images import check_image_sets

    if config.data != "rendered":
        raise ValueError(f"table {table.name} is about images: --train and --test name them, not --data")
    if config.accelerator == "gpu":
        raise ValueError(f"table {table.name} runs on CPUs")
    check_image_sets(f"table {table.name}", config.train, config.test)


def _cells(table: Table, config: AblateConfig, root: Path) -> Sequence[AnyCell]:
    from nonlocal_nn.experiments.cells import Labelled, folds_of, labelled_cells, rendered_cells

    if table.images is not None:
        from nonlocal_nn.experiments.image_cells import image_cells

        assert config.train is not None
        assert config.test is not None
        return image_cells(table, config.seeds, root, config.train, config.test)
    accelerator = _accelerator(config)
    if config.data == "rendered":
        return rendered_cells(table, config.seeds, root, accelerator)
    from dataclasses import replace

    from nonlocal_nn._config_files import read_config
    from nonlocal_nn.training.config import config_from_dict

    path = Path(config.data)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; --data takes a csv with the columns path and label")
    values = {} if config.recipe is None else read_config(Path(config.recipe))
    if "model" in values:
        raise ValueError(f"{config.recipe} has the key model: the table says which networks are trained")
    values = {**values, "out": "", "data": {**values.get("data", {}), "train": str(path)}}
    recipe = config_from_dict(values)
    assert config.fold_by is not None
    labelled = Labelled(
        path=path,
        fold_by=config.fold_by,
        folds=folds_of(path, config.fold_by, config.folds),
        recipe=replace(recipe, accelerator=accelerator),
        clips=config.clips,
        crops=config.crops,
        short_side=config.short_side,
    )
    return labelled_cells(table, config.seeds, root, labelled)


def _accelerator(config: AblateConfig) -> Literal["cpu", "gpu"]:
    """Auto is decided here, once, since it is part of what a cell is."""
    import torch

    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("--accelerator gpu: torch finds no GPU here; leave it out, or say cpu")
    if config.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return config.accelerator


def _jobs(table: Table, config: AblateConfig) -> tuple[int, int]:
    """Processes, and GPUs to share out among them."""
    import torch

    from nonlocal_nn._cores import available_cores

    on_gpus = table.images is None and _accelerator(config) == "gpu"
    gpus = torch.cuda.device_count() if on_gpus else 0
    return config.jobs or gpus or max(1, available_cores() // config.threads), gpus


def _build_all(table: Table, cells: Sequence[AnyCell]) -> dict[str, int]:
    """Multiply-adds of every variant; ValueError for one that cannot be built, before any trains."""
    import torch

    from nonlocal_nn.evaluation.cost import count_macs
    from nonlocal_nn.models.build import build_model

    macs = {}
    for variant in table.variants:
        cell = next(cell for cell in cells if cell.variant == variant.name)
        frames, side = cell.clip_of(variant.spec)
        try:
            with torch.device("meta"):
                model = build_model(variant.spec.replace(num_classes=2))
            macs[variant.name] = count_macs(model, (3, frames, side, side))
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"table {table.name}, {variant.name}: the network cannot be built for clips of {frames} "
                f"frames of {side} x {side}: {error}"
            ) from None
    return macs


def _render(cells: Sequence[AnyCell], config: AblateConfig) -> None:
    from nonlocal_nn._progress import percent_bar
    from nonlocal_nn.data.long_range import write_long_range
    from nonlocal_nn.experiments.cells import Cell

    videos = [cell for cell in cells if isinstance(cell, Cell) and cell.results() is None]
    folders = {Path(cell.train.data.train).parent: cell.question for cell in videos}
    for folder, question in folders.items():
        if question is not None:
            with percent_bar("rendering videos", shown=config.progress) as progress:
                write_long_range(folder, question, progress=progress)


def _run(table: Table, cells: Sequence[AnyCell], config: AblateConfig) -> list[Failure[AnyCell]]:
    from nonlocal_nn.experiments.estimate import estimate_seconds
    from nonlocal_nn.experiments.grid import fill

    jobs, gpus = _jobs(table, config)
    if config.engine == "slurm":
        from nonlocal_nn.experiments.slurm import SlurmOptions, fill_on_slurm

        options = SlurmOptions(
            partition=config.slurm_partition,
            minutes=config.slurm_minutes,
            threads=config.threads,
            gpu=gpus > 0,
        )
        return fill_on_slurm(cells, work, Path(config.out), options, at_once=config.jobs or 64)
    todo = {cell.key for cell in cells if cell.results() is None}
    sys.stderr.write(f"{len(cells)} cells, {len(cells) - len(todo)} done already; {jobs} at a time\n")
    if not todo:
        return []
    expected = estimate_seconds(table, cells, config.threads) if config.progress else {}
    with _bar(f"table {table.name}", expected, shown=config.progress) as progress:
        return fill(cells, work, jobs=jobs, threads=config.threads, gpus=gpus, progress=progress)


@contextmanager
def _bar(
    words: str, expected: dict[str, float], *, shown: bool
) -> Iterator[Callable[[list[AnyCell], list[tuple[AnyCell, float]]], None]]:
    """One bar over the whole grid, in seconds of work."""
    from nonlocal_nn._progress import percent_bar

    total = sum(expected.values())
    with percent_bar(words, shown=shown) as update:

        def progress(done: list[AnyCell], running: list[tuple[AnyCell, float]]) -> None:
            finished = sum(expected.get(cell.key, 0.0) for cell in done)
            begun = sum(min(seconds, expected.get(cell.key, 0.0)) for cell, seconds in running)
            update(round(finished + begun), max(1, round(total)))

        yield progress


def work(cell: AnyCell) -> None:
    """Train and test one cell; called in a process of the pool."""
    from nonlocal_nn.experiments.image_cells import ImageCell, train_and_test

    if isinstance(cell, ImageCell):
        train_and_test(cell)
        return
    from nonlocal_nn.commands.test import run_test
    from nonlocal_nn.training.run import train

    train(cell.train)
    if not (cell.folder / "test" / "results.json").exists():
        run_test(cell.test)


def _name(table: Table, config: AblateConfig) -> str:
    return table.name if config.data == "rendered" else f"{table.name}_{Path(config.data).stem}"


def _write(
    table: Table, cells: Sequence[AnyCell], macs: dict[str, int], root: Path, config: AblateConfig
) -> list[Row]:
    from nonlocal_nn._files import write_whole
    from nonlocal_nn.experiments.report import draw, markdown, rows_of, write_rows

    rows = rows_of(table, cells, macs)
    if rows:
        name = _name(table, config)
        write_rows(rows, root / f"{name}.csv")
        text = markdown(table, rows)
        write_whole(root / f"{name}.md", lambda partial: partial.write_text(text, encoding="utf-8"))
        ends = reach_of(table) if table.name == "distance" and config.data == "rendered" else None
        for suffix in ("svg", "png"):
            draw(table, rows, root / f"{name}.{suffix}", ends)
    return rows


def reach_of(table: Table) -> dict[str, tuple[float, str]]:
    """By variant without blocks: from which distance on no feature holds a part of both, and its unit."""
    from nonlocal_nn.data.long_range import SHOWN_FRAMES, ties_from
    from nonlocal_nn.models.reach import reach

    result: dict[str, tuple[float, str]] = {}
    for variant in table.variants:
        question, seen = table.question_of(variant), reach(variant.spec)
        in_space = len({pixels for pixels, _ in question.distances}) > 1
        size = question.token_pixels if in_space else SHOWN_FRAMES
        ends = ties_from(seen.end.pixels if in_space else seen.end.frames, size)
        result[variant.name] = (0.0 if seen.blocks_relate else ends, "pixels" if in_space else "frames")
    return result


def _print_tables(console: Console) -> None:
    from rich.table import Table as RichTable

    from nonlocal_nn.experiments.tables import TABLES

    shown = RichTable()
    for title in ("table", "what varies", "variants", "steps"):
        shown.add_column(title, justify="right" if title in ("variants", "steps") else "left")
    for table in TABLES.values():
        shown.add_row(table.name, table.title, str(len(table.variants)), str(table.steps))
    console.print(shown)


def _print_plan(table: Table, cells: Sequence[AnyCell], config: AblateConfig, console: Console) -> None:
    from rich.table import Table as RichTable

    from nonlocal_nn.experiments.estimate import estimate_seconds
    from nonlocal_nn.models.reach import reach

    seconds = estimate_seconds(table, cells, config.threads)
    jobs, _ = _jobs(table, config)
    shown = RichTable(title=f"{table.name}: {table.title}")
    for title in ("variant", "seed", "fold", "cell", "state", "s"):
        shown.add_column(title, justify="right" if title == "s" else "left")
    for cell in cells:
        left = seconds.get(cell.key)
        state = "done" if left is None else "begun" if cell.folder.exists() else ""
        shown.add_row(
            cell.variant, str(cell.seed), cell.fold, cell.key, state, "" if left is None else f"{left:.0f}"
        )
    console.print(shown)
    for variant in table.variants:
        console.print(f"{variant.name}: a feature sees {reach(variant.spec)}", markup=False)
    total = sum(seconds.values())
    console.print(
        f"{len(seconds)} of {len({cell.key for cell in cells})} cells to do: about {total / 60:.0f} minutes "
        f"of one process, {total / 60 / jobs:.0f} with {jobs}"
    )


def _print_table(table: Table, rows: Sequence[Row], console: Console) -> None:
    from nonlocal_nn.experiments.report import console_tables

    for part in console_tables(table, rows) if rows else ():
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)
