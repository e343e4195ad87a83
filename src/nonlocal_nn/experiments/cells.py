"""A cell of the grid: one variant with one seed (and fold) as an ordinary run, trained and then tested.

A cell is named by a hash of all that decides its figures, so that a finished one is found again, and cells
that are equal in two tables are trained once.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from nonlocal_nn.data.long_range import LABELS, LongRange
from nonlocal_nn.evaluation.config import TestConfig
from nonlocal_nn.experiments.tables import Table, Variant
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.training.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)

_VERSION = 1  # raise when what a cell does changes: cells of an older version are made anew
_BATCH = 32
_DEVICES = {"auto": "auto", "cpu": "cpu", "gpu": "cuda"}  # a run's accelerator, as a test calls it
_FREE = ("out", "checkpoint", "progress", "workers")  # decide nothing


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        variant, seed, fold: where it stands in the table; fold is the values that are left out, or "".
        key: the hash.
        train: its run, whose folder is `train.out`; tested into the folder `test` there.
        test: how.
        question: the rendered set it needs; None on a labelled set of the user's.
    """

    variant: str
    seed: int
    fold: str
    key: str
    train: TrainConfig
    test: TestConfig
    question: LongRange | None

    @property
    def folder(self) -> Path:
        return Path(self.train.out)

    @property
    def steps(self) -> int:
        """Of training; 0 where the recipe counts epochs."""
        return self.train.schedule.iterations or 0

    @property
    def batch_size(self) -> int:
        return self.train.optim.batch_size

    def clip_of(self, spec: VideoResNetSpec) -> tuple[int, int]:
        """Frames and side in pixels of the clips that the network sees."""
        return self.train.data.clip_frames or spec.frames, self.train.data.crop or spec.crop

    def results(self) -> dict[str, Any] | None:
        """What its test found and its training took; None where it is not finished."""
        trained, tested = read_results(self.folder), read_results(self.folder / "test")
        if trained is None or tested is None:
            return None
        return {**tested, "parameters": trained["parameters"], "train_seconds": trained["train_seconds"]}


@dataclass(frozen=True)
class Labelled:
    """A labelled set of the user's, cut into folds.

    Attributes:
        path: a csv with columns path and label.
        fold_by: the column whose values stay together.
        folds: the values of each fold; it is tested on while the network trains on the others.
        recipe: training options, for every cell; model, seed, out and rows are the cell's own.
        clips, crops, short_side: views of a test video.
    """

    path: Path
    fold_by: str
    folds: tuple[tuple[str, ...], ...]
    recipe: TrainConfig
    clips: int
    crops: Any
    short_side: int | None


def read_results(folder: Path) -> dict[str, Any] | None:
    """What a folder's results.json holds; None where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    except (OSError, ValueError):
        return None
    return found


def set_folder(root: Path, question: LongRange) -> Path:
    """Where the videos of a question are."""
    return root / "sets" / hash_of(changes(question))


def rendered_cells(table: Table, seeds: Sequence[int], root: Path, accelerator: Any) -> list[Cell]:
    """The cells of a table on the long-range set, seeds outside: a grid that is cut off is still paired."""
    return [
        _rendered_cell(table, variant, seed, root, accelerator)
        for seed in seeds
        for variant in table.variants
    ]


def labelled_cells(table: Table, seeds: Sequence[int], root: Path, labelled: Labelled) -> list[Cell]:
    """The cells of a table on a labelled set: every variant, seed and fold."""
    return [
        _labelled_cell(variant, seed, fold, root, labelled)
        for seed in seeds
        for variant in table.variants
        for fold in labelled.folds
    ]


def folds_of(path: Path, column: str, count: int) -> tuple[tuple[str, ...], ...]:
    """The values of a column in `count` folds of about as many videos, the same at every call.

    Raises:
        ValueError: no such column, or fewer values than folds.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if column not in (reader.fieldnames or ()):
            names = ", ".join(reader.fieldnames or ())
            raise ValueError(f"{path} has no column {column!r} to fold by; its columns are {names}")
        sizes = Counter(row[column] for row in reader)
    if not 2 <= count <= len(sizes):
        raise ValueError(
            f"folds = {count}: column {column!r} has {len(sizes)} values, so from 2 to {len(sizes)} folds"
        )
    folds: list[list[str]] = [[] for _ in range(count)]
    for value, _ in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        min(folds, key=lambda fold: sum(sizes[v] for v in fold)).append(value)
    return tuple(tuple(sorted(fold)) for fold in folds)


