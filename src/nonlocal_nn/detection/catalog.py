"""Every detector by name, as data; torch and torchvision are imported when one is built.

>>> list_detectors("keypoint_rcnn_r101*")
['keypoint_rcnn_r101', 'keypoint_rcnn_r101_nl1', 'keypoint_rcnn_r101_nl4h', 'keypoint_rcnn_r101_nl4h1']
>>> get_detector_spec("mask_rcnn_x152_nl1").nonlocal_after
('backbone.body.layer3.34',)
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nonlocal_nn._names import look_up
from nonlocal_nn.data.categories import Task
from nonlocal_nn.detection.spec import DetectorSpec

if TYPE_CHECKING:
    from nonlocal_nn.data.categories import Keypoints
    from nonlocal_nn.detection.detector import Detector

__all__ = ["create_detector", "get_detector_spec", "list_detectors"]

_FAMILIES: dict[str, Task] = {"faster_rcnn": "boxes", "mask_rcnn": "masks", "keypoint_rcnn": "keypoints"}
_BACKBONES: dict[str, dict[str, Any]] = {
    "r18": {"stage_blocks": (2, 2, 2, 2), "bottleneck": False},
    "r50": {"stage_blocks": (3, 4, 6, 3)},
    "r101": {"stage_blocks": (3, 4, 23, 3)},
    # The paper's "X152" without its cardinality: 32x8d is that of Detectron's X-152, an assumption.
    "x101": {"stage_blocks": (3, 4, 23, 3), "groups": 32, "width_per_group": 8},
    "x152": {"stage_blocks": (3, 8, 36, 3), "groups": 32, "width_per_group": 8},
}
# For images of about 100 pixels, on a CPU.
_TINY: dict[str, Any] = {
    "stage_blocks": (1, 2, 1, 1),
    "bottleneck": False,
    "base_width": 16,
    "fpn_channels": 32,
    "box_features": 128,
    "mask_channels": 32,
    "keypoint_channels": 32,
    "keypoint_layers": 4,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "sides": (96,),
    "longest_side": 160,
    "backbone_norm": "batch",
    "scale": True,
    "subsample": False,
}
# "after every 2 convolutional layers" of the keypoint head's eight: behind their ReLUs.
_HEAD = tuple(f"roi_heads.keypoint_head.{relu}" for relu in (3, 7, 11, 15))


def _before_last(stage: int, blocks: Sequence[int]) -> str:
    """Right before the last residual block of a stage: after the one before it."""
    return f"backbone.body.layer{stage}.{blocks[stage - 1] - 2}"


def _catalog() -> dict[str, DetectorSpec]:
    specs: list[DetectorSpec] = []
    for family, task in _FAMILIES.items():
        # Detectron's sides for keypoints; the others see one.
        sides = (640, 672, 704, 736, 768, 800) if task == "keypoints" else (800,)
        categories = 1 if task == "keypoints" else 80
        for backbone, fields in _BACKBONES.items():
            in_res4 = (_before_last(3, fields["stage_blocks"]),)
            placements = {"": (), "_nl1": in_res4}
            if task == "keypoints":
                placements |= {"_nl4h": _HEAD, "_nl4h1": (*in_res4, *_HEAD)}
            for suffix, after in placements.items():
                name = f"{family}_{backbone}{suffix}"
                specs.append(
                    DetectorSpec(
                        name, task, sides=sides, num_categories=categories, nonlocal_after=after, **fields
                    )
                )
        # In the small ones the block stands in the stage of stride 8: coarser maps lose the shapes.
        for suffix, after in {"": (), "_nl1": (_before_last(2, _TINY["stage_blocks"]),)}.items():
            name = f"{family}_tiny{suffix}"
            specs.append(DetectorSpec(name, task, num_categories=categories, nonlocal_after=after, **_TINY))
    return {spec.name: spec for spec in specs}


DETECTORS: dict[str, DetectorSpec] = _catalog()


def list_detectors(pattern: str | None = None) -> list[str]:
    """The names `create_detector` knows, or those that match a shell pattern.

    >>> list_detectors("*tiny")
    ['faster_rcnn_tiny', 'mask_rcnn_tiny', 'keypoint_rcnn_tiny']
    """
    return [name for name in DETECTORS if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def get_detector_spec(name: str, **overrides: Any) -> DetectorSpec:
    """The spec of a name, with some fields changed.

    >>> get_detector_spec("mask_rcnn_r50", sides=(320,)).sides
    (320,)

    Raises:
        ValueError: no such detector (the nearest names are listed), no such field, or a value it refuses.
    """
    return look_up("detector", name, DETECTORS).replace(**overrides)


def create_detector(
    name: str,
    categories: Sequence[str] | Mapping[int, str] | None = None,
    keypoints: Keypoints | None = None,
    **spec_overrides: Any,
) -> Detector:
    """A detector of the catalog with fresh weights, in training mode: a torchvision R-CNN, as it calls them.

    >>> detector = create_detector("mask_rcnn_tiny_nl1", categories={3: "cat", 7: "dog"})
    >>> [(category.id, category.name) for category in detector.categories]
    [(3, 'cat'), (7, 'dog')]

    Images go in as a list of float tensors (3, height, width) in [0, 1]; labels inside are 1, 2, ... in the
    order of the categories, 0 is the background. State dicts of torchvision's own detectors of that form fit.

    Args:
        name: one of `list_detectors()`.
        categories: names, which get the ids 1, 2, ...; or {id: name}, in the order of the labels. None:
            COCO's "person" for keypoints, else numbers, as many as the spec says.
        keypoints: names and more of an object's keypoints; None: COCO's 17 of a person.
        spec_overrides: any field of `DetectorSpec`, as `sides=(320,)` or `pairwise="dot_product"`.

    Raises:
        ValueError: an unknown name or field, a value the spec refuses, categories of one name or id, a layer
            that is no place for a block, or new blocks with a frozen norm.
        ModuleNotFoundError: torchvision is not installed.
    """
    from nonlocal_nn.data.categories import COCO_PERSON, number_categories
    from nonlocal_nn.detection.build import build_detector  # imports torchvision

    spec = get_detector_spec(name, **spec_overrides)
    if spec.task == "keypoints":
        points = keypoints or COCO_PERSON
        spec = spec.replace(num_keypoints=len(points.names))
    elif keypoints is not None:
        raise ValueError(f"keypoints were given, but {name} finds {spec.task}")
    else:
        points = None
    if categories is None:
        one = spec.task == "keypoints" and spec.num_categories == 1
        categories = ["person"] if one else [str(number) for number in range(1, spec.num_categories + 1)]
    numbered = number_categories(categories)
    spec = spec.replace(num_categories=len(numbered))
    return build_detector(spec, numbered, points)
