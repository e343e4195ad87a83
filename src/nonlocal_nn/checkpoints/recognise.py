"""From the tensors of a published checkpoint to the spec of its network: what is read, what is assumed.

Depth, width, classes, placement, temporal kernels and norm are read from the tensors. What they cannot say
comes from hints, or else from the default of the layout. A hint that the tensors contradict is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from nonlocal_nn.blocks.options import Span, SubsampleAt
from nonlocal_nn.checkpoints.layouts import IMAGE, LAYOUTS, RESNET3D, Layout
from nonlocal_nn.models.catalog import SPECS
from nonlocal_nn.models.spec import STEMS, VideoResNetSpec
from nonlocal_nn.pairwise import get_pairwise

_RESIDUAL = re.compile(r"(res[2-5])\.(\d+)\.conv1\.weight")
_NONLOCAL = re.compile(r"(res[2-5])\.nonlocal(\d+)\.(.+)")
_DEPTHS: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "r50", (3, 4, 23, 3): "r101", (3, 8, 36, 3): "r152"}


@dataclass(frozen=True)
class Hints:
    """What a file cannot say; None is not said."""

    stem: str | None = None
    pairwise: str | None = None
    scale: bool | None = None
    temporal_groups: Mapping[str, int] | None = None
    inflation: str | None = None
    subsample: bool | None = None
    subsample_at: SubsampleAt | None = None
    span: Span | None = None

    def of_blocks(self) -> dict[str, Any]:
        """Those given that are options of a block, temporal_groups (by block) left out."""
        names = ("pairwise", "scale", "subsample", "subsample_at", "span")
        return {name: value for name, value in self.given().items() if name in names}

    def given(self) -> dict[str, Any]:
        """The hints that were given."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def network_layout(state: Mapping[str, Tensor]) -> Layout | None:
    """The layout that has most of the names and at least a residual block; None if none has."""
    best, count = None, 0
    for layout in LAYOUTS.values():
        if layout is IMAGE:
            continue  # its names are those of RESNET3D
        names = {ours for name in state if (ours := layout.to_ours(name)) is not None}
        if len(names) > count and any(_RESIDUAL.fullmatch(name) for name in names):
            best, count = layout, len(names)
    if best is RESNET3D and all(tensor.dim() < 5 for tensor in state.values()):
        return IMAGE
    return best


