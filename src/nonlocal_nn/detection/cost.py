"""What a detector costs for one image: multiply-adds of the backbone, and of the heads for so many regions.

The convention is that of `evaluation.cost`. What is left out, as there: norms, activations, cutting regions
out (RoIAlign), suppression of duplicates, pasting of masks.

>>> import nonlocal_nn as nl
>>> cost = measure_detector(nl.create_detector("mask_rcnn_tiny", categories=["cat"]), image=(96, 96))
>>> cost.parameters, round(cost.macs / 1e9, 2)
(642379, 1.06)
"""

from __future__ import annotations

from torch import Tensor, nn

from nonlocal_nn.detection.detector import Detector
from nonlocal_nn.detection.spec import LEVEL_STRIDES
from nonlocal_nn.evaluation.cost import Cost, count_macs, count_parameters

__all__ = ["IMAGE", "measure_detector"]

IMAGE = (800, 1088)  # an image of shorter side 800, padded to a multiple of 32
_BOX, _MASK = 7, 14  # positions along a side of a region


class _Level(nn.Module):
    """The RPN's head on one level."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, level: Tensor) -> Tensor:
        scores: Tensor = self.head([level])[0][0]
        return scores


def measure_detector(
    detector: Detector, image: tuple[int, int] = IMAGE, proposals: int = 1000, detections: int = 100
) -> Cost:
    """Parameters, and multiply-adds for one image.

    Args:
        detector: one of ours.
        image: height and width in pixels, multiples of 64, or near: a level that does not divide is rounded
            up.
        proposals: regions that the box head looks at.
        detections: regions that the head for masks or keypoints looks at.
    """
    height, width = image
    channels = detector.spec.fpn_channels
    heads = detector.get_submodule("roi_heads")
    macs = count_macs(detector.get_submodule("backbone"), (3, height, width))
    rpn = _Level(detector.get_submodule("rpn.head"))
    macs += sum(
        count_macs(rpn, (channels, -(-height // stride), -(-width // stride))) for stride in LEVEL_STRIDES
    )
    macs += proposals * count_macs(heads.get_submodule("box_head"), (channels, _BOX, _BOX))
    macs += proposals * count_macs(heads.get_submodule("box_predictor"), (detector.spec.box_features,))
    for name in ("mask", "keypoint"):
        if hasattr(heads, f"{name}_head") and getattr(heads, f"{name}_head") is not None:
            head = heads.get_submodule(f"{name}_head")
            inner = getattr(detector.spec, f"{name}_channels")
            macs += detections * count_macs(head, (channels, _MASK, _MASK))
            predictor = heads.get_submodule(f"{name}_predictor")
            macs += detections * count_macs(predictor, (inner, _MASK, _MASK))
    return Cost(count_parameters(detector), macs)
