"""Tiny real videos to train on, made on the spot, and a config small enough for a test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nonlocal_nn.training.config import DataConfig, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig

FRAMES, SIDE = 6, 32


def write_video(path: Path, brightness: int, seed: int) -> None:
    """A short video of noise around a brightness: the class can be read off any pixel."""
    import av

    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "18", "threads": "1"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for _ in range(FRAMES):
            pixels = np.clip(rng.normal(brightness, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/{dark,light} with 6 videos each, test/{dark,light} with 2 each."""
    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 6), ("test", 2)):
        for name, brightness in (("dark", 70), ("light", 180)):
            for number in range(count):
                write_video(
                    root / split / name / f"{number}.mp4", brightness, seed=hash((split, number)) % 1000
                )
    return root


ConfigMaker = Callable[..., TrainConfig]


@pytest.fixture
def tiny_config(videos: Path, tmp_path: Path) -> ConfigMaker:
    """A run of seconds: a few steps of 4 clips of 4 x 24 x 24. Sections are given as dicts of their
    fields."""

    def make(
        out: str = "run",
        data: dict[str, object] | None = None,
        model: dict[str, object] | None = None,
        optim: dict[str, object] | None = None,
        schedule: dict[str, object] | None = None,
        **fields: object,
    ) -> TrainConfig:
        model = dict(model or {})
        options = {"frames": 4, "crop": 24, "base_width": 4, **model.pop("options", {})}  # type: ignore[dict-item]
        return TrainConfig(
            **{
                "out": str(tmp_path / out),
                "data": DataConfig(
                    **{"train": str(videos / "train"), "frame_stride": 1, "workers": 0, **(data or {})}  # type: ignore[arg-type]
                ),
                "model": ModelConfig(**{"name": "c2d_tiny", "options": options, **model}),  # type: ignore[arg-type]
                "optim": OptimConfig(**{"batch_size": 4, "lr": 0.05, **(optim or {})}),  # type: ignore[arg-type]
                "schedule": ScheduleConfig(**{"iterations": 6, **(schedule or {})}),  # type: ignore[arg-type]
                "precise_bn": 2,
                "log_every_steps": 1,
                "accelerator": "cpu",
                "progress": False,
                **fields,
            }  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def start_process(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `train` of a config in a process of its own: any number of them through torchrun, or the only
    one of the first or second of two machines (`machine` 0 or 1) that meet at a port."""
    from nonlocal_nn.training.config import save_config

    def start(
        config: TrainConfig, *, processes: int = 1, machine: int | None = None, port: int = 0
    ) -> subprocess.Popen[str]:
        path = tmp_path / f"{Path(config.out).name}-{config.resume}.yaml"
        save_config(config, path)
        code = (
            "import sys; from pathlib import Path; from nonlocal_nn.training.config import load_config\n"
            "from nonlocal_nn.training.run import train\n"
            "config = load_config(Path(sys.argv[1])); config.resume = sys.argv[2] == 'True'; train(config)\n"
        )
        script = tmp_path / "train_it.py"
        script.write_text(code)
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if machine is not None:
            launcher += ["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={machine}"]
            launcher += ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
        return subprocess.Popen(
            [*launcher, str(script), str(path), str(config.resume)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    return start
