"""`nonlocal predict`: the likeliest classes of videos."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn._files import write_whole
from nonlocal_nn._launch import launched
from nonlocal_nn._progress import counted
from nonlocal_nn._ray import on_ray
from nonlocal_nn.commands.trained import load_trained, scores_key, scoring_of, views_of
from nonlocal_nn.data.dataset import Skipped
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.records import Manifest, look_through
from nonlocal_nn.evaluation.config import PredictConfig
from nonlocal_nn.evaluation.parts import Parts, Scored, work_through
from nonlocal_nn.evaluation.views import pooled, score_dataset

_SHOWN = 10
_KILLED = "the process that read it died, and two others after it"


@dataclass(frozen=True)
class ClassScore:
    """One class and its score, 0 to 1: the mean over the views."""

    index: int
    name: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one video, best first."""

    path: str
    classes: tuple[ClassScore, ...]

    def to_json(self) -> dict[str, Any]:
        """As one line of `--json` holds it.

        >>> Prediction("a.mp4", (ClassScore(1, "walk", 0.75),)).to_json()
        {'path': 'a.mp4', 'classes': [{'index': 1, 'class': 'walk', 'score': 0.75}]}
        """
        return {
            "path": self.path,
            "classes": [
                {"index": c.index, "class": c.name, "score": round(c.score, 6)} for c in self.classes
            ],
        }


def predict_command(config: PredictConfig) -> int:
    """Print the top classes of every video; 0 if all could be read, 1 if some could not.

    Raises:
        ValueError: no checkpoint, no video named, or options that do not fit; nothing was done.
    """
    if config.checkpoint is None:
        raise ValueError(
            "no network to ask: give --checkpoint with a run folder or a model.safetensors. No trained "
            "weights come with this package; `nonlocal demo` or `nonlocal train` makes some"
        )
    if not config.videos:
        raise ValueError("no video given: nonlocal predict VIDEO_OR_FOLDER ... --checkpoint RUN")
    if config.top < 1:
        raise ValueError(f"top = {config.top}: at least one class must be shown")
    processes = launched().processes
    if processes > 1 and config.out is None:
        raise ValueError(
            f"{processes} processes share the videos out: --out FILE says where they join their parts"
        )
    if config.ray is not None and (processes > 1 or config.out is None):
        raise ValueError(
            "--ray shares the videos out by itself: start one process, without torchrun or srun"
            if processes > 1
            else "--ray needs --out FILE, where the results are joined and kept as they come"
        )
    if config.out is not None:
        return _write(config, config.checkpoint, Path(config.out))
    failures = 0
    shown: list[Prediction] = []
    for item in predict(config, config.checkpoint):
        if isinstance(item, Problem):
            failures += 1
            print(f"nonlocal: {item}", file=sys.stderr, flush=True)
            if config.json:
                print(json.dumps({"path": item.path, "error": item.reason}), flush=True)
        elif config.json:
            print(json.dumps(item.to_json()), flush=True)
        else:
            shown.append(item)
    if shown:
        _print_table(shown)
    return 1 if failures else 0


def predict(config: PredictConfig, checkpoint: str) -> Iterator[Prediction | Problem]:
    """Each video in turn: its likeliest classes, or why it could not be read."""
    paths, problems = find(config.videos)
    yield from problems
    if not paths:
        return
    trained = load_trained(checkpoint, config.device)
    manifest = Manifest.of_paths(paths)
    # A bar and JSON on one screen would write over each other.
    progress = config.progress and not (config.json and sys.stdout.isatty())
    items = score_dataset(
        trained.model,
        views_of(manifest, config, trained),
        scoring_of(config, trained),
        workers=config.workers,
        progress=progress,
    )
    for item in items:
        if isinstance(item, Skipped):
            yield item.problem
            continue
        yield _best(manifest.records[item.index].path, item.mean, trained.classes, config.top)


def _best(path: str, scores: NDArray[np.float64], classes: Sequence[str], top: int) -> Prediction:
    best = np.argsort(-scores, kind="stable")[:top]
    return Prediction(path, tuple(ClassScore(int(c), classes[c], float(scores[c])) for c in best))


