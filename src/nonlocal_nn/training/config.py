"""What a training run is made of: plain dataclasses, read from YAML or the command line, kept whole in
`config.yaml`.

>>> config = TrainConfig(out="runs/first", data=DataConfig(train="videos/train"))
>>> config.optim.lr, config.schedule.epochs
(0.01, 100.0)

No torch here: `nonlocal train --help` reads this file and must answer at once. Defaults are the paper's
recipe (section 4 of the paper, Kinetics-400) but for the length, which is counted in epochs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from nonlocal_nn._config_files import read_config
from nonlocal_nn.data.defaults import FLIP, FRAME_STRIDE, MEAN, STD
from nonlocal_nn.data.records import ClipLabels, ManifestKind
from nonlocal_nn.evaluation.config import Precision

LossName = Literal["cross_entropy", "sigmoid"]
LossChoice = Literal["auto", LossName]


@dataclass
class DataConfig:
    """Which videos, and which clips of them."""

    train: str
    """Training videos: a folder with one folder a class, a `path label` list, a Kinetics, Charades or plain
    csv."""
    val: str | None = None
    """Validation videos in any of the same forms; none: no validation while training."""
    kind: ManifestKind = "auto"
    """Form of `train` and `val`: auto looks at the files; csv has a header with the columns path and
    label."""
    root: str | None = None
    """Folder that relative paths in a list or csv start from; none: the folder the list lies in."""
    classes: str | None = None
    """Text file with one class name a line, in label order, or `number name` a line; none: taken from the
    training source."""
    train_where: str | None = None
    """Rows of a plain csv to train on, such as "set==1 and sequence in 1,2"; none: all."""
    val_where: str | None = None
    """Rows of a plain csv to validate on; none: all."""
    group_by: str | None = None
    """Column of a plain csv: training videos with the same value are drawn together, so that they meet in
    one batch; none: each by itself."""
    index: str | None = None
    """Index that `nonlocal scan --index` wrote: a clip is then found without going through the whole video,
    and broken videos are known from the start. The clips are the same without it."""
    labels: ClipLabels = "clip"
    """Where labels belong to stretches of a video, as in a Charades csv, those of a training clip: of the
    actions that overlap the clip, or of the whole video. Validation and tests use the video's."""
    clip_frames: int | None = None
    """Frames of a clip; none: what the model is made for (`frames` of its spec)."""
    frame_stride: int = FRAME_STRIDE
    """Take every n-th frame: a clip of 32 frames at stride 2 spans 64 frames of video."""
    crop: int | None = None
    """Side of the square crop in pixels; none: what the model is made for (`crop` of its spec)."""
    jitter: tuple[int, int] | None = None
    """Range of the shorter side, in pixels, before the crop; none: crop * (256, 320) / 224, the paper's
    proportions."""
    flip: float = FLIP
    """Probability of a horizontal flip; 0 where left and right matter."""
    mean: float = MEAN
    """Subtracted from pixels of 0..255."""
    std: float = STD
    """Divides the pixels after the mean was subtracted."""
    workers: int | None = None
    """Processes that decode videos, for each training process; none: the cores of this machine shared out; 0:
    none."""
    max_bad_videos: float = 0.1
    """Share of the videos (0 to 1) that may be broken before training stops; each one is listed in
    skipped.csv."""


@dataclass
class ModelConfig:
    """Which network, and what its weights start from."""

    name: str = "i3d_r50_nl5"
    """Name in the catalog; `nonlocal models` lists them."""
    options: dict[str, Any] = field(default_factory=dict)
    """Changes to the named model, by field of its spec, such as {pairwise: dot_product, dropout: 0.2}."""
    weights: str | None = None
    """Start from this model.safetensors or run folder; its last layer is left out where the classes
    differ."""
    inflate: str | None = None
    """Start from an image network, its kernels copied over time: path of a torchvision ResNet's state dict,
    or a run folder or model.safetensors of a C2D of ours."""


