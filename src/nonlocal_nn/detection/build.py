"""A detector from its spec: torchvision's parts, and non-local blocks among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import FrozenBatchNorm2d

from nonlocal_nn.data.categories import Category, Keypoints
from nonlocal_nn.detection.anchors import ASPECT_RATIOS
from nonlocal_nn.detection.detector import Detector
from nonlocal_nn.detection.spec import BackboneNorm, DetectorSpec
from nonlocal_nn.insertion.insert import insert_blocks

__all__ = ["Body", "build_detector"]

_NORMS: dict[BackboneNorm, Callable[..., nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
}
_LEVELS = ("0", "1", "2", "3")  # of the pyramid, that regions are cut from


class Body(nn.Module):
    """The stages of torchvision's ResNet, under its names, of any width.

    Args:
        spec: the detector it is for.

    Attributes:
        channels: that layer1 to layer4 give out.
    """

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        norm = _NORMS[spec.backbone_norm]
        width = spec.base_width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels: list[int] = []
        for number, count in enumerate(spec.stage_blocks):
            before = channels[-1] if channels else width
            stage = _stage(spec, before, width * 2**number, count, 1 if number == 0 else 2)
            channels.append((4 if spec.bottleneck else 1) * width * 2**number)
            self.add_module(f"layer{number + 1}", stage)
        self.channels = tuple(channels)
        for module in self.modules():  # as in torchvision
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def train_stages(self, count: int) -> None:
        """Leave all but the last `count` of conv1, layer1, ... layer4 as they are."""
        trained = ("layer4", "layer3", "layer2", "layer1", "conv1", "bn1")[: 6 if count == 5 else count]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.partition(".")[0] in trained)


def _stage(spec: DetectorSpec, before: int, planes: int, count: int, stride: int) -> nn.Sequential:
    norm = _NORMS[spec.backbone_norm]
    kind = Bottleneck if spec.bottleneck else BasicBlock
    after = planes * kind.expansion
    shortcut = None
    if stride != 1 or before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), norm(after))
    # Of a bottleneck, the width for 64 planes.
    options: dict[str, Any] = {"groups": spec.groups, "base_width": spec.width_per_group}
    first = kind(before, planes, stride, shortcut, norm_layer=norm, **options)
    others = [kind(after, planes, norm_layer=norm, **options) for _ in range(count - 1)]
    return nn.Sequential(first, *others)


class _Boxes(FasterRCNN, Detector):  # type: ignore[misc]  # torchvision's forward is the one
    """A Faster R-CNN of ours."""


class _Masks(MaskRCNN, Detector):  # type: ignore[misc]
    """A Mask R-CNN of ours."""


class _Keypoints(KeypointRCNN, Detector):  # type: ignore[misc]
    """A Keypoint R-CNN of ours."""


def build_detector(
    spec: DetectorSpec,
    categories: Sequence[Category],
    keypoints: Keypoints | None,
    *,
    loading: bool = False,
) -> Detector:
    """A detector with fresh weights, in training mode.

    >>> from nonlocal_nn.data.categories import number_categories
    >>> spec = DetectorSpec("mine", base_width=8, stage_blocks=(1, 1, 1, 1), num_categories=1)
    >>> build_detector(spec, number_categories(["cat"]), None).backbone.body.conv1.out_channels
    8

    Args:
        spec: what it is.
        categories: as many as the spec says.
        keypoints: as many as the spec says, for the task "keypoints".
        loading: its weights come from a file.

    Raises:
        ValueError: another number of categories or keypoints, a layer that is no place for a block, or blocks
            with a frozen norm that nothing is loaded into.
    """
    if len(categories) != spec.num_categories:
        raise ValueError(f"{len(categories)} categories for a detector of {spec.num_categories}")
    if (keypoints is not None) != (spec.task == "keypoints") or (
        keypoints is not None and len(keypoints.names) != spec.num_keypoints
    ):
        raise ValueError(f"the keypoints {keypoints} do not fit a detector of {spec.task}")
    if spec.nonlocal_norm == "frozen" and spec.nonlocal_after and not loading:
        raise ValueError(
            "nonlocal_norm='frozen': the gamma of a frozen norm is fixed, and a new block's is zero, so the "
            "block would do nothing and never learn. Take None (W_z starts at zero) or 'batch'"
        )
    body = Body(spec)
    body.train_stages(spec.trained_stages)
    stages = {f"layer{number + 1}": level for number, level in enumerate(_LEVELS)}
    backbone = BackboneWithFPN(body, stages, list(body.channels), spec.fpn_channels)
    labels = spec.num_categories + 1  # 0 is the background
    arguments: dict[str, Any] = {
        "min_size": spec.sides,
        "max_size": spec.longest_side,
        "rpn_anchor_generator": AnchorGenerator(
            tuple((size,) for size in spec.anchor_sizes), (ASPECT_RATIOS,) * len(spec.anchor_sizes)
        ),
        "box_head": TwoMLPHead(spec.fpn_channels * 7**2, spec.box_features),
        "box_predictor": FastRCNNPredictor(spec.box_features, labels),
    }
    make: Callable[..., Detector] = partial(_Boxes, backbone, **arguments)
    if spec.task == "masks":
        make = partial(
            _Masks,
            backbone,
            mask_head=MaskRCNNHeads(spec.fpn_channels, (spec.mask_channels,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(spec.mask_channels, spec.mask_channels, labels),
            **arguments,
        )
    elif spec.task == "keypoints":
        make = partial(
            _Keypoints,
            backbone,
            keypoint_head=KeypointRCNNHeads(
                spec.fpn_channels, (spec.keypoint_channels,) * spec.keypoint_layers
            ),
            keypoint_predictor=KeypointRCNNPredictor(spec.keypoint_channels, spec.num_keypoints),
            **arguments,
        )
    detector = make()
    if spec.nonlocal_after:
        options = spec.block_options.arguments()
        insert_blocks(detector, after=list(spec.nonlocal_after), **options)
    detector.spec, detector.categories, detector.keypoints = spec, tuple(categories), keypoints
    detector.metadata = {}
    return detector
