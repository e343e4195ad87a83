"""`nonlocal detect test`: what detections are worth, as COCO counts it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nonlocal_nn._files import write_whole
from nonlocal_nn.data.categories import Task
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.detection.config import DetectTestConfig, ScoredTask
from nonlocal_nn.detection.score import Scores, Truth, score_results

_SHOWN = 10


def detect_test_command(config: DetectTestConfig) -> int:
    """Score, print, write; 1 if some results could not be used, else 0.

    Raises:
        FileNotFoundError, ValueError: files that are not there or are something else, results of other
            images, or numbers that cannot be.
    """
    if config.out is not None and Path(config.out).suffix != ".json":
        raise ValueError(f"out must end in .json, not {config.out!r}")
    results = read_results(config.results)
    task = _task_of(results, config.task)
    truth = Truth.read(config.data, task)
    scores = score_results(truth, results, task, max_detections=config.max_detections, sigmas=config.sigmas)
    problems = (*truth.problems, *scores.problems)
    values = _values(config, task, truth, results, scores)
    if config.json:
        print(json.dumps(values, indent=2))
    else:
        _say(problems, truth.notes)
        _print(task, scores)
        images = len({one["image_id"] for one in results if _counts(one)})
        print(
            f"{len(results)} results with {task} in {images} of {len(truth.images)} images"
            + (f"; {len(scores.problems)} could not be used" if scores.problems else "")
        )
        if not results:
            print("there are no detections: every AP is 0")
        if scores.left_out:
            few = ", ".join(scores.left_out[:5]) + (" ..." if len(scores.left_out) > 5 else "")
            print(f"categories without truth, left out: {len(scores.left_out)} ({few})")
    if config.out is not None:
        text = json.dumps(values, indent=2) + "\n"
        write_whole(Path(config.out), lambda partial: partial.write_text(text))
    return 1 if scores.problems else 0


def read_results(path: str) -> list[Any]:
    """The list of a results file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON, or no list.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if isinstance(values, dict) and "annotations" in values:
        raise ValueError(f"{file} holds annotations; results are a list of detections with scores")
    if not isinstance(values, list):
        raise ValueError(f"{file} holds {type(values).__name__}; results are a list of detections")
    return values


def _task_of(results: Sequence[Any], wanted: ScoredTask) -> Task:
    if wanted != "auto":
        return wanted
    fields = {name for one in results if isinstance(one, dict) for name in one}
    return "keypoints" if "keypoints" in fields else "masks" if "segmentation" in fields else "boxes"


def _counts(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("image_id"), (int, str))


def _values(
    config: DetectTestConfig, task: Task, truth: Truth, results: Sequence[Any], scores: Scores
) -> dict[str, Any]:
    return {
        "data": config.data,
        "results": config.results,
        "task": task,
        "images": len(truth.images),
        "detections": len(results),
        **scores.numbers,
        "by_category": scores.by_category,
        "categories_without_truth": list(scores.left_out),
        "notes": list(truth.notes),
        "problems": [[path, reason] for path, reason in (*truth.problems, *scores.problems)],
    }


def _say(problems: Sequence[Problem], notes: Sequence[str]) -> None:
    for note in notes:
        sys.stderr.write(f"{note}\n")
    for problem in problems[:_SHOWN]:
        sys.stderr.write(f"{problem}\n")
    if len(problems) > _SHOWN:
        sys.stderr.write(f"and {len(problems) - _SHOWN} more (--out FILE.json lists all)\n")


def _print(task: Task, scores: Scores) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to fit
        console = Console(width=10_000)
    for title, rows in ((task, scores.numbers), ("category", scores.by_category)):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(title, overflow="fold")
        table.add_column("AP %" if title == "category" else "%", justify="right")
        for name, value in rows.items():
            table.add_row(escape(name), "-" if value is None else f"{100 * value:.2f}")
        if rows:
            console.print(table)
