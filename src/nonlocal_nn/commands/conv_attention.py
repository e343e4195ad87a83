"""`nonlocal conv-attention`: does self-attention by relative positions become a convolution?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ConvAttentionConfig:
    """Does self-attention by relative positions become a convolution? nonlocal conv-attention imitate

    imitate: one layer of nine heads, with random centres, learns a random 3x3 convolution from noise, once
    a seed (12 seconds). Writes OUT/imitate.csv and a picture of where each head went, OUT/imitate.png.

    cifar: a small network of three such layers learns to classify the images of --train, one folder a class,
    and is tested on --test; do its heads find the pixels? Four minutes a seed on 20,000 images. Writes
    OUT/cifar.csv, .png, and a film of one seed, .webp.

    cifar --paper: the paper's network and settings instead (300 epochs; for a GPU, on which it takes hours).

    A seed that is done is found again, so the same command goes on after Ctrl-C.
    """

    what: str
    """imitate or cifar."""
    seeds: tuple[int, ...] | None = None
    """One run for each; none: ten of imitate, five of cifar."""
    steps: int = 2000
    """imitate: of training, 16 maps of 12 x 12 each."""
    resets: bool = True
    """imitate: give heads that do nothing new first weights on the way."""
    train: str | None = None
    """cifar: images to train on, squares of a multiple of 16 pixels: a folder or a zip file."""
    test: str | None = None
    """cifar: images to test on."""
    paper: bool = False
    """cifar: the paper's network of 12 million parameters, on images of 32 x 32, trained as in its code."""
    epochs: int | None = None
    """cifar: passes over the images; none: 8, or 300 with --paper."""
    out: str = "runs/conv-attention"
    """Folder."""
    jobs: int | None = None
    """Processes, each with a seed; none: one for each core."""
    progress: bool = True
    """Show a progress bar."""


def conv_attention_command(config: ConvAttentionConfig) -> int:
    """Run, print and write; 0, or 1 where a seed failed.

    Raises:
        ValueError: another word than imitate or cifar, or numbers that cannot be.
        FileNotFoundError: no such images.
    """
    _check(config)
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if config.what == "imitate":
        return _imitate(config, console)
    return _cifar(config, console)


def _check(config: ConvAttentionConfig) -> None:
    if config.what not in ("imitate", "cifar"):
        raise ValueError(f"conv-attention {config.what}: there are imitate and cifar")
    for name in ("steps", "jobs", "epochs"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} = {value}: it must be 1 or more")
    seeds = config.seeds
    if seeds is not None and (not seeds or len(set(seeds)) < len(seeds)):
        raise ValueError(f"seeds = {seeds}: at least one, none twice")
    if config.what == "imitate" and (config.train or config.test):
        raise ValueError("--train and --test belong to cifar; imitate makes its own noise")
    if config.what == "imitate" and config.paper:
        raise ValueError("--paper belongs to cifar")
    if config.what == "cifar":
        from nonlocal_nn.data.class_images import check_image_sets

        check_image_sets("cifar", config.train, config.test)


def _imitate(config: ConvAttentionConfig, console: Any) -> int:
    from nonlocal_nn.experiments.imitation_report import draw, print_table, write_csv
    from nonlocal_nn.experiments.imitation_result import VERSION, Imitation

    seeds = config.seeds or tuple(range(10))
    name = "imitate" if config.resets else "imitate-without-resets"
    folder = Path(config.out) / name / f"v{VERSION}-{config.steps}"
    cells = [
        _SeedCell(seed, folder / f"seed{seed}", _imitate_once, (config.steps, config.resets))
        for seed in seeds
    ]
    results, code = _filled(cells, config)
    if not results:
        return code
    found = [Imitation(**result) for result in results]
    print_table(found, console)
    target = Path(config.out) / name
    write_csv(target.with_suffix(".csv"), found)
    draw(target.with_suffix(".png"), found)
    console.print(f"written: {target}.csv, .png", markup=False)
    return code


