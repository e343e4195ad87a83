"""What a video ResNet is, as plain data: no torch, so that naming a model costs nothing.

>>> spec = VideoResNetSpec(name="c2d_r50_nl1", nonlocal_after={"res4": (4,)})
>>> spec.stage_names, spec.stage_inner, spec.stage_channels
(('res2', 'res3', 'res4', 'res5'), (64, 128, 256, 512), (256, 512, 1024, 2048))
>>> VideoResNetSpec.from_json(spec.to_json()) == spec
True
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from nonlocal_nn._names import require_fields
from nonlocal_nn.blocks import options as block_options
from nonlocal_nn.blocks.options import BlockOptions, Init, Norm, Span, SubsampleAt
from nonlocal_nn.pairwise import PairwiseFunction, pairwise_functions

Triple = tuple[int, int, int]  # (time, height, width)

EXPANSION = 4  # a bottleneck's output channels over its inner channels (64-64-256)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A max pool: kernel, stride and padding, each (time, height, width).

    round_up: a window that begins inside counts, though it ends outside (Caffe's rule).
    """

    kernel: Triple
    stride: Triple
    padding: Triple = (0, 0, 0)
    round_up: bool = False


@dataclass(frozen=True, slots=True)
class StemSpec:
    """How a clip shrinks before res2 (conv1, pool1) and between res2 and res3 (pool2): the rows of Table 1.

    `conv_size` is conv1's height and width; its temporal kernel is 1, or `inflated_time` in an inflated (I3D)
    network, padded to keep the length. A pool that is None does not exist.
    """

    conv_size: int
    conv_stride: Triple
    inflated_time: int
    pool1: PoolSpec | None
    pool2: PoolSpec | None


