"""Where the time of a training step goes: read, decode, transform, transfer, compute; and what is waited for.

    python3 run.py bench pipeline                                  # c2d_tiny_nl1 on a CPU
    python3 run.py bench pipeline --model i3d_r50_nl5 --batch-size 8 --device cuda --workers 1 2 4 8 16
    python3 run.py bench pipeline --data train.csv --out pipeline.json

Two tables. The first takes one step apart, in one process, one thread for the data: how long the clips of a
step take to be read from the disk, decoded and made ready, and how long the device takes for them. Their sum
is what a step would take if nothing went side by side. The second trains with 1 to 16 loader processes, from
plain files, with an index (`nonlocal scan --index`) and from shards (`nonlocal shard`), and tells which share
of the time the device waits for data: `waiting` in the metrics.csv of a run.

Without --data, videos of 340 x 256, 300 frames, are written first. Files that were just written are in the
system's cache: on a network disk "read" is larger.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from _machine import available_cores, describe
from _videos import make_video
from nonlocal_nn.cli import main as nonlocal_command
from nonlocal_nn.data.dataset import ClipBatch, ClipDataset, SampleKey, collate_samples
from nonlocal_nn.data.decode import Clip, VideoReader
from nonlocal_nn.data.shards import open_member
from nonlocal_nn.data.steady import SteadyLoader
from nonlocal_nn.data.table import VideoRecord
from nonlocal_nn.data.transforms import TrainTransform, normalize
from nonlocal_nn.evaluation.config import Precision
from nonlocal_nn.evaluation.device import autocast
from nonlocal_nn.training.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from nonlocal_nn.training.datamodule import make_datasets
from nonlocal_nn.training.inputs import clip_shape, read_manifests
from nonlocal_nn.training.model import make_model
from nonlocal_nn.training.optim import make_loss, make_optimizer
from nonlocal_nn.training.sampler import SampleStream, StepBatches

PHASES = ("read", "decode", "transform", "collate", "transfer", "forward", "backward", "optimizer")
SOURCES = ("files", "index", "shards")


class Clock:
    """Seconds by phase of the step in hand."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        """Time what is done meanwhile; on a GPU, until it is done."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            self.seconds[name] += time.perf_counter() - start


class TimedFile(io.RawIOBase):
    """A file whose reading is timed apart from decoding."""

    def __init__(self, path: str, clock: Clock) -> None:
        super().__init__()
        with clock.phase("read"):
            self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._clock = clock

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        with self._clock.phase("read"):
            return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


class TimedDataset(ClipDataset):
    """The clips of a data set, with the time of each part of the way."""

    def __init__(self, plain: ClipDataset, clock: Clock) -> None:
        super().__init__(
            plain.manifest,
            clip_frames=plain.clip_frames,
            frame_stride=plain.frame_stride,
            transform=plain.transform,
            seed=plain.seed,
            known=plain._known,
        )
        self._clock = clock
        self.transform = TimedTransform(plain.transform, clock)  # type: ignore[assignment]

    def _open(self, video: int, record: VideoRecord, threads: int) -> VideoReader:
        table = None if self._known is None else self._known.table(video)
        data = open_member(record) or TimedFile(record.path, self._clock)
        return VideoReader(record.path, threads=threads, data=data, table=table)


class TimedTransform:
    """A transform that tells how long it takes."""

    def __init__(self, plain: TrainTransform, clock: Clock) -> None:
        self.plain, self.clock = plain, clock

    def __call__(self, clip: Clip, generator: np.random.Generator) -> Tensor:
        with self.clock.phase("transform"):
            return self.plain(clip, generator)


class Step:
    """Forward, backward and optimizer of one batch."""

    def __init__(
        self, config: TrainConfig, classes: tuple[str, ...], device: torch.device, precision: Precision
    ) -> None:
        model, _ = make_model(config.model, classes, config.seed)
        self.spec = model.spec
        self.model: nn.Module = model.to(device).train()
        self.optimizer = make_optimizer(model, config.optim)
        self.loss = make_loss("cross_entropy", config.optim.label_smoothing)
        self.device, self.precision = device, precision

    def __call__(self, batch: ClipBatch, clock: Clock) -> None:
        with clock.phase("transfer", self.device):
            clips = normalize(batch.video.to(self.device, non_blocking=True))
            labels = batch.labels.to(self.device)
        with clock.phase("forward", self.device):
            with autocast(self.device, self.precision):
                logits = self.model(clips)
            loss = self.loss(logits.float(), labels)
        self.optimizer.zero_grad()
        with clock.phase("backward", self.device):
            loss.backward()
        with clock.phase("optimizer", self.device):
            self.optimizer.step()


def take_apart(
    step: Step, dataset: ClipDataset, batch_size: int, steps: int, warmup: int
) -> dict[str, float]:
    """The median seconds of each phase of a step."""
    seen: list[dict[str, float]] = []
    stream = SampleStream(len(dataset), seed=0)
    for number in range(warmup + steps):
        clock = Clock()
        timed = TimedDataset(dataset, clock)
        keys: list[SampleKey] = stream[number * batch_size : (number + 1) * batch_size]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a loader's process
        start = time.perf_counter()
        samples = [timed[key] for key in keys]
        known = clock.seconds["read"] + clock.seconds["transform"]
        clock.seconds["decode"] = time.perf_counter() - start - known
        with clock.phase("collate"):
            batch = collate_samples(samples)
        torch.set_num_threads(threads)
        step(batch, clock)
        seen.append(clock.seconds)
    return {phase: statistics.median(one[phase] for one in seen[warmup:]) for phase in PHASES}


