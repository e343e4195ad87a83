"""From a `VideoResNetSpec` to a network with fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.blocks.norm import FrozenBatchNorm
from nonlocal_nn.blocks.squeeze_excitation import SqueezeExcitation
from nonlocal_nn.models.first_weights import Draws, draws_by_layer
from nonlocal_nn.models.spec import STEMS, PoolSpec, VideoResNetSpec
from nonlocal_nn.models.video_resnet import Bottleneck, Head, Stage, VideoResNet, VideoStem


def build_model(spec: VideoResNetSpec, seed: int | None = None) -> VideoResNet:
    """Build the network a spec describes, on the default device, in training mode.

    >>> from nonlocal_nn.models.spec import VideoResNetSpec
    >>> spec = VideoResNetSpec("mine", stage_blocks=(1, 1), stage_strides=(1, 2), base_width=8, num_classes=3)
    >>> build_model(spec).head.fc
    Linear(in_features=64, out_features=3, bias=True)

    Convolutions start as He et al. (fan out), norms at 1 and 0, the classifier at normal(0, 0.01) and zero;
    non-local blocks as the block itself does, so that a fresh block changes nothing.

    seed: the weights of each layer depend on (seed, layer name) alone, so that networks which share layers
    start alike in them; None: torch's global random numbers, one layer after the other.
    """
    draws = draws_by_layer(seed)
    stem_spec = STEMS[spec.stem]
    norm = _norm(spec)
    time = 1 if spec.inflation is None else stem_spec.inflated_time
    if spec.conv1_frames is not None:
        time = spec.conv1_frames
    size = stem_spec.conv_size
    conv1 = nn.Conv3d(
        3,
        spec.base_width,
        (time, size, size),
        stride=stem_spec.conv_stride,
        padding=(time // 2, size // 2, size // 2),
        bias=False,
    )
    _he(conv1, draws, "stem.conv")
    stem = VideoStem(conv1, norm(spec.base_width), _pool(stem_spec.pool1))
    stages: dict[str, Stage] = {}
    channels = spec.base_width
    for name, inner, channels_out, stride in zip(
        spec.stage_names, spec.stage_inner, spec.stage_channels, spec.stage_strides, strict=True
    ):
        stages[name] = _stage(spec, name, channels, inner, channels_out, stride, draws)
        channels = channels_out
    head = Head(channels, spec.num_classes, spec.dropout)
    nn.init.normal_(head.fc.weight, std=0.01, generator=draws("head.fc"))
    nn.init.zeros_(head.fc.bias)
    return VideoResNet(stem, stages, head, pool2=_pool(stem_spec.pool2), spec=spec)


def _stage(
    spec: VideoResNetSpec,
    name: str,
    channels_in: int,
    inner: int,
    channels_out: int,
    stride: int,
    draws: Draws,
) -> Stage:
    blocks: list[nn.Module] = []
    for index in range(spec.stage_blocks[spec.stage_names.index(name)]):
        times = (1, 1)
        if spec.is_inflated(name, index):
            times = (3, 1) if spec.inflation == "3x1x1" else (1, 3)
        first = index == 0
        entering = channels_in if first else channels_out
        excitation = None
        if spec.se_reduction is not None:
            excited = entering if spec.se_placement == "pre" else channels_out
            excitation = SqueezeExcitation(excited, spec.se_reduction, pool=spec.se_pool)
            excitation.reset_parameters(draws(f"{name}.{index}.excitation"))
        block = Bottleneck(
            entering,
            inner,
            channels_out,
            _norm(spec),
            stride if first else 1,
            times,
            excitation,
            spec.se_placement,
            spec.stride_at,
        )
        for part, module in block.named_modules():
            if isinstance(module, nn.Conv3d):
                _he(module, draws, f"{name}.{index}.{part}")
        blocks.append(block)
    placed = {
        index: _nonlocal_block(spec, name, index, channels_out, draws)
        for index in spec.nonlocal_after.get(name, ())
    }
    return Stage(blocks, placed)


def _he(conv: nn.Conv3d, draws: Draws, name: str) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=draws(name))


def _nonlocal_block(
    spec: VideoResNetSpec, stage: str, index: int, channels: int, draws: Draws
) -> NonLocalBlock:
    block = NonLocalBlock(channels, **spec.block_options(stage).arguments())
    block.reset_parameters(lambda part: draws(f"{stage}.nonlocal{index}.{part}"))
    if isinstance(block.norm, nn.BatchNorm3d | FrozenBatchNorm):
        block.norm.eps = spec.norm_eps
    return block


def _norm(spec: VideoResNetSpec) -> Callable[[int], nn.Module]:
    return partial(FrozenBatchNorm if spec.norm == "frozen" else nn.BatchNorm3d, eps=spec.norm_eps)


def _pool(spec: PoolSpec | None) -> nn.MaxPool3d | None:
    return (
        None
        if spec is None
        else nn.MaxPool3d(spec.kernel, spec.stride, spec.padding, ceil_mode=spec.round_up)
    )