def _cifar(config: ConvAttentionConfig, console: Any) -> int:
    import hashlib

    from nonlocal_nn.experiments.cifar_report import draw, film, print_table, write_csv
    from nonlocal_nn.experiments.cifar_result import VERSION, CifarRun

    assert config.train is not None
    assert config.test is not None
    seeds = config.seeds or tuple(range(5))
    places = [str(Path(place).resolve()) for place in (config.train, config.test)]
    data = hashlib.sha256("\n".join(places).encode()).hexdigest()[:8]
    name = "cifar-paper" if config.paper else "cifar"
    epochs = config.epochs or (300 if config.paper else 8)
    folder = Path(config.out) / name / f"v{VERSION}-{epochs}-{data}"
    options: tuple[Any, ...] = (config.train, config.test, epochs)
    if config.paper:
        _say_flops(console)
        options = (*options, str(folder))
    run = _paper_once if config.paper else _cifar_once
    results, code = _filled([_SeedCell(seed, folder / f"seed{seed}", run, options) for seed in seeds], config)
    if not results:
        return code
    found = [CifarRun(**result) for result in results]
    print_table(found, console)
    target = Path(config.out) / name
    write_csv(target.with_suffix(".csv"), found)
    draw(target.with_suffix(".png"), found)
    film(target.with_suffix(".webp"), found[0])
    console.print(f"written: {target}.csv, .png, .webp", markup=False)
    return code


def _imitate_once(seed: int, steps: int, resets: bool) -> dict[str, Any]:
    from nonlocal_nn.experiments.imitation import imitate

    return imitate(seed, steps, resets=resets).to_dict()


def _say_flops(console: Any) -> None:
    from nonlocal_nn.experiments.image_attention import PAPER, flops_of

    count = flops_of(PAPER)
    console.print(
        f"GFLOP an image, twice the multiplications: {count.linear / 1e9:.1f} in linear layers (as the "
        f"paper counts), {count.separable / 1e9:.1f} with the sums over positions, "
        f"{count.dense / 1e9:.1f} if those were over all pairs"
    )


def _cifar_once(seed: int, train: str, test: str, epochs: int) -> dict[str, Any]:
    from nonlocal_nn.data.class_images import read_image_sets
    from nonlocal_nn.experiments.cifar import train_short

    learnt, tested, _ = read_image_sets(train, test)
    return train_short(learnt, tested, seed, epochs).to_dict()


def _paper_once(seed: int, train: str, test: str, epochs: int, folder: str) -> dict[str, Any]:
    from nonlocal_nn.data.class_images import read_image_sets
    from nonlocal_nn.experiments.cifar_paper import train_paper

    learnt, tested, _ = read_image_sets(train, test)
    state = Path(folder) / f"seed{seed}" / "state.pt"
    return train_paper(learnt, tested, seed, epochs, state).to_dict()


@dataclass(frozen=True)
class _SeedCell:
    """One run of an experiment, for the pool of `experiments/grid.py`."""

    seed: int
    folder: Path
    run: Callable[..., dict[str, Any]]
    options: tuple[Any, ...]

    @property
    def key(self) -> str:
        return str(self.folder)

    def results(self) -> dict[str, Any] | None:
        from nonlocal_nn.experiments.cells import read_results

        return read_results(self.folder)


def _work(cell: _SeedCell) -> None:
    from nonlocal_nn._files import write_whole

    text = json.dumps(cell.run(cell.seed, *cell.options))
    write_whole(cell.folder / "results.json", lambda path: path.write_text(text))


def _filled(cells: list[_SeedCell], config: ConvAttentionConfig) -> tuple[list[dict[str, Any]], int]:
    """What was found of each cell that is finished, and the exit code.

    One thread each, so that the figures do not depend on how many cores there are.
    """
    from nonlocal_nn._cores import available_cores
    from nonlocal_nn._progress import percent_bar
    from nonlocal_nn.experiments.grid import fill

    todo = sum(cell.results() is None for cell in cells)
    jobs = min(config.jobs or available_cores(), max(1, todo))
    with percent_bar("seeds", shown=config.progress and sys.stderr.isatty()) as bar:
        bar(0, max(1, todo))
        failures = fill(
            cells, _work, jobs=jobs, threads=1, progress=lambda done, _: bar(len(done), max(1, todo))
        )
    for failure in failures:
        sys.stderr.write(f"failed: seed {failure.cell.seed}: {failure.reason}\n")
    found = [cell.results() for cell in cells]
    return [result for result in found if result is not None], 1 if failures else 0
