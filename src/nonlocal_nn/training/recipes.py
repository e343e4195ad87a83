"""Recipes as data: the options of known training runs, to start from.

>>> sorted(RECIPES)
['charades', 'kinetics', 'kinetics_128', 'tiny']
>>> config = recipe("kinetics", train="lists/train.csv", out="runs/nl5")
>>> config.optim.batch_size, config.schedule.iterations
(64, 400000)

A recipe is a function of the training videos and the run folder; everything else of the TrainConfig can be
changed afterwards. `save_config` writes it as YAML for `nonlocal train --config`.
"""

from __future__ import annotations

from collections.abc import Callable

from nonlocal_nn._names import nearest_names
from nonlocal_nn.training.config import DataConfig, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig

# For each: where it comes from, what it needs, and what is left to give.


def _kinetics(train: str, out: str) -> TrainConfig:
    """Section 4.1, Kinetics-400: 8 GPUs x 8 clips of 32 frames at stride 2, 400k iterations, precise BN over
    200 batches.

    The paper starts from ImageNet: give model.inflate the path of torchvision's ResNet-50 weights.
    """
    return TrainConfig(
        out=out,
        data=DataConfig(train=train, kind="kinetics_csv", frame_stride=2, jitter=(256, 320)),
        model=ModelConfig(name="i3d_r50_nl5"),
        optim=OptimConfig(lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, batch_size=64),
        schedule=ScheduleConfig(iterations=400_000, kind="steps", milestones=(150_000, 300_000), factor=0.1),
        precise_bn=200,
        devices=8,
    )


def _kinetics_128(train: str, out: str) -> TrainConfig:
    """Section 5.1, longer clips: 128 frames from the 32-frame model (give model.weights), 2 clips on each of
    8 GPUs, lr 0.0025, batch norm frozen.

    As many iterations as for 32 frames. The authors' released models compute res3's blocks in contiguous
    groups of 4 frames: add temporal_groups to model.options for that.
    """
    return TrainConfig(
        out=out,
        data=DataConfig(train=train, kind="kinetics_csv", frame_stride=1, clip_frames=128, jitter=(256, 320)),
        model=ModelConfig(name="i3d_r50_nl5", options={"norm": "frozen"}),
        optim=OptimConfig(lr=0.0025, batch_size=16),
        schedule=ScheduleConfig(iterations=400_000, kind="steps", milestones=(150_000, 300_000)),
        precise_bn=0,  # nothing to measure: the norms are frozen
        devices=8,
    )


def _charades(train: str, out: str) -> TrainConfig:
    """Section 5.2, Charades: a sigmoid for each of 157 classes, from the 128-frame Kinetics model (give
    model.weights), 4 GPUs x 1 clip, 200k iterations, crops of 288.

    The paper tests at a shorter side of 320; the jitter's range is not given, here 288 / 224 of Kinetics'.
    """
    return TrainConfig(
        out=out,
        data=DataConfig(
            train=train,
            kind="charades_csv",
            frame_stride=1,
            clip_frames=128,
            crop=288,
            jitter=(329, 411),
        ),
        model=ModelConfig(name="i3d_r101_nl5", options={"norm": "frozen"}),
        optim=OptimConfig(lr=0.00125, batch_size=4, loss="sigmoid"),
        schedule=ScheduleConfig(iterations=200_000, kind="steps", milestones=(75_000, 150_000), factor=0.1),
        precise_bn=0,
        devices=4,
    )


def _tiny(train: str, out: str) -> TrainConfig:
    """Minutes on a CPU: the small network on clips of 8 frames, for a first run on one's own videos."""
    return TrainConfig(
        out=out,
        data=DataConfig(train=train, frame_stride=4),
        model=ModelConfig(name="c2d_tiny_nl2"),
        optim=OptimConfig(lr=0.05, batch_size=16),
        schedule=ScheduleConfig(epochs=20, kind="cosine", warmup=1),
        precise_bn=50,
    )


RECIPES: dict[str, Callable[[str, str], TrainConfig]] = {
    "kinetics": _kinetics,
    "kinetics_128": _kinetics_128,
    "charades": _charades,
    "tiny": _tiny,
}


def recipe(name: str, *, train: str, out: str) -> TrainConfig:
    """The config of a recipe for the videos `train` and the run folder `out`.

    Raises:
        ValueError: no recipe has that name.
    """
    if name not in RECIPES:
        near = nearest_names(name, RECIPES, otherwise=len(RECIPES))
        raise ValueError(f"no recipe is called {name!r}; there is {', '.join(near)}")
    return RECIPES[name](train, out)