@dataclass
class OptimConfig:
    """The loss and the step."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd is the paper's; adamw for those who want it (then momentum and nesterov are not used)."""
    lr: float = 0.01
    """Learning rate at its highest, for the whole (global) batch."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's form of the momentum."""
    weight_decay: float = 1e-4
    """Decay of all weights and biases but those of normalisation layers, which have none."""
    batch_size: int = 64
    """Clips of one optimizer step over all processes and accumulated parts together: the same number gives
    the same training on 1 or 8 GPUs (with --sync_norm where batch norm is trained). Must be divisible by
    processes * accumulate."""
    accumulate: int = 1
    """Cut each process's share of the batch into this many parts, gone through one after the other, to save
    memory."""
    clip_norm: float | None = None
    """Scale the gradient down to this Euclidean norm where it is longer; none: never."""
    loss: LossChoice = "auto"
    """cross_entropy: one class a video; sigmoid: any number of classes a video; auto: by the data."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes (cross_entropy only)."""


@dataclass
class ScheduleConfig:
    """How long, and the learning rate along the way. `milestones` and `warmup` are in the unit of the length
    given.
    """

    epochs: float = 100.0
    """Length in passes over the training videos; not used where `iterations` is given."""
    iterations: int | None = None
    """Length in optimizer steps; wins over `epochs`, and then `milestones` and `warmup` are in steps too."""
    kind: Literal["steps", "cosine"] = "steps"
    """steps: times `factor` at each milestone; cosine: half a cosine from lr down to lr * final."""
    milestones: tuple[float, ...] | None = None
    """Where the rate drops (steps only); none: at 3/8 and 3/4 of the length (the paper: 150k and 300k of
    400k)."""
    factor: float = 0.1
    """What the rate is multiplied by at a milestone (steps only)."""
    final: float = 0.0
    """Rate at the very end as a share of lr (cosine only)."""
    warmup: float = 0.0
    """Rise linearly to the schedule's rate over this long."""
    warmup_start: float = 0.1
    """Share of the rate that the warm-up starts from."""


@dataclass
class TrainConfig:
    """One training run."""

    out: str
    """Run folder to make: config.yaml, metrics.csv, TensorBoard, checkpoints/, model.safetensors,
    results.json."""
    data: DataConfig
    """Which videos, and which clips of them."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which network, and what its weights start from."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The loss and the step."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How long, and the learning rate along the way."""
    precise_bn: int = 200
    """Batches over which batch norm's statistics are measured anew at the end; 0: keep the running ones."""
    precision: Precision = "32"
    """Number format of the forward and backward pass."""
    sync_norm: bool = False
    """Measure batch norm's statistics over the clips of all processes, so that any number of them trains
    alike; otherwise over each process's share. Accumulated parts have their own statistics in any case."""
    fsdp: bool = False
    """Share parameters, gradients and optimizer state out over the processes (torch's fully_shard): less
    memory for each, more traffic. Checkpoints are whole: the run goes on with any number of processes."""
    recompute: tuple[str, ...] = ()
    """Stages (res2, res3, ...) whose inside is computed again in the backward pass instead of kept: less
    memory, up to a quarter more time, the same gradients."""
    compile: bool = False
    """Compile the network (torch.compile): minutes at the start, less time a step."""
    seed: int = 0
    """Fixes everything random: first weights, order of the videos, clips, crops, flips, dropout."""
    val_every_epochs: int = 1
    """Validate after every n-th epoch (one centre clip of each video)."""
    log_every_steps: int = 10
    """Write a row of metrics every n optimizer steps."""
    checkpoint_every_seconds: float = 300.0
    """Write checkpoints/last.ckpt this often; also at Ctrl-C and SIGTERM."""
    checkpoint_every_steps: int | None = None
    """Write it every n optimizer steps as well."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Device to train on."""
    devices: int | Literal["auto"] = "auto"
    """Processes on each machine, one a GPU; on the CPU auto means 1."""
    nodes: int = 1
    """Machines."""
    progress: bool = True
    """Show a progress bar."""
    resume: bool = False
    """Go on with the run in `out` from its last checkpoint; starts it where there is none yet."""
    overwrite: bool = False
    """Delete the run in `out` first."""


