"""`nonlocal conv-attention`: does self-attention by relative positions become a convolution?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
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
    epochs: int = 8
    """cifar: passes over the images."""
    out: str = "runs/conv-attention"
    """Folder."""
    jobs: int | None = None
    """Processes, each with a seed; none: one for each core."""
    progress: bool = True
    """Show a progress bar."""


def conv_attention_command(config: ConvAttentionConfig) -> int:
    """Run, print and write; 0.

    Raises:
        ValueError: another word than imitate or cifar, or numbers that cannot be.
        FileNotFoundError: no such images.
    """
    _check(config)
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    written = _imitate(config, console) if config.what == "imitate" else _cifar(config, console)
    console.print(f"written: {written}", markup=False, soft_wrap=True)
    return 0


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
    if config.what == "cifar":
        if config.train is None or config.test is None:
            raise ValueError(
                "cifar wants images: --train and --test, each a folder or zip, one folder a class"
            )
        for place in (config.train, config.test):
            if not Path(place).exists():
                raise FileNotFoundError(f"no such file or folder: {place}")


def _imitate(config: ConvAttentionConfig, console: Any) -> str:
    from nonlocal_nn.experiments.imitation_report import draw, print_table, write_csv
    from nonlocal_nn.experiments.imitation_result import VERSION, Imitation

    seeds = config.seeds or tuple(range(10))
    name = "imitate" if config.resets else "imitate-without-resets"
    folder = Path(config.out) / name / f"v{VERSION}-{config.steps}"
    results = _all_seeds(config, folder, seeds, _imitate_once, (config.steps, config.resets))
    found = [Imitation(**result) for result in results]
    print_table(found, console)
    target = Path(config.out) / name
    write_csv(target.with_suffix(".csv"), found)
    draw(target.with_suffix(".png"), found)
    return f"{target}.csv, .png"


def _cifar(config: ConvAttentionConfig, console: Any) -> str:
    import hashlib

    from nonlocal_nn.experiments.cifar_report import draw, film, print_table, write_csv
    from nonlocal_nn.experiments.cifar_result import VERSION, CifarRun

    assert config.train is not None
    assert config.test is not None
    seeds = config.seeds or tuple(range(5))
    places = [str(Path(place).resolve()) for place in (config.train, config.test)]
    data = hashlib.sha256("\n".join(places).encode()).hexdigest()[:8]
    folder = Path(config.out) / "cifar" / f"v{VERSION}-{config.epochs}-{data}"
    results = _all_seeds(config, folder, seeds, _cifar_once, (config.train, config.test, config.epochs))
    found = [CifarRun(**result) for result in results]
    print_table(found, console)
    target = Path(config.out) / "cifar"
    write_csv(target.with_suffix(".csv"), found)
    draw(target.with_suffix(".png"), found)
    film(target.with_suffix(".webp"), found[0])
    return f"{target}.csv, .png, .webp"


def _imitate_once(seed: int, steps: int, resets: bool) -> dict[str, Any]:
    from nonlocal_nn.experiments.imitation import imitate

    return imitate(seed, steps, resets=resets).to_dict()


def _cifar_once(seed: int, train: str, test: str, epochs: int) -> dict[str, Any]:
    from nonlocal_nn.data.class_images import read_class_images
    from nonlocal_nn.experiments.cifar import train_short

    images, labels, classes = read_class_images(train)
    others, wanted, named = read_class_images(test)
    if classes != named:
        raise ValueError(f"{test} has the classes {', '.join(named)}, {train} {', '.join(classes)}")
    return train_short((images, labels), (others, wanted), seed, epochs).to_dict()


def _in_a_process(work: Callable[..., dict[str, Any]], seed: int, options: tuple[Any, ...]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)  # so that figures do not depend on how many cores there are
    return work(seed, *options)


def _all_seeds(
    config: ConvAttentionConfig,
    folder: Path,
    seeds: tuple[int, ...],
    work: Callable[..., dict[str, Any]],
    options: tuple[Any, ...],
) -> list[dict[str, Any]]:
    """What each seed found: what is in the folder stays, the others are run, some at a time."""
    from nonlocal_nn._cores import available_cores
    from nonlocal_nn._files import write_whole
    from nonlocal_nn._progress import percent_bar

    files = {seed: folder / f"seed{seed}.json" for seed in seeds}
    missing = [seed for seed, file in files.items() if not file.exists()]
    jobs = min(config.jobs or available_cores(), max(1, len(missing)))
    with percent_bar("seeds", shown=config.progress and sys.stderr.isatty()) as bar:
        bar(0, max(1, len(missing)))
        if missing:
            with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
                runs = {pool.submit(_in_a_process, work, seed, options): seed for seed in missing}
                try:
                    for number, run in enumerate(as_completed(runs), start=1):
                        text = json.dumps(run.result())
                        write_whole(files[runs[run]], lambda path, text=text: path.write_text(text))  # type: ignore[misc]
                        bar(number, len(missing))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return [json.loads(file.read_text()) for file in files.values()]
