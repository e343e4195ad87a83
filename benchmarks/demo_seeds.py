"""Does the demo hang on luck? Its non-local network from many seeds, and from weights a millionth apart.

    python3 run.py bench demo_seeds                        # 20 seeds, each plain and disturbed: 40 trainings
    python3 run.py bench demo_seeds --seeds 3 --jobs 1
    python3 run.py bench demo_seeds --markdown             # the table of what is there; trains nothing

Every training is the demo's own (`recipe` in nonlocal_nn/commands/demo.py) and is tested on the demo's
held-out videos. "Disturbed": the first weights times 1 + 1e-6 z, z normal, each number by itself: more than
the rounding of another processor. Finished trainings are kept in --out, so that the same call goes on after a
stop.
Exit code 1 where a training ends below --least percent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

DISTURBANCE = 1e-6


def main(arguments: list[str] | None = None) -> int:
    """Train what is not there yet, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="from 0 on (default %(default)s)")
    parser.add_argument("--model", help="network of the catalog (default: the demo's non-local one)")
    parser.add_argument("--jobs", type=int, help="trainings at once, one core each (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo_seeds"), help="(default %(default)s)")
    parser.add_argument("--least", type=float, default=95.0, help="percent asked for (default %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown, train nothing")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: one core for each training

    from nonlocal_nn._cores import available_cores
    from nonlocal_nn._progress import percent_bar
    from nonlocal_nn.commands.demo import NONLOCAL
    from nonlocal_nn.data.rendered import render

    model = options.model or NONLOCAL
    asked = [(model, seed, disturbed) for seed in range(options.seeds) for disturbed in (False, True)]
    if not options.markdown:
        with percent_bar("rendering videos", shown=True) as progress:
            render(options.out / "videos", progress=progress)
        jobs = options.jobs or available_cores()
        with ProcessPoolExecutor(jobs) as pool:
            running = [
                pool.submit(train_one, options.out, *one)
                for one in asked
                if not _file(options.out, *one).exists()
            ]
            for number, done in enumerate(as_completed(running), 1):
                found = done.result()
                print(f"{number}/{len(running)} {found}", flush=True)
    found = [
        json.loads(file.read_text()) for file in (_file(options.out, *one) for one in asked) if file.exists()
    ]
    print(table(found))
    return 1 if any(run["videos_right"] < options.least for run in found) else 0


def train_one(out: Path, model: str, seed: int, disturbed: bool) -> dict[str, Any]:
    """Train and test once; what was found, also as a file."""
    import torch

    import nonlocal_nn as nl
    from nonlocal_nn.commands.demo import recipe
    from nonlocal_nn.commands.test import run_test
    from nonlocal_nn.data.rendered import CLASSES
    from nonlocal_nn.evaluation.config import TestConfig
    from nonlocal_nn.training.model import make_model
    from nonlocal_nn.training.run import train

    run = out / _name(model, seed, disturbed)
    config = recipe(model, seed, out / "videos" / "train.csv", run, epochs=6, progress=False)
    config = replace(config, data=replace(config.data, workers=0))
    if disturbed:
        network, _ = make_model(config.model, CLASSES, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1 + DISTURBANCE * torch.randn(parameter.shape, generator=generator))
        first = out / f"{run.name}_first.safetensors"
        nl.save_model(network, first)
        config = replace(config, model=replace(config.model, weights=str(first)))
    with (out / f"{run.name}.log").open("w") as log:
        os.dup2(log.fileno(), 2)  # what each training says, beside its run
    trained = train(config)
    _, tested = run_test(
        TestConfig(
            checkpoint=str(run),
            data=str(out / "videos" / "test.csv"),
            clips=1,
            crops=1,
            views_per_batch=32,
            device="cpu",
            workers=0,
            group_by="quartet",
            progress=False,
        )
    )
    found = {
        "model": model,
        "seed": seed,
        "disturbed": disturbed,
        "videos_right": tested["video_top1"],
        "quartets_right": tested["quartets_right"],
        "quartets_tied": tested["quartets_tied"],
        "off_the_plateau": _off_the_plateau(run / "metrics.csv"),
        "train_seconds": trained["train_seconds"],
    }
    _file(out, model, seed, disturbed).write_text(json.dumps(found) + "\n")
    return found


def table(found: list[dict[str, Any]]) -> str:
    """One line a seed: percent of videos right and step off the plateau, plain and disturbed."""
    lines = [
        "| seed | videos right, % | disturbed | quartets right, % | disturbed | plateau left | disturbed |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed in sorted({run["seed"] for run in found}):
        pair = [
            next((r for r in found if (r["seed"], r["disturbed"]) == (seed, disturbed)), None)
            for disturbed in (False, True)
        ]
        cells = [
            "" if run is None else run[name] if isinstance(run[name], int) else f"{run[name]:.1f}"
            for name in ("videos_right", "quartets_right", "off_the_plateau")
            for run in pair
        ]
        lines.append(f"| {seed} | {' | '.join(str(cell) for cell in cells)} |")
    right = [run["videos_right"] for run in found]
    if right:
        lines.append(
            f"\n{len(right)} trainings: least {min(right):.1f} %, median {statistics.median(right):.1f} %, "
            f"mean {statistics.mean(right):.1f} %"
        )
    return "\n".join(lines)


def _off_the_plateau(metrics: Path) -> int:
    """The first step from which the logged loss stays below 0.6 (a coin's is 0.693); -1 if it never does."""
    import csv

    with metrics.open(newline="") as file:
        rows = [
            (int(row["step"]), float(row["train_loss"]))
            for row in csv.DictReader(file)
            if row.get("train_loss")
        ]
    below = -1
    for step, loss in rows:
        if loss >= 0.6:
            below = -1
        elif below < 0:
            below = step
    return below


def _name(model: str, seed: int, disturbed: bool) -> str:
    return f"{model}_seed{seed}{'_disturbed' if disturbed else ''}"


def _file(out: Path, model: str, seed: int, disturbed: bool) -> Path:
    return out / f"{_name(model, seed, disturbed)}.json"


if __name__ == "__main__":
    sys.exit(main())