def wait(
    step: Step, dataset: ClipDataset, batch_size: int, workers: int, steps: int, warmup: int
) -> tuple[float, float]:
    """Which share of the time is waited for data, and clips a second, with so many loader processes."""
    batches = StepBatches(SampleStream(len(dataset), seed=0), batch_size, stop_step=steps + warmup)
    clip_bytes = 3 * dataset.clip_frames * dataset.transform.crop**2
    loader: SteadyLoader[ClipBatch] = SteadyLoader(
        dataset,
        batches,
        collate_samples,
        batch_bytes=clip_bytes * batch_size,
        workers=workers,
        pin_memory=step.device.type == "cuda",
    )
    waited = 0.0
    running = iter(loader)
    for number in range(steps + warmup):
        if number == warmup:
            begin, waited = time.perf_counter(), 0.0
        start = time.perf_counter()
        batch = next(running)
        waited += time.perf_counter() - start
        step(batch, Clock())
    seconds = time.perf_counter() - begin
    loader.close()
    return waited / seconds, steps * batch_size / seconds


def sources(folder: Path, data: str | None, videos: int) -> dict[str, DataConfig]:
    """The same videos as plain files, with an index, and in shards."""
    if data is None:
        for number in range(videos):
            (folder / "videos" / str(number % 2)).mkdir(parents=True, exist_ok=True)
            make_video(folder / "videos" / str(number % 2) / f"{number}.mp4", seed=number)
        data = str(folder / "videos")
    index, shards = str(folder / "index.npz"), str(folder / "shards")
    for arguments in (["scan", data, "--index", index], ["shard", data, shards]):
        if nonlocal_command(arguments) > 1:
            raise SystemExit(f"nonlocal {' '.join(arguments)} failed")
    return {"files": DataConfig(data), "index": DataConfig(data, index=index), "shards": DataConfig(shards)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="c2d_tiny_nl1", help="default %(default)s")
    parser.add_argument("--data", help="training videos in any form `nonlocal train` takes; none: made here")
    parser.add_argument("--videos", type=int, default=16, help="how many are made (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="clips of a step (default %(default)s)")
    parser.add_argument("--clip-frames", type=int, help="none: what the model is made for")
    parser.add_argument("--crop", type=int, help="in pixels; none: what the model is made for")
    parser.add_argument("--steps", type=int, default=10, help="that count (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="loader processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="32", help="of the forward pass")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/pipeline.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to fit
        console = Console(width=110)
    result: dict[str, Any] = {"machine": describe(torch.get_num_threads(), options.device), **vars(options)}
    result["out"] = str(options.out)
    with tempfile.TemporaryDirectory() as folder:
        configs = {
            name: TrainConfig(
                out="",
                data=data,
                model=ModelConfig(options.model),
                optim=OptimConfig(batch_size=options.batch_size),
            )
            for name, data in sources(Path(folder), options.data, options.videos).items()
        }
        datasets: dict[str, ClipDataset] = {}
        step: Step | None = None
        for name, config in configs.items():
            config.data.clip_frames, config.data.crop = options.clip_frames, options.crop
            manifests = read_manifests(config.data)
            step = step or Step(config, manifests.train.classes, device, options.precision)
            datasets[name] = make_datasets(config, manifests, clip_shape(config.data, step.spec))[0]
        assert step is not None
        shape = datasets["files"]
        size = f"{shape.clip_frames} x {shape.transform.crop} x {shape.transform.crop}"
        where = f"{options.device}, precision {options.precision}"
        title = f"{options.model}, {options.batch_size} clips of {size} a step, {where}"
        result["apart_ms"] = {
            name: {
                phase: round(1e3 * seconds, 2)
                for phase, seconds in take_apart(
                    step, datasets[name], options.batch_size, options.steps, options.warmup
                ).items()
            }
            for name in ("files", "index")
        }
        console.print(_apart(title, result["apart_ms"]))
        result["waiting"] = []
        for workers in options.workers:
            for name in SOURCES:
                share, speed = wait(
                    step, datasets[name], options.batch_size, workers, options.steps, options.warmup
                )
                row = {"workers": workers, "source": name, "waiting": round(share, 3)}
                result["waiting"].append({**row, "clips_per_second": round(speed, 2)})
        console.print(_waiting(result["waiting"]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{available_cores()} cores, {os.uname().machine}; written to {options.out}")


def _apart(title: str, apart: dict[str, dict[str, float]]) -> Table:
    table = Table(title=f"{title}: milliseconds of a step, one loader process", title_justify="left")
    for column in ("phase", *apart):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in PHASES:
        table.add_row(phase, *(f"{times[phase]:.1f}" for times in apart.values()))
    return table


def _waiting(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="share of the time that is waited for data, and clips a second", title_justify="left")
    for column in ("processes", *SOURCES):
        table.add_column(column, justify="right")
    for workers in dict.fromkeys(row["workers"] for row in rows):
        cells = {row["source"]: row for row in rows if row["workers"] == workers}
        table.add_row(
            str(workers),
            *(f"{100 * cells[s]['waiting']:.0f}%  {cells[s]['clips_per_second']:.1f}/s" for s in SOURCES),
        )
    return table


if __name__ == "__main__":
    main()
