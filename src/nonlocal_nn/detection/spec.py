"""What a detector is, as plain data: neither torch nor torchvision, so that naming one costs nothing.

>>> spec = DetectorSpec(name="mine", nonlocal_after=("backbone.body.layer3.4",))
>>> DetectorSpec.from_json(spec.to_json()) == spec
True
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nonlocal_nn._names import require_fields
from nonlocal_nn.blocks.options import BlockOptions, Init, SubsampleAt
from nonlocal_nn.data.categories import Task

__all__ = ["LEVEL_STRIDES", "BackboneNorm", "DetectorSpec"]

BackboneNorm = Literal["frozen", "batch", "sync"]
LEVEL_STRIDES = (4, 8, 16, 32, 64)  # pixels from one place to the next, of the five levels of the pyramid
_CHOICES: dict[str, tuple[object, ...]] = {"task": get_args(Task), "backbone_norm": get_args(BackboneNorm)}
# Fields that are tuples of whole numbers from 1 on.
_COUNTS = ("stage_blocks", "anchor_sizes", "sides")
_COUNT = (
    *("groups", "width_per_group", "base_width", "fpn_channels", "box_features", "mask_channels"),
    *("keypoint_channels", "num_categories", "num_keypoints", "longest_side"),
)


@dataclass(frozen=True)
class DetectorSpec:
    """A Faster, Mask or Keypoint R-CNN with a feature pyramid, and where non-local blocks stand in it.

    >>> DetectorSpec(name="mine", task="mask")
    Traceback (most recent call last):
    ...
    ValueError: task is 'mask'; choose one of 'boxes', 'masks', 'keypoints'

    Args:
        name: what it is called in tables and files.
        task: "boxes" (Faster R-CNN), "masks" (Mask R-CNN) or "keypoints" (Keypoint R-CNN).
        stage_blocks: residual blocks of layer1 to layer4: (3, 4, 6, 3) is ResNet-50.
        bottleneck: blocks of 1x1, 3x3, 1x1 convolutions; False: of two 3x3 (ResNet-18).
        groups, width_per_group: of the 3x3 convolutions: 32 and 8 is ResNeXt 32x8d.
        base_width: channels of the first convolution and of layer1's inner ones; stages double them. 64 but
            in the small networks.
        fpn_channels, box_features, mask_channels, keypoint_channels: of the pyramid and the heads.
        keypoint_layers: 3x3 convolutions of the keypoint head.
        anchor_sizes: the square root of the anchors' area in pixels, one for each of the five levels.
        sides: shorter side of an image in pixels; of several, training draws one. longest_side: its bound.
        num_categories: without the background.
        num_keypoints: of an object, for the task "keypoints".
        backbone_norm: "frozen": fixed maps, as the detectors of the literature have them; "batch": trained on
            each process's images; "sync": on those of all processes.
        trained_stages: stages of the backbone that are trained, from layer4 on: 5 is all, 3 leaves the first
            convolution and layer1 as they are, which pays where they come from ImageNet.
        nonlocal_after: names of layers, as in `detector.named_modules()`, that a non-local block follows.
        inner_channels, pairwise, subsample, subsample_at, scale, nonlocal_init: of every block, see
            `NonLocalBlock`.
        nonlocal_norm: None: W_z starts at zero; "batch": a batch norm after it does. "frozen" can be loaded,
            not trained.

    Raises:
        ValueError: a value out of range.
    """

    name: str
    task: Task = "boxes"
    stage_blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64
    base_width: int = 64
    fpn_channels: int = 256
    box_features: int = 1024
    mask_channels: int = 256
    keypoint_channels: int = 512
    keypoint_layers: int = 8
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    sides: tuple[int, ...] = (800,)
    longest_side: int = 1333
    num_categories: int = 80
    num_keypoints: int = 17
    backbone_norm: BackboneNorm = "frozen"
    trained_stages: int = 5
    nonlocal_after: tuple[str, ...] = ()
    inner_channels: int | None = None
    pairwise: str = "embedded_gaussian"
    subsample: bool = True
    subsample_at: SubsampleAt = "embedding"
    scale: bool = False
    nonlocal_norm: Literal["batch", "frozen"] | None = None
    nonlocal_init: Init = "paper"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                options = ", ".join(map(repr, allowed))
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {options}")
        for name in (*_COUNTS, "nonlocal_after"):  # lists, from JSON or YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in _COUNT:
            _check_count(name, getattr(self, name))
        for name in _COUNTS:
            for value in getattr(self, name) or (0,):
                _check_count(name, value)
        if len(self.stage_blocks) != 4 or len(self.anchor_sizes) != 5:
            raise ValueError(
                f"stage_blocks {self.stage_blocks} must name four stages, and anchor_sizes "
                f"{self.anchor_sizes} five levels of the pyramid"
            )
        if not 0 <= self.trained_stages <= 5:
            raise ValueError(f"trained_stages is {self.trained_stages}; the backbone has 0 to 5 to train")
        if self.keypoint_layers < 1:
            raise ValueError(f"keypoint_layers is {self.keypoint_layers}; the head needs one or more")
        if not self.bottleneck and (self.groups, self.width_per_group) != (1, 64):
            raise ValueError("groups and width_per_group are of bottlenecks; this network has none")
        self.block_options  # noqa: B018 - raises where they do not go together

    @property
    def block_options(self) -> BlockOptions:
        """Of the non-local blocks.

        >>> DetectorSpec(name="mine", pairwise="dot_product").block_options.dims
        2
        """
        return BlockOptions(
            inner_channels=self.inner_channels,
            pairwise=self.pairwise,
            dims=2,
            subsample=self.subsample,
            subsample_at=self.subsample_at,
            scale=self.scale,
            norm=self.nonlocal_norm,
            init=self.nonlocal_init,
        )

    def replace(self, **overrides: Any) -> DetectorSpec:
        """The same detector with some fields changed.

        >>> DetectorSpec(name="mine").replace(sids=(320,))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: a detector has no field 'sids'; did you mean 'sides'? The fields are: name, ...
        """
        require_fields("a detector", overrides, [field.name for field in dataclasses.fields(self)])
        return dataclasses.replace(self, **overrides)

    def to_json(self) -> str:
        """For a file."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> DetectorSpec:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not JSON, or not a detector's.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or "name" not in values:
            raise ValueError(f"no description of a detector: {text[:60]!r}")
        return cls(values.pop("name")).replace(**values)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 on")