STEMS: dict[str, StemSpec] = {
    # Table 1 prints kernels, strides and output sizes; the padding is the one that yields those sizes.
    "paper": StemSpec(
        conv_size=7,
        conv_stride=(2, 2, 2),
        inflated_time=5,
        pool1=PoolSpec((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        pool2=PoolSpec((3, 1, 1), (2, 1, 1), (1, 0, 0)),
    ),
    # The authors' released 32-frame models (clips of 32 frames, every 2nd frame): unpadded pools.
    "vnl32": StemSpec(
        conv_size=7,
        conv_stride=(2, 2, 2),
        inflated_time=5,
        pool1=PoolSpec((2, 3, 3), (2, 2, 2)),
        pool2=PoolSpec((2, 1, 1), (2, 1, 1)),
    ),
    # The authors' released 8-frame models (every 8th frame): time shrinks at pool2 alone.
    "vnl": StemSpec(
        conv_size=7,
        conv_stride=(1, 2, 2),
        inflated_time=5,
        pool1=PoolSpec((1, 3, 3), (1, 2, 2)),
        pool2=PoolSpec((2, 1, 1), (2, 1, 1)),
    ),
    # PySlowFast's C2D and I3D: as "vnl", pool1 padded.
    "slowfast": StemSpec(
        conv_size=7,
        conv_stride=(1, 2, 2),
        inflated_time=5,
        pool1=PoolSpec((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        pool2=PoolSpec((2, 1, 1), (2, 1, 1)),
    ),
    # PySlowFast's Slow and mmaction2's SlowOnly: no convolution in time before res4, no temporal striding.
    # Also that of an image network, which sees one frame.
    "slow": StemSpec(
        conv_size=7,
        conv_stride=(1, 2, 2),
        inflated_time=1,
        pool1=PoolSpec((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        pool2=None,
    ),
    # mmaction2's I3D: pool1 steps in time without looking at neighbouring frames.
    "mmaction2": StemSpec(
        conv_size=7,
        conv_stride=(2, 2, 2),
        inflated_time=5,
        pool1=PoolSpec((1, 3, 3), (2, 2, 2), (0, 1, 1)),
        pool2=PoolSpec((2, 1, 1), (2, 1, 1)),
    ),
    # For clips of 8 x 48 x 48 on a CPU; no temporal striding, so a block sees every frame.
    "tiny": StemSpec(
        conv_size=5,
        conv_stride=(1, 2, 2),
        inflated_time=3,
        pool1=PoolSpec((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        pool2=None,
    ),
    # Image networks of the SE authors' Caffe (timm's legacy_seresnet): pool1 unpadded, rounded up.
    "caffe_image": StemSpec(
        conv_size=7,
        conv_stride=(1, 2, 2),
        inflated_time=1,
        pool1=PoolSpec((1, 3, 3), (1, 2, 2), round_up=True),
        pool2=None,
    ),
    # For images of 16 or 32 pixels, as one frame.
    "small_image": StemSpec(conv_size=3, conv_stride=(1, 1, 1), inflated_time=1, pool1=None, pool2=None),
}

Inflation = Literal["3x1x1", "3x3x3"]
Placement = Literal["standard", "pre", "post", "identity"]
ExcitationPool = Literal["average", "max"]
StrideAt = Literal["1x1", "3x3"]

_CHOICES: dict[str, tuple[object, ...]] = {
    "inflation": (None, *get_args(Inflation)),
    "stem": tuple(STEMS),
    "subsample": block_options.CHOICES["subsample"],
    "subsample_at": block_options.CHOICES["subsample_at"],
    "span": block_options.CHOICES["span"],
    "scale": block_options.CHOICES["scale"],
    "nonlocal_norm": ("batch", None),
    "nonlocal_init": block_options.CHOICES["init"],
    "norm": get_args(Norm),
    "se_placement": get_args(Placement),
    "se_pool": get_args(ExcitationPool),
    "stride_at": get_args(StrideAt),
}


@dataclass(frozen=True)
class VideoResNetSpec:
    """A C2D or I3D ResNet with non-local blocks (section 3.3 and 4 of the paper).

    >>> VideoResNetSpec(name="mine").replace(base_widht=32)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: a video ResNet has no field 'base_widht'; did you mean 'base_width'? The fields are: name, ...

    Args:
        name: what the network is called in tables and files.
        inflation: None is C2D (no convolution in time); "3x1x1" gives the first 1x1 of every other bottleneck
            three frames, "3x3x3" the middle 3x3.
        inflated: {"res4": (0, 1)}: the residual blocks that convolve in time; None: one of every two, all of
            res2 (the paper).
        conv1_frames: frames that conv1's kernel spans; None: as the stem says.
        stage_blocks: residual blocks in res2, res3, ...: (3, 4, 6, 3) is ResNet-50; one to four stages.
        stage_strides: spatial stride of each stage, in its first block.
        stride_at: on which of that block's convolutions: its 3x3, or, as the first ResNets had it, its "1x1".
        base_width: channels of conv1 and of res2's inner convolutions (64 in the paper); stages double them.
        num_classes: logits.
        stem: a row of `STEMS`.
        nonlocal_after: {"res3": (1, 3)}: a non-local block follows the residual blocks 1 and 3 of res3.
        pairwise, subsample, subsample_at, span, scale: handed to every `NonLocalBlock`. A
            `PairwiseFunction` of your own is registered, so that files can name it.
        temporal_groups: {"res3": 4}: the blocks of res3 see the clip in 4 contiguous groups of frames.
        nonlocal_norm: "batch", a normalisation after W_z with gamma 0; None, W_z itself starts at zero.
        nonlocal_init: how the blocks' convolutions start, "paper" (He) or "released" (normal, 0.01).
        norm: "frozen" makes every batch norm, those of the non-local blocks too, a fixed affine map.
        norm_eps: added to the variance in every batch norm; 0 where a published network has the whole norm
            folded into one factor and one term.
        dropout: before the classifier, in [0, 1).
        se_reduction: a `SqueezeExcitation` of that reduction in every residual block; None: there are none.
        se_placement: where in the block, see `Bottleneck`.
        se_pool: what it sees of each channel, "average" or "max".
        frames, crop: the clip the network is meant for, frames x crop x crop pixels; other sizes work too.

    Raises:
        ValueError: a value out of range or a block placed where the network has none; the text names both.
    """

    name: str
    inflation: Inflation | None = None
    inflated: Mapping[str, tuple[int, ...]] | None = None
    conv1_frames: int | None = None
    stage_blocks: tuple[int, ...] = (3, 4, 6, 3)
    stage_strides: tuple[int, ...] = (1, 2, 2, 2)
    base_width: int = 64
    num_classes: int = 400
    stem: str = "paper"
    nonlocal_after: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pairwise: str = "embedded_gaussian"
    subsample: bool = True
    subsample_at: SubsampleAt = "embedding"
    span: Span = "spacetime"
    temporal_groups: Mapping[str, int] = field(default_factory=dict)
    scale: bool = False
    nonlocal_norm: Literal["batch"] | None = "batch"
    nonlocal_init: Init = "paper"
    norm: Norm = "batch"
    norm_eps: float = 1e-5
    dropout: float = 0.5
    frames: int = 32
    crop: int = 224
    se_reduction: int | None = None
    se_placement: Placement = "standard"
    se_pool: ExcitationPool = "average"
    stride_at: StrideAt = "3x3"

    def __post_init__(self) -> None:
        if isinstance(self.pairwise, PairwiseFunction):
            object.__setattr__(self, "pairwise", self.pairwise.register().name)
        pairwise = tuple(function.name for function in pairwise_functions())
        for name, choices in {**_CHOICES, "pairwise": pairwise}.items():
            value = getattr(self, name)
            if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")
        for name in ("base_width", "num_classes", "frames", "crop"):
            _check_count(name, getattr(self, name))
        if self.se_reduction is not None:
            _check_count("se_reduction", self.se_reduction)
        if self.conv1_frames is not None:
            _check_count("conv1_frames", self.conv1_frames)
            if self.conv1_frames % 2 == 0:
                raise ValueError(f"conv1_frames is {self.conv1_frames}; an odd kernel keeps the length")
        if not isinstance(self.norm_eps, (int, float)) or not 0 <= self.norm_eps < 1:
            raise ValueError(f"norm_eps is {self.norm_eps!r}; it must be in [0, 1)")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}; it must be in [0, 1)")
        # lists (from JSON or YAML) become tuples, so that two equal specs compare equal
        object.__setattr__(self, "stage_blocks", _counts("stage_blocks", self.stage_blocks))
        object.__setattr__(self, "stage_strides", _counts("stage_strides", self.stage_strides))
        if not 1 <= len(self.stage_blocks) <= 4 or len(self.stage_strides) != len(self.stage_blocks):
            raise ValueError(
                f"stage_blocks {self.stage_blocks} and stage_strides {self.stage_strides} must both have "
                "one value for each of the same one to four stages (res2 to res5)"
            )
        placed = self._checked_placement("nonlocal_after", self.nonlocal_after)
        object.__setattr__(self, "nonlocal_after", placed)
        if self.inflated is not None:
            if self.inflation is None:
                raise ValueError(
                    f"inflated names residual blocks {dict(self.inflated)}, but inflation is None: say which "
                    "of their convolutions, '3x1x1' or '3x3x3'"
                )
            object.__setattr__(self, "inflated", self._checked_placement("inflated", self.inflated))
        self._check_stages("temporal_groups", self.temporal_groups)
        for stage, groups in self.temporal_groups.items():
            _check_count(f"temporal_groups[{stage!r}]", groups)
        object.__setattr__(self, "temporal_groups", dict(self.temporal_groups))

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(f"res{2 + i}" for i in range(len(self.stage_blocks)))

    @property
    def stage_inner(self) -> tuple[int, ...]:
        """Channels inside the bottlenecks of each stage."""
        return tuple(self.base_width * 2**i for i in range(len(self.stage_blocks)))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels each stage gives out."""
        return tuple(EXPANSION * inner for inner in self.stage_inner)

    @property
    def nonlocal_count(self) -> int:
        return sum(len(positions) for positions in self.nonlocal_after.values())

    def is_inflated(self, stage: str, index: int) -> bool:
        """Whether residual block `index` of `stage` convolves in time (PAPER: one of every two, all of res2).

        >>> spec = VideoResNetSpec(name="i3d_r50", inflation="3x1x1")
        >>> [spec.is_inflated("res3", i) for i in range(4)]
        [True, False, True, False]
        >>> [spec.is_inflated("res5", i) for i in range(3)]
        [False, True, False]
        """
        if self.inflation is None:
            return False
        if self.inflated is not None:
            return index in self.inflated.get(stage, ())
        if stage == "res2":
            return True
        return index % 2 == (1 if stage == "res5" else 0)

    def block_options(self, stage: str) -> BlockOptions:
        """Of the non-local blocks of a stage.

        >>> VideoResNetSpec(name="mine", pairwise="dot_product").block_options("res3").pairwise
        'dot_product'
        """
        frozen = self.norm == "frozen" and self.nonlocal_norm is not None
        return BlockOptions(
            pairwise=self.pairwise,
            subsample=self.subsample,
            subsample_at=self.subsample_at,
            span=self.span,
            temporal_groups=self.temporal_groups.get(stage, 1),
            scale=self.scale,
            norm="frozen" if frozen else self.nonlocal_norm,
            init=self.nonlocal_init,
        )

    def replace(self, **overrides: Any) -> VideoResNetSpec:
        """The same network with some fields changed; a name that is no field is an error that lists them."""
        require_fields("a video ResNet", overrides, FIELDS)
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> VideoResNetSpec:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, or holds a field a video ResNet does not have.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the model spec is not valid JSON ({error}): {text[:80]!r}") from error
        if not isinstance(values, dict) or "name" not in values:
            raise ValueError(f"the model spec must be a JSON object with a name, got: {text[:80]!r}")
        require_fields("a video ResNet", values, FIELDS)
        return cls(**values)

    def _check_stages(self, what: str, by_stage: object) -> None:
        if not isinstance(by_stage, Mapping):
            raise ValueError(f"{what} is {by_stage!r}; it must map stage names to values, as {{'res3': ...}}")
        for stage in by_stage:
            if stage not in self.stage_names:
                raise ValueError(
                    f"{what} names stage {stage!r}; this network has the stages {', '.join(self.stage_names)}"
                )

    def _checked_placement(
        self, what: str, by_stage: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[int, ...]]:
        self._check_stages(what, by_stage)
        placement: dict[str, tuple[int, ...]] = {}
        for stage, blocks in zip(self.stage_names, self.stage_blocks, strict=True):
            if stage not in by_stage:
                continue
            given: object = by_stage[stage]
            if not isinstance(given, (tuple, list)):
                raise ValueError(f"{what}[{stage!r}] is {given!r}; it must list block indices, as (1, 3)")
            positions = tuple(given)
            for position in positions:
                if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < blocks:
                    verb = "places a block after" if what == "nonlocal_after" else "names"
                    raise ValueError(
                        f"{what} {verb} residual block {position!r} of {stage}, "
                        f"which has {blocks} blocks: use indices 0 to {blocks - 1}"
                    )
            if len(set(positions)) != len(positions):
                raise ValueError(f"{what}[{stage!r}] names a block twice: {positions}")
            if positions:
                placement[stage] = tuple(sorted(positions))
        return placement


FIELDS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(VideoResNetSpec))


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")


def _counts(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise ValueError(f"{name} is {values!r}; it must list one whole number a stage")
    for i, value in enumerate(values):
        _check_count(f"{name}[{i}]", value)
    return tuple(values)
