"""A trained network as a command finds it: the model, its classes, and how its clips were made."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from nonlocal_nn._cores import available_cores
from nonlocal_nn._launch import launched
from nonlocal_nn.checkpoints.load import load_model
from nonlocal_nn.checkpoints.native import checkpoint_file
from nonlocal_nn.data.dataset import ViewDataset
from nonlocal_nn.data.defaults import FRAME_STRIDE, MEAN, STD, short_side_of
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.data.transforms import ViewTransform
from nonlocal_nn.data.video_index import KnownVideos
from nonlocal_nn.evaluation.config import ScoringConfig
from nonlocal_nn.evaluation.device import choose_device
from nonlocal_nn.evaluation.views import Scoring
from nonlocal_nn.models.video_resnet import VideoResNet


@dataclass(frozen=True)
class Trained:
    """A network on its device, and what its file says of its training.

    Attributes:
        model: in evaluation mode.
        file: the model.safetensors it came from.
        name: of the network in the catalog.
        classes: one name for each logit; numbers where the file has no names.
        multi_label: a video may have several labels (trained with sigmoids).
        clip_frames, frame_stride: of the clips it was trained on.
        short_side: shorter side of test frames, in pixels.
        mean, std: of pixels in 0 .. 255.
    """

    model: VideoResNet
    file: Path
    name: str
    classes: tuple[str, ...]
    multi_label: bool
    clip_frames: int
    frame_stride: int
    short_side: int
    mean: float
    std: float


def load_trained(checkpoint: str, device: str = "auto") -> Trained:
    """The network of a run folder or of a model.safetensors.

    What the file does not say is taken from the network's standard clip (its spec) and the paper's recipe:
    every second frame, a shorter side of 256 to a crop of 224.
    Raises FileNotFoundError where there is none, ValueError where the file is damaged or the device is not
    there.
    """
    place = choose_device(device)
    file = checkpoint_file(checkpoint)
    model = load_model(file)
    if not isinstance(model, VideoResNet):
        raise ValueError(f"{file} holds one non-local block, not a network")
    spec = model.spec
    assert spec is not None  # load_model builds from it
    known = model.metadata
    return Trained(
        model=model.to(place),
        file=file,
        name=spec.name,
        classes=model.classes or tuple(str(number) for number in range(spec.num_classes)),
        multi_label=known.get("multi_label") == "true",
        clip_frames=int(known.get("clip_frames", spec.frames)),
        frame_stride=int(known.get("frame_stride", FRAME_STRIDE)),
        short_side=int(known.get("short_side", short_side_of(spec.crop))),
        mean=float(known.get("mean", MEAN)),
        std=float(known.get("std", STD)),
    )


def views_of(manifest: Manifest, config: ScoringConfig, trained: Trained) -> ViewDataset:
    """The videos as the views that `config` asks for; what it leaves open is as in training.

    Says on stderr what the index does not know.
    Raises ValueError for views that cannot be, or an index that is none; FileNotFoundError where there is
    none.
    """
    if config.full_frame and config.crop is not None:
        raise ValueError(
            f"full_frame and crop = {config.crop} contradict each other: the whole frame, or crops of it?"
        )
    known = None if config.index is None else KnownVideos.of(config.index, manifest)
    if known is not None and config.index is not None and launched().rank == 0:
        sys.stderr.writelines(f"{note}\n" for note in known.note(config.index))
    short_side = trained.short_side if config.short_side is None else config.short_side
    crop = short_side if config.crop is None else config.crop
    return ViewDataset(
        manifest,
        clip_frames=trained.clip_frames if config.clip_frames is None else config.clip_frames,
        frame_stride=trained.frame_stride if config.frame_stride is None else config.frame_stride,
        clips=config.clips,
        transform=ViewTransform(
            short_side=short_side,
            crop=None if config.full_frame else crop,
            crops=1 if config.full_frame else config.crops,
        ),
        # Several videos are decoded by several processes; one alone gets the threads.
        decode_threads=min(4, available_cores()) if len(manifest) == 1 else 1,
        known=known,
    )


def scores_key(trained: Trained, dataset: ViewDataset, scoring: Scoring, device: str) -> str:
    """A hash of all that decides the scores: the weights, the videos with their labels, the views."""
    with trained.file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    view = (dataset.clip_frames, dataset.frame_stride, dataset.clips, dataset.transform)
    digest.update(repr((view, scoring, device)).encode())
    for row in dataset.manifest.records.rows():
        digest.update(repr(row).encode())
    return digest.hexdigest()[:16]


def scoring_of(config: ScoringConfig, trained: Trained) -> Scoring:
    """How the views become scores."""
    return Scoring(
        multi_label=trained.multi_label,
        views_per_batch=config.views_per_batch,
        mean=trained.mean,
        std=trained.std,
        precision=config.precision,
    )
