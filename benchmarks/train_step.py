"""Where the time of a training step goes: waiting for data, forward, backward, optimizer.

    python benchmarks/train_step.py                       # c2d_tiny_nl2 on videos rendered on the spot
    python benchmarks/train_step.py --model i3d_r50_nl5 --batch-size 8 --device cuda

Prints a table and writes JSON (`--out`). Each phase is timed with the device synchronised, so the sum is a
little more than an undisturbed step takes. "data" is what the loop waits for, not what decoding costs: with
enough workers it is near 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from nonlocal_nn.data.dataset import collate_samples
from nonlocal_nn.data.rendered import render
from nonlocal_nn.data.transforms import normalize
from nonlocal_nn.training.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from nonlocal_nn.training.datamodule import make_datasets
from nonlocal_nn.training.inputs import clip_shape, read_manifests
from nonlocal_nn.training.model import make_model
from nonlocal_nn.training.optim import make_loss, make_optimizer
from nonlocal_nn.training.processes import cores_for_each, default_threads, default_workers
from nonlocal_nn.training.sampler import SampleStream, StepBatches

PHASES = ("data", "forward", "backward", "optimizer")


def measure(config: TrainConfig, device: torch.device, steps: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each phase of `steps` steps, after `warmup` that are not counted."""
    manifests = read_manifests(config.data)
    model, _ = make_model(config.model, manifests.train.classes, config.seed)
    assert model.spec is not None
    dataset, _ = make_datasets(config, manifests, clip_shape(config.data, model.spec))
    stream = SampleStream(len(dataset), config.seed)
    workers = config.data.workers
    if workers is None:
        workers = default_workers(cores_for_each(1), on_gpu=device.type == "cuda")
    if device.type == "cpu":
        torch.set_num_threads(default_threads(cores_for_each(1), workers, os.environ.get("OMP_NUM_THREADS")))
    loader = DataLoader(
        dataset,
        batch_sampler=StepBatches(stream, config.optim.batch_size, stop_step=steps + warmup),  # type: ignore[arg-type]
        collate_fn=collate_samples,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    model.to(device).train()
    optimizer = make_optimizer(model, config.optim)
    loss_of = make_loss("cross_entropy", config.optim.label_smoothing)
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    batches = iter(loader)
    for _ in range(steps + warmup):
        marks = [_now(device)]
        batch = next(batches)
        clips: Tensor = normalize(batch.video.to(device, non_blocking=True))
        marks.append(_now(device))
        loss = loss_of(model(clips), batch.labels.to(device))
        marks.append(_now(device))
        optimizer.zero_grad()
        loss.backward()
        marks.append(_now(device))
        optimizer.step()
        marks.append(_now(device))
        for phase, begin, end in zip(PHASES, marks, marks[1:], strict=False):
            seconds[phase].append(end - begin)
    return {phase: times[warmup:] for phase, times in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="c2d_tiny_nl2")
    parser.add_argument("--data", help="training videos (class folders); none: render some")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--workers", type=int, default=None, help="decoding processes; none: as in training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/train_step.json"))
    given = parser.parse_args()
    device = torch.device(given.device)
    with tempfile.TemporaryDirectory() as folder:
        videos = given.data
        if videos is None:
            videos = str(render(folder, train_videos=128, test_videos=8).train)
        config = TrainConfig(
            out="",
            data=DataConfig(train=videos, workers=given.workers),
            model=ModelConfig(given.model),
            optim=OptimConfig(batch_size=given.batch_size),
        )
        seconds = measure(config, device, given.steps, given.warmup)
    medians = {phase: statistics.median(times) * 1e3 for phase, times in seconds.items()}
    whole = sum(medians.values())
    table = Table(title=f"{given.model}, {given.batch_size} clips a step, {device}: median")
    for column in ("phase", "ms", "share"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase, milliseconds in medians.items():
        table.add_row(phase, f"{milliseconds:.1f}", f"{100 * milliseconds / whole:.0f}%")
    table.add_row("step", f"{whole:.1f}", f"{given.batch_size / whole * 1e3:.0f} clips/s")
    Console().print(table)
    report = {
        "model": given.model,
        "batch_size": given.batch_size,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "workers": given.workers,
        "torch": torch.__version__,
        "median_ms": {phase: round(value, 3) for phase, value in medians.items()},
        "step_ms": round(whole, 3),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
