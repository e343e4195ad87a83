"""The network of a run and its first weights."""

from __future__ import annotations

from pathlib import Path

import torch

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.blocks.norm import FrozenBatchNorm
from nonlocal_nn.models.video_resnet import VideoResNet
from nonlocal_nn.training.config import ModelConfig


def make_model(config: ModelConfig, classes: tuple[str, ...], seed: int) -> tuple[VideoResNet, list[str]]:
    """The network with its first weights, and lines that tell where those came from.

    Raises:
        ValueError: both `weights` and `inflate`, an unknown model or option, or weights that do not fit.
        FileNotFoundError: no such file of weights.
    """
    from nonlocal_nn.models.build import build_model
    from nonlocal_nn.models.catalog import get_spec

    if config.weights is not None and config.inflate is not None:
        raise ValueError(
            "model.weights and model.inflate are both given; the first weights come from one of them"
        )
    if "num_classes" in config.options:
        raise ValueError("model.options: num_classes follows from the training videos; leave it out")
    torch.manual_seed(seed)
    spec = get_spec(config.name, num_classes=len(classes), **config.options)
    model = build_model(spec, seed)  # by layer: networks that share layers start alike in them
    model.classes = classes
    if config.weights is not None:
        report = _load_own(model, Path(config.weights))
    elif config.inflate is not None:
        report = _load_image_network(model, Path(config.inflate))
    else:
        report = ["first weights: random"]
    _check_blocks_can_learn(model)
    return model, report


def _check_blocks_can_learn(model: VideoResNet) -> None:
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
