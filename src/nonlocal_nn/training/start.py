"""What a run starts from: its clips, its network, and the weights that network begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.blocks.norm import FrozenBatchNorm
from nonlocal_nn.data.dataset import ClipDataset, ViewDataset
from nonlocal_nn.data.transforms import TrainTransform, ViewTransform
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.models.video_resnet import VideoResNet
from nonlocal_nn.training.config import DataConfig, ModelConfig, TrainConfig
from nonlocal_nn.training.manifests import Manifests


@dataclass(frozen=True)
class ClipShape:
    """The clips of a run, with every default of the config worked out."""

    frames: int
    stride: int
    crop: int
    jitter: tuple[int, int]
    test_short_side: int


def clip_shape(data: DataConfig, spec: VideoResNetSpec) -> ClipShape:
    """Clip length and sizes: the config's, or those the model is made for, in the paper's proportions.

    >>> from nonlocal_nn.models.catalog import get_spec
    >>> clip_shape(DataConfig(train="videos"), get_spec("c2d_r50"))
    ClipShape(frames=32, stride=2, crop=224, jitter=(256, 320), test_short_side=256)
    """
    crop = spec.crop if data.crop is None else data.crop
    jitter = (round(crop * 256 / 224), round(crop * 320 / 224)) if data.jitter is None else data.jitter
    return ClipShape(
        frames=spec.frames if data.clip_frames is None else data.clip_frames,
        stride=data.frame_stride,
        crop=crop,
        jitter=jitter,
        test_short_side=jitter[0],  # a test sees a scale that training saw: its smallest, 256 in the paper
    )


def make_datasets(
    config: TrainConfig, manifests: Manifests, shape: ClipShape
) -> tuple[ClipDataset, ViewDataset | None]:
    """Random clips of the training videos; one centre clip of each validation video."""
    train = ClipDataset(
        manifests.train,
        clip_frames=shape.frames,
        frame_stride=shape.stride,
        transform=TrainTransform(crop=shape.crop, jitter=shape.jitter, flip=config.data.flip),
        seed=config.seed,
    )
    if manifests.val is None:
        return train, None
    val = ViewDataset(
        manifests.val,
        clip_frames=shape.frames,
        frame_stride=shape.stride,
        clips=1,
        transform=ViewTransform(short_side=shape.test_short_side, crop=shape.crop, crops=1),
    )
    return train, val


def make_model(config: ModelConfig, classes: tuple[str, ...], seed: int) -> tuple[VideoResNet, list[str]]:
    """The network with its first weights, and lines that tell where those came from.

    Raises:
        ValueError: both `weights` and `inflate`, an unknown model or option, or weights that do not fit.
        FileNotFoundError: no such file of weights.
    """
    from nonlocal_nn.models.catalog import create_model

    if config.weights is not None and config.inflate is not None:
        raise ValueError(
            "model.weights and model.inflate are both given; the first weights come from one of them"
        )
    if "num_classes" in config.options:
        raise ValueError("model.options: num_classes follows from the training videos; leave it out")
    torch.manual_seed(seed)
    model = create_model(config.name, num_classes=len(classes), **config.options)
    model.classes = classes
    if config.weights is not None:
        report = _load_own(model, Path(config.weights))
    elif config.inflate is not None:
        report = _load_image_network(model, Path(config.inflate))
    else:
        report = ["first weights: random"]
    _refuse_dead_blocks(model)
    return model, report


def _refuse_dead_blocks(model: VideoResNet) -> None:
    """A fresh block is the identity because its norm's scale is 0; frozen, it would stay so for ever."""
    for name, module in model.named_modules():
        norm = module.norm if isinstance(module, NonLocalBlock) else None
        if isinstance(norm, FrozenBatchNorm) and not bool(norm.weight.any()):
            raise ValueError(
                f"the non-local block {name} is new and its norm is frozen at scale 0: it could never learn. "
                "Start from model.weights that have the block, or set nonlocal_norm: null in model.options "
                "(then W_z starts at 0 and learns)"
            )


def _load_own(model: VideoResNet, path: Path) -> list[str]:
    """Weights of ours; a classifier of other classes is left out, any other difference is an error."""
    from nonlocal_nn.checkpoints.load import load_weights

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, path, partial=True)
    other = [name for name in (*report.missing, *report.mismatched, *report.unused) if not _may_be_new(name)]
    if other:
        model.load_state_dict(before)
        raise ValueError(
            f"the weights in {path} are of another network than {model.spec.name if model.spec else 'this'}: "
            + "; ".join(str(report).splitlines()[1:])
        )
    return [f"first weights: {path}", *str(report).splitlines()]


def _may_be_new(name: str) -> bool:
    # the classifier, and non-local blocks added to a network without them: freshly made they change nothing
    return name.startswith("head.fc.") or ".nonlocal" in name


def _load_image_network(model: VideoResNet, path: Path) -> list[str]:
    from nonlocal_nn.checkpoints.load import load_image_weights

    report = load_image_weights(model, path)
    return [f"first weights: {path}, inflated", *str(report).splitlines()]


def describe_input(data: DataConfig, shape: ClipShape, loss_name: str) -> dict[str, str]:
    """What the finished model's file says of its input, for those who test it or predict with it.

    >>> shape = ClipShape(frames=8, stride=2, crop=48, jitter=(55, 69), test_short_side=55)
    >>> describe_input(DataConfig(train="videos"), shape, "cross_entropy")["frame_stride"]
    '2'
    """
    return {
        "clip_frames": str(shape.frames),
        "frame_stride": str(shape.stride),
        "crop": str(shape.crop),
        "short_side": str(shape.test_short_side),
        "mean": str(data.mean),
        "std": str(data.std),
        "multi_label": str(loss_name == "sigmoid").lower(),
    }