# Fields that may change between the start of a run and its resumption: they do not change the weights.
# (Whether the training videos are still the same, wherever they lie now, is checked by their names and
# labels.)
FREE_ON_RESUME = frozenset(
    {
        "out",
        "devices",
        "nodes",
        "data.train",
        "data.root",
        "data.workers",
        "data.index",
        "data.val",
        "data.val_where",
        "data.max_bad_videos",
        "val_every_epochs",
        "log_every_steps",
        "checkpoint_every_seconds",
        "checkpoint_every_steps",
        "progress",
        "resume",
        "overwrite",
    }
)


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain dicts and lists, as `config.yaml` holds them.

    >>> config_to_dict(TrainConfig(out="o", data=DataConfig(train="t", jitter=(56, 70))))["data"]["jitter"]
    [56, 70]
    """
    plain = _plain(asdict(config))
    assert isinstance(plain, dict)
    return plain


def config_from_dict(values: dict[str, Any]) -> TrainConfig:
    """The config that `config_to_dict` wrote.

    >>> config = TrainConfig(out="o", data=DataConfig(train="t", jitter=(56, 70)))
    >>> config_from_dict(config_to_dict(config)) == config
    True

    Raises:
        ValueError: A key that no field has, naming it.
    """
    sections = {
        "data": DataConfig,
        "model": ModelConfig,
        "optim": OptimConfig,
        "schedule": ScheduleConfig,
    }
    _check_keys(values, TrainConfig, "")
    built = dict(values)
    for name, kind in sections.items():
        if isinstance(built.get(name), dict):
            _check_keys(built[name], kind, name + ".")
            section = dict(built[name])
            for key in ("jitter", "milestones"):
                if isinstance(section.get(key), list):
                    section[key] = tuple(section[key])
            built[name] = kind(**section)
    if isinstance(built.get("recompute"), list):
        built["recompute"] = tuple(built["recompute"])
    return TrainConfig(**built)


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the whole config as YAML; `nonlocal train --config PATH` reads it back."""
    import yaml  # type: ignore[import-untyped]

    plain = config_to_dict(config)
    plain["resume"] = plain["overwrite"] = False  # how the run was started is no part of what it is
    path.write_text(yaml.safe_dump(plain, sort_keys=False))


def load_config(path: Path) -> TrainConfig:
    """Read what `save_config` wrote."""
    return config_from_dict(read_config(path))


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Lines `field: old -> new` for fields that change the weights.

    >>> a = TrainConfig(out="o", data=DataConfig(train="t"))
    >>> b = TrainConfig(out="o", data=DataConfig(train="t", workers=3), seed=1)
    >>> differences(a, b)
    ['seed: 0 -> 1']
    """
    return list(_differences(old, new, ""))


def _differences(old: Any, new: Any, prefix: str) -> list[str]:
    lines = []
    for spec in fields(old):
        name = prefix + spec.name
        if name in FREE_ON_RESUME:
            continue
        before, after = getattr(old, spec.name), getattr(new, spec.name)
        if is_dataclass(before) and is_dataclass(after):
            lines += _differences(before, after, name + ".")
        elif _plain(before) != _plain(after):
            lines.append(f"{name}: {before!r} -> {after!r}")
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _check_keys(values: dict[str, Any], kind: type, prefix: str) -> None:
    known = [spec.name for spec in fields(kind)]
    for key in values:
        if key not in known:
            raise ValueError(f"no field {prefix}{key} in the training config; it has: {', '.join(known)}")
