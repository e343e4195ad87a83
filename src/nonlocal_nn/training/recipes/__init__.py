"""Recipes: the settings of known training runs, as YAML files beside this one, to start from by a word.

>>> "i3d_r50_nl5_32x2" in list_recipes()
True
>>> found = get_recipe("i3d_r50_nl5_32x2")
>>> found.expected, found.options["optim"]["batch_size"], found.devices
('top-1 74.9, top-5 91.6', 64, 8)
>>> config = recipe("i3d_r50_nl5_32x2", train="lists/train.csv", out="runs/nl5")
>>> config.schedule.iterations, config.schedule.milestones
(400000, (150000, 300000))

A file has two parts: `about`, what is known of the run, and `options`, those of `nonlocal train`, but for the
videos and the run folder. `base` names a file whose parts it changes; one whose name begins with _ is no
recipe by itself.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from nonlocal_nn._config_files import read_config
from nonlocal_nn._names import nearest_names
from nonlocal_nn.training.config import TrainConfig, config_from_dict

_FOLDER = Path(__file__).parent
_PARTS = ("base", "about", "options")


@dataclass(frozen=True)
class Recipe:
    """A known training run.

    Attributes:
        name: a word, as for `--recipe`.
        title: one line.
        source: where the settings are published.
        hardware: what it ran on there.
        time: how long it took there.
        expected: the published figures, of 10 clips x 3 crops.
        start: what its weights start from, in words.
        start_option: the option of `nonlocal train` that says so, with a placeholder; "" for random weights.
        notes: what is assumed where the source is silent.
        options: of `nonlocal train`.
    """

    name: str
    title: str
    source: str
    hardware: str
    time: str
    expected: str
    start: str
    start_option: str = ""
    notes: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def devices(self) -> int:
        """GPUs of the published run."""
        return int(self.options.get("devices", 1))

    @property
    def command(self) -> str:
        """How it is run.

        >>> get_recipe("tiny").command
        'nonlocal train --recipe tiny --data.train TRAIN --out RUN'
        """
        start = f" {self.start_option}" if self.start_option else ""
        return f"nonlocal train --recipe {self.name} --data.train TRAIN{start} --out RUN"


def list_recipes(pattern: str | None = None) -> list[str]:
    """The names, or those that match a shell pattern.

    >>> list_recipes("charades*")
    ['charades_i3d_r101', 'charades_i3d_r101_nl5']
    """
    names = sorted(file.stem for file in _FOLDER.glob("*.yaml") if not file.stem.startswith("_"))
    return [name for name in names if pattern is None or fnmatch.fnmatchcase(name, pattern)]


@cache
def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: no recipe has that name; the nearest are named.
    """
    if name not in list_recipes():
        near = nearest_names(name, list_recipes(), count=4, otherwise=4)
        raise ValueError(
            f"no recipe is called {name!r}; the nearest are {', '.join(near)}; `nonlocal recipes` lists them"
        )
    about, options = _read(name)
    known = {spec.name for spec in fields(Recipe)} - {"name", "options"}
    if unknown := set(about) - known:
        raise ValueError(f"recipe {name}: about has no {', '.join(sorted(unknown))}")
    return Recipe(
        name=name, options=options, **{key: " ".join(str(text).split()) for key, text in about.items()}
    )


def recipe(name: str, *, train: str, out: str, gpus: int | None = None) -> TrainConfig:
    """The config of a recipe for the videos `train` and the run folder `out`; `gpus`: see `for_gpus`.

    Raises:
        ValueError: no recipe has that name.
    """
    found = get_recipe(name)
    options = found.options if gpus is None else for_gpus(found, gpus)[0]
    return config_from_dict({**options, "out": out, "data": {**options.get("data", {}), "train": train}})


def for_gpus(found: Recipe, gpus: int) -> tuple[dict[str, Any], str]:
    """The options for another number of GPUs, and a line that says what changed.

    Clips of a GPU stay; the learning rate is in proportion to the batch, and the length, in steps, is such
    that as many clips are seen (the linear rule of Goyal et al. 2017).

    >>> options, line = for_gpus(get_recipe("i3d_r50_nl5_32x2"), 4)
    >>> line
    'i3d_r50_nl5_32x2 on 4 GPUs, not 8: batches of 32 (64), lr 0.005 (0.01), 800000 steps (400000)'
    >>> options["schedule"]["milestones"]
    [300000, 600000]

    Raises:
        ValueError: below 1, or a batch that cannot be shared out.
    """
    if gpus < 1:
        raise ValueError(f"gpus = {gpus}: it must be 1 or more")
    options = {key: dict(value) if isinstance(value, dict) else value for key, value in found.options.items()}
    if gpus == found.devices:
        return options, f"{found.name} on {gpus} GPUs, as published"
    optim, schedule = options.setdefault("optim", {}), options.setdefault("schedule", {})
    batch, lr, steps = optim["batch_size"], optim["lr"], schedule.get("iterations")
    if batch % found.devices:
        raise ValueError(f"recipe {found.name}: {batch} clips on {found.devices} GPUs cannot be shared out")
    optim["batch_size"] = batch // found.devices * gpus
    optim["lr"] = lr * gpus / found.devices
    options["devices"] = gpus
    said = f"batches of {optim['batch_size']} ({batch}), lr {optim['lr']:g} ({lr:g})"
    if steps is not None:
        longer = found.devices / gpus
        schedule["iterations"] = round(steps * longer)
        if schedule.get("milestones"):
            schedule["milestones"] = [round(step * longer) for step in schedule["milestones"]]
        said += f", {schedule['iterations']} steps ({steps})"
    return options, f"{found.name} on {gpus} GPUs, not {found.devices}: {said}"


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    values = read_config(_FOLDER / f"{name}.yaml")
    if unknown := [key for key in values if key not in _PARTS]:
        raise ValueError(f"recipe {name}: no part is called {unknown[0]!r}; there are {', '.join(_PARTS)}")
    about, options = values.get("about", {}), values.get("options", {})
    if "base" not in values:
        return about, options
    base_about, base_options = _read(values["base"])
    return {**base_about, **about}, _merged(base_options, options)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