def _rendered_cell(table: Table, variant: Variant, seed: int, root: Path, accelerator: Any) -> Cell:
    question = table.question_of(variant)
    labels = str(set_folder(root, question) / LABELS)
    train = TrainConfig(
        out="",
        # Nothing may be cut off or mirrored: where things are is what the question is about.
        data=DataConfig(
            train=labels,
            train_where="set == train",
            group_by="quartet",
            clip_frames=variant.clip_frames,
            frame_stride=1,
            jitter=(question.side_pixels, question.side_pixels),
            crop=question.side_pixels,
            flip=0.0,
            workers=0,
        ),
        model=ModelConfig(name=variant.model, options=dict(variant.options)),
        optim=OptimConfig(name="adamw", lr=3e-3, weight_decay=0.01, batch_size=_BATCH),
        schedule=ScheduleConfig(iterations=table.steps, kind="cosine", warmup=25),
        precise_bn=20,
        seed=seed,
        accelerator=accelerator,
        progress=False,
        resume=True,
    )
    test = TestConfig(
        checkpoint="",
        data=labels,
        where="set == test",
        group_by="quartet",
        break_down_by="distance_pixels,distance_frames",
        clips=variant.clips,
        crops=1,
        views_per_batch=_BATCH,
        workers=0,
        device=_DEVICES[accelerator],
        progress=False,
    )
    return _named(variant, seed, "", train, test, question, root)


def _labelled_cell(
    variant: Variant, seed: int, fold: tuple[str, ...], root: Path, labelled: Labelled
) -> Cell:
    values = ", ".join(json.dumps(value) if " " in value else value for value in fold)
    recipe, path = labelled.recipe, str(labelled.path)
    train = replace(
        recipe,
        out="",
        data=replace(recipe.data, train=path, train_where=f"{labelled.fold_by} not in {values}", workers=0),
        model=ModelConfig(name=variant.model, options=dict(variant.options)),
        seed=seed,
        progress=False,
        resume=True,
    )
    test = TestConfig(
        checkpoint="",
        data=path,
        where=f"{labelled.fold_by} in {values}",
        clips=labelled.clips,
        crops=labelled.crops,
        short_side=labelled.short_side,
        workers=0,
        device=_DEVICES[recipe.accelerator],
        progress=False,
    )
    return _named(variant, seed, values, train, test, None, root)


def _named(
    variant: Variant,
    seed: int,
    fold: str,
    train: TrainConfig,
    test: TestConfig,
    question: LongRange | None,
    root: Path,
) -> Cell:
    decides: dict[str, Any] = {
        "version": _VERSION,
        "spec": changes(replace(variant.spec, name="")),
        "train": changes(train),
        "test": changes(test),
        "question": None if question is None else changes(question),
    }
    if question is not None:  # where the set lies decides nothing
        decides["train"]["data"]["train"] = decides["test"]["data"] = LABELS
    decides["train"].pop("model")  # the spec says it
    key = hash_of(decides)
    folder = root / "cells" / key
    return Cell(
        variant=variant.name,
        seed=seed,
        fold=fold,
        key=key,
        train=replace(train, out=str(folder)),
        test=replace(test, checkpoint=str(folder), out=str(folder / "test")),
        question=question,
    )


def changes(options: Any) -> dict[str, Any]:
    """The fields that are not as by default, so that a field added later leaves old keys as they are."""
    changed: dict[str, Any] = {}
    for spec in fields(options):
        value = getattr(options, spec.name)
        if is_dataclass(value):
            changed[spec.name] = changes(value)
        elif spec.default is MISSING and spec.default_factory is MISSING:
            changed[spec.name] = value
        else:
            usual = spec.default if spec.default_factory is MISSING else spec.default_factory()
            if value != usual:
                changed[spec.name] = value
    return {name: value for name, value in changed.items() if name not in _FREE}


def hash_of(value: Any) -> str:
    """A name for what decides a cell's figures."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