def _write(config: PredictConfig, checkpoint: str, out: Path) -> int:
    """All videos, by all processes, into one file of JSON lines; what is done is kept until it is whole."""
    paths, problems = find(config.videos)
    trained = load_trained(checkpoint, config.device)
    manifest = Manifest.of_paths(paths)
    scoring = scoring_of(config, trained)
    dataset = views_of(manifest, config, trained)
    parts = Parts(out.with_name(f".{out.name}.parts"), scores_key(trained, dataset, scoring, config.device))

    def score(indices: list[int]) -> Iterable[Scored | Skipped]:
        progress = config.progress and launched().rank == 0
        if config.ray is not None:
            scored = on_ray(
                config.ray,
                partial(_Scorer, config, checkpoint, paths),
                indices,
                died=lambda index: Skipped(index, Problem(paths[index], _KILLED)),
                called=lambda index: paths[index],
                workers=config.workers,
                on_gpus=config.device == "auto" or config.device.startswith("cuda"),
            )
            return counted(scored, len(indices), "scoring", shown=progress)
        items = score_dataset(
            trained.model, dataset, scoring, only=indices, workers=config.workers, progress=progress
        )
        return pooled(items, scoring, labelled=False)

    found = work_through(parts, len(paths), score)
    if found is None:
        return 0
    bad = [*problems, *(item.problem for item in found if isinstance(item, Skipped))]
    lines = [json.dumps({"path": problem.path, "error": problem.reason}) for problem in problems]
    for item in found:
        if isinstance(item, Skipped):
            lines.append(json.dumps({"path": item.problem.path, "error": item.problem.reason}))
        else:
            best = _best(paths[item.index], item.scores, trained.classes, config.top)
            lines.append(json.dumps(best.to_json()))
    write_whole(out, lambda partial: partial.write_text("".join(f"{line}\n" for line in lines)))
    parts.remove()
    for problem in bad[:_SHOWN]:
        sys.stderr.write(f"nonlocal: {problem}\n")
    if len(bad) > _SHOWN:
        sys.stderr.write(f"nonlocal: and {len(bad) - _SHOWN} more, all of them in {out}\n")
    print(f"{len(found) - len(bad) + len(problems)} videos: {out}")
    return 1 if bad else 0


class _Scorer:
    """The network in a process of a Ray cluster, and the videos by number."""

    def __init__(self, config: PredictConfig, checkpoint: str, paths: list[str]) -> None:
        self._trained = load_trained(checkpoint, config.device)
        self._dataset = views_of(Manifest.of_paths(paths), config, self._trained)
        self._scoring = scoring_of(config, self._trained)

    def __call__(self, number: int, /) -> Scored | Skipped:
        items = score_dataset(self._trained.model, self._dataset, self._scoring, only=[number], workers=0)
        (scored,) = pooled(items, self._scoring, labelled=False)
        return scored


def find(places: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """The videos that files and folders name, and the folders without any.

    >>> find(["a.mp4", "b.mp4"])                     # whether a file is there shows when it is opened
    (['a.mp4', 'b.mp4'], [])
    """
    paths: list[str] = []
    problems: list[Problem] = []
    for place in places:
        try:
            is_folder = Path(place).is_dir()
        except OSError as error:  # in a folder that may not be entered
            problems.append(Problem(place, f"cannot be looked at: {error.strerror}"))
            continue
        if not is_folder:
            paths.append(place)
            continue
        inside = look_through(place)
        paths += inside.paths
        problems += inside.problems
        if not inside.paths and not inside.problems:
            problems.append(Problem(place, "there is no video in this folder"))
    return paths, problems


def _print_table(predictions: Sequence[Prediction]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("video", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("class", overflow="fold")
    for prediction in predictions:
        for rank, entry in enumerate(prediction.classes):
            path = "" if rank else prediction.path
            last = rank == len(prediction.classes) - 1
            # Text, not str: a file name may look like markup
            table.add_row(Text(path), f"{100 * entry.score:.1f}%", Text(entry.name), end_section=last)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to fit
        console = Console(width=10_000)
    console.print(table)
