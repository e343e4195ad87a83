"""`nonlocal demo`: what a non-local block is good for, seen on real video files in a few minutes."""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonlocal_nn.data.defaults import RENDERED_TEST_VIDEOS, RENDERED_TRAIN_VIDEOS

if TYPE_CHECKING:
    from rich.console import Console

    from nonlocal_nn.data.rendered import RenderedSet
    from nonlocal_nn.training.config import TrainConfig

BASELINE, NONLOCAL = "c2d_tiny", "c2d_tiny_nl2"
CHANCE_PERCENT = 50.0  # two classes, equally frequent
CLIPS = 1  # the logits of one clip, not the mean of several scores: the tie of the baseline is exact


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Render a set of videos, train two networks on it with the same budget, and compare them.

    A video shows a handwritten digit early in one corner and another late in the opposite corner; the
    question is whether they are the same digit. The baseline (c2d_tiny) sees one place at a time; the other
    network (c2d_tiny_nl2) has two non-local blocks more. Both are tested on handwriting they never saw: by
    single videos, and by quartets of matched videos, where a network that cannot relate the two places ties.
    Interrupted, the same command goes on where it stopped.
    """

    seeds: int = 1
    """Train both networks this many times, with seeds 0, 1, ...; three show the spread."""
    out: str = "runs/demo"
    """Folder for the videos, the runs and results.json."""
    epochs: int = 6
    """Passes over the training videos, the same for both networks."""
    train_videos: int = RENDERED_TRAIN_VIDEOS
    """Videos to train on, a multiple of 4."""
    test_videos: int = RENDERED_TEST_VIDEOS
    """Held-out videos, a multiple of 4."""
    fresh: bool = False
    """Start from nothing, even where an earlier demo can be gone on with."""
    progress: bool = True
    """Show progress bars."""


def demo_command(config: DemoConfig) -> int:
    """Render, train, test, predict and explain one video, print the comparison, write results.json; 0.

    Raises:
        ValueError: numbers that cannot be, or a folder with a demo of other settings.
    """
    from rich.console import Console

    if config.seeds < 1 or config.epochs < 1:
        raise ValueError(f"seeds = {config.seeds}, epochs = {config.epochs}: both must be 1 or more")
    console = Console(stderr=True)
    out = Path(config.out)
    _open_folder(out, config)
    videos = _render(out / "videos", config, console)
    runs = []
    for seed in range(config.seeds):
        for model in (BASELINE, NONLOCAL):
            runs.append(_train_and_test(model, seed, videos, config, console))
            _write_results(out, runs)  # after each: what is finished is kept
    _print_comparison(runs)
    video, run = min(videos.test.rglob("*.mp4")), out / f"{NONLOCAL}_seed0"
    _predict_one(video, run)
    _explain_one(video, run, out)
    print(f"results: {out / 'results.json'}")
    return 0


def _settings(config: DemoConfig) -> dict[str, Any]:
    """What decides the results of one seed; more seeds may be added to a demo later."""
    return {
        name: value
        for name, value in asdict(config).items()
        if name in ("epochs", "train_videos", "test_videos")
    }


def _open_folder(out: Path, config: DemoConfig) -> None:
    """Make the folder, or make sure that the demo begun there is this one."""
    marker = out / "demo.json"
    if out.exists() and any(out.iterdir()):
        if not marker.exists():
            raise ValueError(f"{out} has files that are not of a demo; give another folder with --out")
        if config.fresh:
            shutil.rmtree(out)
        else:
            before = json.loads(marker.read_text())
            changes = [
                f"{k}: {before.get(k)} -> {v}" for k, v in _settings(config).items() if before.get(k) != v
            ]
            if changes:
                raise ValueError(
                    f"{out} holds a demo with other settings ({', '.join(changes)}); "
                    "--fresh starts it anew, --out puts this one elsewhere"
                )
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(_settings(config)) + "\n")


def _render(folder: Path, config: DemoConfig, console: Console) -> RenderedSet:
    from nonlocal_nn._progress import percent_bar
    from nonlocal_nn.data.rendered import render

    with percent_bar("rendering videos", shown=config.progress, console=console) as progress:
        made = render(
            folder,
            train_videos=config.train_videos,
            test_videos=config.test_videos,
            progress=progress,
        )
    console.print(
        f"{made.train_videos} training and {made.test_videos} held-out videos in {folder}", highlight=False
    )
    return made


def recipe(model: str, seed: int, train_list: Path, out: Path, epochs: int, progress: bool) -> TrainConfig:
    """The budget both networks get: everything but the name of the model is the same.

    The four videos of a quartet share a batch: what they have in common, which tells nothing of the label,
    then cancels in the gradient. Drawn singly it is noise, and training waits on it (docs/results.md).

    >>> one = recipe("c2d_tiny", 0, Path("videos/train.csv"), Path("run"), 8, False)
    >>> one.optim.batch_size, one.schedule.epochs, one.data.jitter
    (32, 8, (48, 48))
    """
    from nonlocal_nn.data.rendered import SIDE_PIXELS
    from nonlocal_nn.training.config import (
        DataConfig,
        ModelConfig,
        OptimConfig,
        ScheduleConfig,
        TrainConfig,
    )

    return TrainConfig(
        out=str(out),
        # The corners are what the question is about: no crop may cut them off, no flip exchange them.
        data=DataConfig(
            train=str(train_list),
            group_by="quartet",
            jitter=(SIDE_PIXELS, SIDE_PIXELS),
            crop=SIDE_PIXELS,
            flip=0.0,
        ),
        model=ModelConfig(name=model),
        optim=OptimConfig(name="adamw", lr=3e-3, weight_decay=0.01, batch_size=32),
        schedule=ScheduleConfig(epochs=epochs, kind="cosine", warmup=min(1.0, epochs / 2)),
        precise_bn=20,
        seed=seed,
        accelerator="cpu",
        progress=progress,
        resume=True,
    )


def _train_and_test(
    model: str, seed: int, videos: RenderedSet, config: DemoConfig, console: Console
) -> dict[str, Any]:
    from nonlocal_nn.commands.test import run_test
    from nonlocal_nn.evaluation.config import TestConfig
    from nonlocal_nn.training.run import train

    run = Path(config.out) / f"{model}_seed{seed}"
    console.print(f"{model}, seed {seed}", style="bold", highlight=False)
    trained = train(recipe(model, seed, videos.train_list, run, config.epochs, config.progress))
    _, tested = run_test(
        TestConfig(
            checkpoint=str(run),
            data=str(videos.test_list),
            clips=CLIPS,
            crops=1,
            views_per_batch=32,
            device="cpu",
            group_by="quartet",
            progress=config.progress,
        )
    )
    return {
        "model": model,
        "seed": seed,
        "parameters": trained["parameters"],
        "clip_top1": tested["clip_top1"],
        "video_top1": tested["video_top1"],
        "quartets_right": tested["quartets_right"],
        "quartets_tied": tested["quartets_tied"],
        "train_seconds": trained["train_seconds"],
    }


def _write_results(out: Path, runs: list[dict[str, Any]]) -> None:
    from nonlocal_nn._files import write_whole

    text = json.dumps({"chance": CHANCE_PERCENT, "runs": runs}, indent=2) + "\n"
    write_whole(out / "results.json", lambda partial: partial.write_text(text))


def _print_comparison(runs: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Held-out videos: is it the same digit?")
    for name in ("model", "seed", "parameters", "videos right %", "quartets right %", "ties %", "training s"):
        left = name == "model"
        table.add_column(name, justify="left" if left else "right", no_wrap=left)
    for run in runs:
        table.add_row(
            run["model"],
            str(run["seed"]),
            f"{run['parameters']:,}",
            f"{run['video_top1']:.1f}",
            f"{run['quartets_right']:.1f}",
            f"{run['quartets_tied']:.1f}",
            f"{run['train_seconds']:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(
        "a quartet is right where the two videos of the same digit outweigh the two others; a network that "
        "cannot relate the two corners ties, whatever its weights: 50 %",
        highlight=False,
    )
    scores = {name: [r["video_top1"] for r in runs if r["model"] == name] for name in (BASELINE, NONLOCAL)}
    gains = [after - before for before, after in zip(scores[BASELINE], scores[NONLOCAL], strict=True)]
    spread = f" (from {min(gains):.1f} to {max(gains):.1f} over {len(gains)} seeds)" if len(gains) > 1 else ""
    console.print(
        f"videos right: chance {CHANCE_PERCENT:.1f} %, baseline {statistics.mean(scores[BASELINE]):.1f} %, "
        f"with two non-local blocks {statistics.mean(scores[NONLOCAL]):.1f} %: "
        f"{statistics.mean(gains):+.1f} points{spread}",
        highlight=False,
    )


def _predict_one(video: Path, run: Path) -> None:
    from nonlocal_nn.commands.predict import predict_command
    from nonlocal_nn.evaluation.config import PredictConfig

    print(f"one held-out video, which is {video.parent.name!r}, seen by {NONLOCAL}:")
    print(f"  nonlocal predict {video} --checkpoint {run} --clips {CLIPS} --crops 1", flush=True)
    predict_command(
        PredictConfig(
            videos=[str(video)],
            checkpoint=str(run),
            clips=CLIPS,
            crops=1,
            workers=0,
            device="cpu",
            progress=False,
        )
    )


def _explain_one(video: Path, run: Path, out: Path) -> None:
    """A figure and a page of what the blocks relate in the video; there, and how to make others."""
    from nonlocal_nn.commands.explain import capture_video
    from nonlocal_nn.commands.trained import load_trained
    from nonlocal_nn.explain.config import ExplainConfig
    from nonlocal_nn.explain.explanation import Explanation
    from nonlocal_nn.explain.view import View

    captured = capture_video(str(video), ExplainConfig(), load_trained(str(run), "cpu"))
    explanation = Explanation(captured, View(block="all", show="both"))
    figure, page = explanation.save(out / "explain.png"), explanation.save(out / "explain.html")
    print(f"what its blocks relate in this video: {figure}")
    print(f"the same to click in, in a browser:   {page}")
    print(f"  nonlocal explain {video} --checkpoint {run} --out {page}", flush=True)
