"""Real little videos, and a network with random weights that was never trained on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from nonlocal_nn.checkpoints.save import save_model
from nonlocal_nn.models.catalog import create_model

CLASSES = ("circle", "cross", "line", "[bold]square", "star", "wave", "zigzag")
METADATA = {
    "clip_frames": "4",
    "frame_stride": "2",
    "short_side": "24",
    "mean": "100.0",
    "std": "50.0",
    "multi_label": "false",
}


def write_video(path: Path, seed: int, frames: int = 20, width: int = 48, height: int = 32) -> Path:
    """Moving noise as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, number * 3, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """`make_video(path, seed, frames=20, width=48, height=32)`: moving noise as H.264."""
    return write_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: two videos of circles (one shorter than a clip), one of crosses."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "circle" / "a.mp4", seed=1)
    write_video(folder / "circle" / "short.mp4", seed=2, frames=3)
    write_video(folder / "cross" / "b.mp4", seed=3, width=32, height=48)
    return folder


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Text that calls itself a video."""
    path = tmp_path / "text.mp4"
    path.write_text("this is no video\n" * 20)
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model of random weights that prefers no class strongly."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(5)
    model = create_model("c2d_tiny_nl1", num_classes=len(CLASSES))
    model.classes = CLASSES
    torch.nn.init.normal_(model.head.fc.weight, std=1.0)  # so that views and videos differ
    torch.nn.init.ones_(
        model.get_parameter("res3.nonlocal0.norm.weight")
    )  # no warning of a block switched off
    save_model(model, folder / "model.safetensors", METADATA)
    return folder


@pytest.fixture
def run_to_write(run: Path, tmp_path: Path) -> Path:
    """The same in a folder of the test's own."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    return folder
