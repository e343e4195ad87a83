"""What a test and a prediction are made of: plain dataclasses, from YAML or the command line; no torch here.

>>> TestConfig(checkpoint="runs/first", data="videos/test", clips=2).crops
3
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nonlocal_nn._ray import RayChoice
from nonlocal_nn.data.defaults import CROPS
from nonlocal_nn.data.records import ManifestKind

Precision = Literal["32", "bf16-mixed", "16-mixed"]


Pool = Literal["mean", "max"]
MapKind = Literal["official", "labelled"]


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Which views of a video are scored, and where. None: as the checkpoint says, as in training."""

    clips: int = 10
    """Clips spread evenly along the video; with 3 crops of each, the paper's 30 views."""
    crops: Literal[1, 3] = CROPS
    """Square crops of each clip: 1 (centre) or 3 along the longer side; not used with full_frame."""
    full_frame: bool = False
    """Score whole frames, fully convolutionally, instead of crops."""
    short_side: int | None = None
    """Shorter side of the frames in pixels; none: as the checkpoint says (256 for a training crop of 224)."""
    crop: int | None = None
    """Side of a crop in pixels; none: the shorter side, as in the released code."""
    clip_frames: int | None = None
    """Frames of a clip; none: as trained. Shorter videos start again from their first frame."""
    frame_stride: int | None = None
    """Take every n-th frame; none: as trained."""
    views_per_batch: int = 8
    """Views that go through the model together; fewer need less memory."""
    index: str | None = None
    """Index that `nonlocal scan --index` wrote: frames are then found without going through each video
    first, and broken videos are known from the start. The scores are the same without it."""
    workers: int | None = None
    """Processes that decode videos; none: 1 to 8, by the cores and where the model runs; 0: none."""
    device: str = "auto"
    """auto (a CUDA GPU or else the CPU), cpu, cuda, cuda:1, ... or mps."""
    precision: Precision = "32"
    """Number format of the forward pass."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ScoringConfig):
    """Name the action in one video, or in every video of a folder.

    The top classes with their scores, in percent, as a table or as JSON, one object a line. A file that
    cannot be read gets one line that says why, and the others go on: exit code 0 if every file was read, 1
    if some were not, 2 if nothing was done.
    """

    videos: list[str] = field(default_factory=list)
    """Video files, or folders that are searched for them."""
    checkpoint: str | None = None
    """Run folder of `nonlocal train` or `nonlocal demo`, or its model.safetensors."""
    top: int = 5
    """Classes shown for each video."""
    json: bool = False
    """Print one JSON object a video: path and classes (index, name, score from 0 to 1), or path and error."""
    out: str | None = None
    """Write these objects to a file, a line each, instead of printing. Killed, the same command goes on from
    the videos that are done; under torchrun or srun the videos are shared out, which needs this file."""
    ray: RayChoice | None = None
    """Predict on a Ray cluster: auto, the one that runs, or local, one of its own on this machine. Needs
    --out. --workers is then the number of its processes, each with the network; none: one for each GPU, or
    each core where there is none."""


@dataclass(frozen=True, kw_only=True)
class TestConfig(ScoringConfig):
    """Test a trained network on labelled videos, over several views of each.

    Killed, the same command goes on from the videos that are done. Under torchrun or srun the videos are
    shared out over the processes, and the first one joins what all have found: each needs to see the videos
    and the folder of the results.

    View (clip) and video accuracy in one pass, or mean average precision where videos have several labels.
    Writes results.json, predictions.csv, config.yaml, and skipped.csv with the videos that could not be
    read.
    """

    __test__ = False  # not a test of pytest, whatever its name begins with

    checkpoint: str
    """Run folder of `nonlocal train` or `nonlocal demo`, or its model.safetensors."""
    data: str
    """Videos: a folder with one folder a class, a `path label` list, a Kinetics, Charades or plain csv."""
    kind: ManifestKind = "auto"
    """Form of `data`: auto looks at the files; csv has a header with the columns path and label."""
    root: str | None = None
    """Folder that relative paths in a list or csv start from; none: the folder the list lies in."""
    where: str | None = None
    """Rows of a plain csv to test on, such as "set==1 and sequence in 1,2"; none: all."""
    group_by: str | None = None
    """Column of a plain csv that says which four videos are a quartet, two of each of two classes: forced
    choice by quartet, which a network that cannot relate what tells them apart has by ties, 50 %."""
    break_down_by: str | None = None
    """Column of a plain csv, or several with commas: the figures for each of its values, too."""
    pool: Pool | None = None
    """Of the scores of a video's views: mean, or max; none: max for a Charades csv (as the SlowFast authors
    do; the non-local paper does not say), else mean."""
    map: MapKind | None = None
    """Which mean average precision is `map`, where videos have several labels: official, as the script of
    Charades counts (a video without labels is no negative, a missing one comes last), or labelled, over all
    tested videos alike; none: official for a Charades csv, else labelled. Both are in results.json."""
    submission: str | None = None
    """Write the file that the official script of Charades reads, a line with id and scores for each video."""
    out: str | None = None
    """Folder for the results; none: the folder `test` beside the checkpoint's model.safetensors."""
    predictions: Literal["csv", "npz", "none"] = "csv"
    """Write the scores of every video: csv to read, npz to compute with, or not at all."""