def to_ours(state: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under our names, and the names the layout does not have.

    Raises:
        ValueError: two tensors of the file are one here.
    """
    named: dict[str, Tensor] = {}
    unused: list[str] = []
    for name, tensor in state.items():
        ours = layout.to_ours(name)
        if ours is None:
            unused.append(name)
            continue
        if ours in named:
            raise ValueError(f"two of its tensors are {ours} here, {name} is the second")
        matrix = ours == "head.fc.weight" or ".excitation." in ours
        if ours.endswith(".w_f") or (matrix and tensor.dim() > 2):
            # 1x1 convolutions there. Strides that claim a huge tensor cost nothing: of such a shape this is
            # a view.
            tensor = tensor.flatten() if ours.endswith(".w_f") else _matrix(tensor)
        named[ours] = tensor
    return named, tuple(unused)


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if all(size == 1 for size in tensor.shape[2:]) else tensor


def infer_spec(
    named: Mapping[str, Tensor], names: Iterable[str], layout: Layout, hints: Hints
) -> VideoResNetSpec:
    """The spec of a network from its tensors under our names and their `names` in the file.

    Raises:
        ValueError: the tensors are those of no network we can build, or a hint contradicts them.
    """
    stage_blocks = _stage_blocks(named)
    if not any(".conv3." in name for name in named):
        raise ValueError(
            "its residual blocks have two convolutions (ResNet-18 and -34); the video ResNets here are made "
            "of bottlenecks (ResNet-50, -101). nl.insert_blocks puts non-local blocks into the network itself"
        )
    inflation, inflated = _inflation(named, layout, hints)
    values: dict[str, Any] = {
        "inflation": inflation,
        "stage_blocks": stage_blocks,
        "stage_strides": (1, 2, 2, 2)[: len(stage_blocks)],
        "frames": layout.frames,
        "stride_at": layout.stride_at,
    }
    conv1 = named.get("stem.conv.weight")
    width = conv1 if conv1 is not None else named.get("res2.0.conv1.weight")
    if width is not None:
        values["base_width"] = int(width.shape[0])
    if "head.fc.weight" in named:
        values["num_classes"] = int(named["head.fc.weight"].shape[0])
    values["stem"], frames = _stem(conv1, inflation, inflated, layout, hints)
    if values["stem"] in ("paper", "vnl32"):
        values["frames"] = 32
    if frames is not None:
        values["conv1_frames"] = frames
    folded = "stem.norm.weight" in named and not any(name.endswith(".running_mean") for name in named)
    if folded:
        values |= {"norm": "frozen", "norm_eps": 0.0}
    values |= _blocks(named, names, layout, hints, folded=folded)
    values |= _excitation(named)
    spec = VideoResNetSpec("unnamed", **values)
    if not layout.image and inflated != _rule(spec):
        spec = spec.replace(inflated=inflated)
    return spec.replace(name=_name(spec))


def _excitation(named: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of the spec that say what squeeze-and-excitation there is."""
    found = {name: tensor for name, tensor in named.items() if name.endswith(".excitation.W_1.weight")}
    if not found:
        return {}
    reductions = {tensor.shape[1] // max(1, tensor.shape[0]) for tensor in found.values()}
    residual = sum(1 for name in named if _RESIDUAL.fullmatch(name))
    if len(reductions) > 1 or len(found) != residual:
        raise ValueError(
            f"{len(found)} of its {residual} residual blocks have squeeze-and-excitation, of reductions "
            f"{sorted(reductions)}; ours have one in each, of one reduction. nl.load_blocks gives the blocks"
        )
    return {"se_reduction": reductions.pop()}


def implied_values(
    spec: VideoResNetSpec, layout: Layout, named: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Tensors the layout does not write because it fixes their value."""
    implied = {"num_batches_tracked": 0.0}
    weights = [name for name in named or {} if ".excitation.W_" in name and name.endswith(".weight")]
    biases = [f"{name.removesuffix('weight')}bias" for name in weights]
    if not any(name in (named or {}) for name in biases):  # moskomule's has none
        implied |= dict.fromkeys(biases, 0.0)
    if not layout.block.output_bias and spec.nonlocal_norm is not None:
        for stage, indices in spec.nonlocal_after.items():
            implied |= {f"{stage}.nonlocal{index}.W_z.bias": 0.0 for index in indices}
    if spec.norm == "frozen" and spec.norm_eps == 0:
        implied |= {"running_mean": 0.0, "running_var": 1.0}
    return implied


def _stage_blocks(named: Mapping[str, Tensor]) -> tuple[int, ...]:
    found: dict[str, set[int]] = {}
    for name in named:
        match = _RESIDUAL.fullmatch(name)
        if match:
            found.setdefault(match[1], set()).add(int(match[2]))
    stages = sorted(found)
    wanted = [f"res{2 + i}" for i in range(len(stages))]
    if stages != wanted:
        raise ValueError(f"it has residual blocks in {', '.join(stages)} and none in {wanted[0]} or between")
    for stage, indices in found.items():
        for index in range(max(indices) + 1):
            if index not in indices:
                raise ValueError(
                    f"residual block {index} of {stage} is missing, but block {max(indices)} is there"
                )
    return tuple(len(found[stage]) for stage in stages)


def _inflation(
    named: Mapping[str, Tensor], layout: Layout, hints: Hints
) -> tuple[str | None, dict[str, tuple[int, ...]]]:
    """Which kernels have a temporal extent, and in which residual blocks."""
    if layout.image:
        return hints.inflation, {}
    found: dict[str, dict[str, list[int]]] = {"conv1": {}, "conv2": {}}
    for name, tensor in named.items():
        match = re.fullmatch(r"(res\d)\.(\d+)\.(conv1|conv2)\.weight", name)
        if match is None:
            continue
        if tensor.dim() != 5 or tensor.shape[2] not in (1, 3):
            raise ValueError(f"{name} is {_shape(tensor)}; it should be 5-dimensional, of 1 or 3 frames")
        if tensor.shape[2] == 3:
            found[match[3]].setdefault(match[1], []).append(int(match[2]))
    if found["conv1"] and found["conv2"]:
        raise ValueError(
            "some of its 1x1 and some of its 3x3 convolutions span three frames; ours do one or the other"
        )
    kind = "conv1" if found["conv1"] else "conv2"
    inflation = None if not found[kind] else "3x1x1" if kind == "conv1" else "3x3x3"
    if hints.inflation is not None and hints.inflation != inflation:
        raise ValueError(
            f"hint inflation={hints.inflation!r} contradicts the file: its kernels are {inflation}"
        )
    return inflation, {stage: tuple(sorted(blocks)) for stage, blocks in found[kind].items()}


def _rule(spec: VideoResNetSpec) -> dict[str, tuple[int, ...]]:
    """What `VideoResNetSpec.inflated` would be for the paper's rule."""
    rule = {
        stage: tuple(i for i in range(blocks) if spec.is_inflated(stage, i))
        for stage, blocks in zip(spec.stage_names, spec.stage_blocks, strict=True)
    }
    return {stage: blocks for stage, blocks in rule.items() if blocks}


def _stem(
    conv1: Tensor | None,
    inflation: str | None,
    inflated: Mapping[str, tuple[int, ...]],
    layout: Layout,
    hints: Hints,
) -> tuple[str, int | None]:
    """The stem, and the frames of its kernel where they are not what the stem says."""
    stem = hints.stem or layout.stem
    if stem not in STEMS:
        raise ValueError(f"hint stem={stem!r} does not exist; the stems are {', '.join(STEMS)}")
    if layout.image or conv1 is None:
        return stem, None
    # Only networks that never shrink in time convolve in time from res4 on (Slow, SlowOnly).
    slow = conv1.dim() == 5 and conv1.shape[2] == 1 and set(inflated) == {"res4", "res5"}
    if slow and layout.name in ("pyslowfast", "mmaction2") and hints.stem in (None, "slowfast"):
        stem = "slow"
    size = STEMS[stem].conv_size
    if conv1.dim() != 5 or tuple(conv1.shape[3:]) != (size, size):
        word = "contradicts the file" if hints.stem else "is the layout's"
        raise ValueError(
            f"stem={stem!r} {word}: conv1 is {_shape(conv1)} in the file and {size}x{size} in that stem"
        )
    usual = 1 if inflation is None else STEMS[stem].inflated_time
    return stem, None if conv1.shape[2] == usual else int(conv1.shape[2])


def _blocks(
    named: Mapping[str, Tensor], names: Iterable[str], layout: Layout, hints: Hints, *, folded: bool
) -> dict[str, Any]:
    """The fields of the spec that say what non-local blocks there are."""
    parts: dict[tuple[str, int], set[str]] = {}
    for name in named:
        match = _NONLOCAL.fullmatch(name)
        if match:
            parts.setdefault((match[1], int(match[2])), set()).add(match[3])
    groups = hints.temporal_groups
    for stage in groups or {}:
        if not any(stage == placed for placed, _ in parts):
            raise ValueError(
                f"hint temporal_groups names {stage!r}, but the file has non-local blocks in "
                f"{', '.join(sorted({placed for placed, _ in parts})) or 'no stage'}"
            )
    if not parts:
        return {}
    if groups is None and folded:
        with_blocks = {stage for stage, _ in parts}
        groups = {stage: count for stage, count in layout.folded_groups.items() if stage in with_blocks}
    after: dict[str, tuple[int, ...]] = {}
    for stage, index in sorted(parts):
        after[stage] = (*after.get(stage, ()), index)
    pairwise = _pairwise(list(parts.values()), layout, hints)
    return {
        "nonlocal_after": after,
        "pairwise": pairwise,
        "scale": checked_scale(layout.owner, pairwise, layout.block.scaled, layout.block.scale, hints),
        "subsample": _subsample(names, layout),
        "subsample_at": layout.block.subsample_at,
        "temporal_groups": {stage: count for stage, count in (groups or {}).items() if count != 1},
        "nonlocal_norm": "batch" if any(_has_norm(have) for have in parts.values()) else None,
    }


def _has_norm(names: Iterable[str]) -> bool:
    return any(name.startswith("norm.") for name in names)


def _pairwise(blocks: list[set[str]], layout: Layout, hints: Hints) -> str:
    kinds = {file_pairwise(have, layout.block.pairwise) for have in blocks}
    if len(kinds) > 1:
        raise ValueError("some of its non-local blocks have theta, phi and w_f and others do not")
    return checked_pairwise(layout.owner, kinds.pop(), hints)


def file_pairwise(have: Iterable[str], possible: tuple[str, ...]) -> tuple[str, ...]:
    """The pairwise functions a block with these tensors can have, the layout's default first."""
    have = set(have)
    embeds = bool({"theta.weight", "phi.weight"} & have)
    functions = {name: get_pairwise(name) for name in possible}
    found = tuple(name for name, f in functions.items() if (f.scores, f.embeds) == ("w_f" in have, embeds))
    # Without theta where a layout has no such block: what is missing is said later.
    return found or tuple(name for name, f in functions.items() if f.embeds and not f.scores)


def checked_pairwise(owner: str, kinds: tuple[str, ...], hints: Hints) -> str:
    """The hint, if the file can be that; without one the first it can be.

    Raises:
        ValueError: the hint contradicts the file.
    """
    if hints.pairwise is None or hints.pairwise in kinds:
        return hints.pairwise or kinds[0]
    raise ValueError(
        f"hint pairwise={hints.pairwise!r} contradicts the file: by the tensors of its blocks ({owner}) it "
        f"can be {' or '.join(map(repr, kinds))}"
    )


def checked_scale(owner: str, pairwise: str, scaled: tuple[str, ...], default: bool, hints: Hints) -> bool:
    """Whether theta . phi is scaled.

    Raises:
        ValueError: the hint asks for a scale that the owner's code does not have.
    """
    if pairwise in scaled:
        return default if hints.scale is None else hints.scale
    if hints.scale:
        raise ValueError(f"hint scale=True contradicts the file: {owner} never scales {pairwise}")
    return False


def _subsample(names: Iterable[str], layout: Layout) -> bool:
    """In mmaction2 a pooled g is g.0."""
    if layout.name != "mmaction2":
        return True
    pooled = {".g.0." in name for name in names if re.search(r"\.non_local_block\.g\.", name)}
    if len(pooled) > 1:
        raise ValueError("some of its non-local blocks subsample and others do not")
    return pooled.pop() if pooled else True


def _name(spec: VideoResNetSpec) -> str:
    """A name in the manner of the catalog's; the catalog's own for what is in it."""
    family = "c2d" if spec.inflation is None else "i3d" if spec.inflation == "3x1x1" else "i3d_3x3x3"
    family = "slow" if spec.stem == "slow" else family
    depth = _DEPTHS.get(spec.stage_blocks, f"r{2 + 3 * sum(spec.stage_blocks)}")
    name = f"{family}_{depth}" + ("_se" if spec.se_reduction else "")
    if spec.nonlocal_after:
        name += f"_nl{spec.nonlocal_count}"
    if name in SPECS and spec.nonlocal_after != SPECS[name].nonlocal_after:
        name += "_elsewhere"
    return name


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
