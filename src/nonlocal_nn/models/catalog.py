"""Every network by name, as data; torch is imported when one is built.

>>> list_models("c2d_r50*")
['c2d_r50', 'c2d_r50_nl1', 'c2d_r50_nl5', 'c2d_r50_nl10']
>>> get_spec("i3d_r101_nl5").nonlocal_after
{'res3': (1, 3), 'res4': (6, 13, 20)}
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from nonlocal_nn._names import look_up
from nonlocal_nn.models.spec import Inflation, VideoResNetSpec

if TYPE_CHECKING:
    from nonlocal_nn.models.video_resnet import VideoResNet

_DEPTHS: dict[str, tuple[int, ...]] = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3)}
_FAMILIES: dict[str, Inflation | None] = {"c2d": None, "i3d": "3x1x1", "i3d_3x3x3": "3x3x3"}

# A block follows the residual block of that index. One block: before the last residual block of res4.
PLACEMENTS: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {
    "r50": {
        "": {},
        "_nl1": {"res4": (4,)},
        "_nl5": {"res3": (1, 3), "res4": (1, 3, 5)},
        "_nl10": {"res3": (0, 1, 2, 3), "res4": (0, 1, 2, 3, 4, 5)},
    },
    "r101": {
        "": {},
        "_nl1": {"res4": (21,)},
        "_nl5": {"res3": (1, 3), "res4": (6, 13, 20)},
        # The paper reports ten blocks in ResNet-101 (Table 2c) without their places. Ours: every block of
        # res3 as in ResNet-50, and six evenly along res4's 23, among them the three of the 5-block model.
        "_nl10": {"res3": (0, 1, 2, 3), "res4": (3, 6, 10, 13, 17, 20)},
    },
}

# Small networks that a CPU trains in minutes, for clips of 8 frames of 48 x 48.
_TINY: dict[str, Any] = {
    "stage_blocks": (1, 2, 1),
    "stage_strides": (1, 2, 2),
    "base_width": 8,
    "stem": "tiny",
    "frames": 8,
    "crop": 48,
    "dropout": 0.0,
}
_TINY_PLACEMENTS: dict[str, dict[str, tuple[int, ...]]] = {
    "": {},
    "_nl1": {"res3": (0,)},
    "_nl2": {"res3": (0, 1)},
}

# Smaller ones, for the long-range set: one feature sees 25 x 25 pixels of 1 frame (i3d: of 5 frames).
_SMALL: dict[str, Any] = {**_TINY, "stage_blocks": (1, 1), "stage_strides": (1, 2), "conv1_frames": 1}


_IMAGE: dict[str, Any] = {"stem": "slow", "frames": 1, "num_classes": 1000, "dropout": 0.0}


def _catalog() -> dict[str, VideoResNetSpec]:
    specs: list[VideoResNetSpec] = []
    for family, inflation in _FAMILIES.items():
        for depth, blocks in _DEPTHS.items():
            for suffix, placement in PLACEMENTS[depth].items():
                name = f"{family}_{depth}{suffix}"
                specs.append(
                    VideoResNetSpec(name, inflation=inflation, stage_blocks=blocks, nonlocal_after=placement)
                )
    for family, inflation in _FAMILIES.items():
        for suffix, placement in _TINY_PLACEMENTS.items():
            name = f"{family}_tiny{suffix}"
            specs.append(VideoResNetSpec(name, inflation=inflation, nonlocal_after=placement, **_TINY))
    for name, inflation in (("c2d_small", None), ("i3d_small", _FAMILIES["i3d"])):
        specs.append(VideoResNetSpec(name, inflation=inflation, **_SMALL))
        specs.append(
            VideoResNetSpec(f"{name}_nl", inflation=inflation, nonlocal_after={"res3": (0,)}, **_SMALL)
        )
    for depth, blocks in _DEPTHS.items():  # image networks: clips of one frame
        name = depth.replace("r", "seresnet")
        specs.append(VideoResNetSpec(name, stage_blocks=blocks, se_reduction=16, **_IMAGE))
    return {spec.name: spec for spec in specs}


SPECS: dict[str, VideoResNetSpec] = _catalog()


def list_models(pattern: str | None = None) -> list[str]:
    """The names `create_model` knows, or those that match a shell pattern.

    >>> list_models("*tiny_nl2")
    ['c2d_tiny_nl2', 'i3d_tiny_nl2', 'i3d_3x3x3_tiny_nl2']
    """
    return [name for name in SPECS if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def get_spec(name: str, **overrides: Any) -> VideoResNetSpec:
    """The spec of a name, with some fields changed.

    >>> get_spec("c2d_r50", base_width=32).stage_channels
    (128, 256, 512, 1024)

    Raises:
        ValueError: no such model (the nearest names are listed) or no such field (the fields are listed).
    """
    return look_up("model", name, SPECS).replace(**overrides)


def create_model(name: str, num_classes: int | None = None, **spec_overrides: Any) -> VideoResNet:
    """Build a network of the catalog with fresh weights, in training mode.

    >>> model = create_model("c2d_tiny_nl1", num_classes=4, pairwise="dot_product")
    >>> model.spec.nonlocal_after
    {'res3': (0,)}

    Args:
        name: one of `list_models()`.
        num_classes: logits; None keeps the spec's, 400 (1,000 of an image network).
        spec_overrides: any field of `VideoResNetSpec`, as `base_width=32` or `nonlocal_after={"res4": (1,)}`.

    Raises:
        ValueError: an unknown name or field, or a value the spec refuses.
    """
    if num_classes is not None:
        spec_overrides["num_classes"] = num_classes
    from nonlocal_nn.models.build import build_model  # imports torch, which names and specs do without

    return build_model(get_spec(name, **spec_overrides))
