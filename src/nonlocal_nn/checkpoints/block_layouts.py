"""How non-local blocks are named in public code, wherever in a network they stand.

>>> import torch
>>> W, x = torch.zeros(8, 4, 1, 1), torch.zeros(4, 8, 1, 1)
>>> state = {"fc.weight": x, "nl_1.g.0.weight": x, "nl_1.W.weight": W}
>>> {prefix: (found.layout.name, found.subsample) for prefix, found in find_blocks(state).items()}
{'nl_1': ('non-local_pytorch', True)}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # names of layouts are read by `nonlocal --help`, which does not wait for torch
    from torch import Tensor

    from nonlocal_nn.blocks.options import SubsampleAt

TORCH_CONV = {"weight": ".weight", "bias": ".bias"}
TORCH_NORM = {
    **TORCH_CONV,
    "running_mean": ".running_mean",
    "running_var": ".running_var",
    "num_batches_tracked": ".num_batches_tracked",
}
CAFFE2_CONV = {"weight": "_w", "bias": "_b"}
CAFFE2_NORM = {"weight": "_s", "bias": "_b", "running_mean": "_rm", "running_var": "_riv"}


@dataclass(frozen=True)
class BlockLayout:
    """Names of a block's parts in one public layout.

    Attributes:
        roles: our name -> theirs; <.0> is there only when the block pools (or, in W_z, has a norm); of two
            names with | between them the first is written.
        separator: between the block's own name and its parts'.
        conv, norm: suffixes of a convolution's (or linear layer's) and of a norm's tensors, here and there.
        pairwise: what its blocks can be, the first when no hint or tensor says otherwise.
        scale: whether theta . phi is scaled when no hint says otherwise.
        scaled: the pairwise functions it can scale.
        scale_by: whose length the scale is the inverse root of.
        subsample: whether its blocks pool; "named": the names say it.
        subsample_at: where they do.
        output_bias: W_z has a bias beside a norm.
    """

    name: str
    owner: str
    roles: Mapping[str, str]
    separator: str = "."
    conv: Mapping[str, str] = field(default_factory=lambda: TORCH_CONV)
    norm: Mapping[str, str] = field(default_factory=lambda: TORCH_NORM)
    scale: bool = False
    pairwise: tuple[str, ...] = ("embedded_gaussian", "dot_product")
    scaled: tuple[str, ...] = ("embedded_gaussian",)
    subsample: bool | Literal["named"] = True
    subsample_at: SubsampleAt = "input"
    scale_by: Literal["inner", "channels"] = "inner"
    output_bias: bool = True

    def candidates(self) -> dict[str, list[tuple[str, bool]]]:
        """Tensor here -> the names it can have there, each with whether what stands in <...> is in it."""
        found: dict[str, list[tuple[str, bool]]] = {}
        for role, pattern in self.roles.items():
            suffixes = self.norm if role == "norm" else self.conv
            if role == "w_f":
                suffixes = (
                    {"": ""} if pattern == "w_f" else {"": self.conv["weight"], "bias": self.conv["bias"]}
                )
            for tensor, suffix in suffixes.items():
                ours = f"{role}.{tensor}" if tensor else role
                for name in pattern.split("|"):
                    for optional in (True, False) if "<" in name else (True,):
                        there = re.sub(r"<(.*?)>", r"\1" if optional else "", name) + suffix
                        found.setdefault(ours, []).append((there, optional))
        return found


@dataclass(frozen=True)
class FoundBlock:
    """A block in a state dict: its tensors under our names, and what their names tell."""

    layout: BlockLayout
    tensors: dict[str, Tensor]
    names: tuple[str, ...]
    """Of its tensors in the file."""
    subsample: bool
    left: tuple[str, ...]
    """Names that begin as the block's do and mean nothing to us."""


PYSLOWFAST = BlockLayout(
    name="pyslowfast",
    owner="PySlowFast",
    roles={"theta": "conv_theta", "phi": "conv_phi", "g": "conv_g", "W_z": "conv_out", "norm": "bn|norm"},
    scale=True,
)
CAFFE2 = BlockLayout(
    name="caffe2",
    owner="the authors' Caffe2",
    roles={"theta": "theta", "phi": "phi", "g": "g", "W_z": "out", "norm": "bn"},
    separator="_",
    conv=CAFFE2_CONV,
    norm=CAFFE2_NORM,
    scale=True,
)
MMACTION2 = BlockLayout(
    name="mmaction2",
    owner="mmaction2 (mmcv)",
    roles={
        "theta": "theta.conv",
        "phi": "phi<.0>.conv",
        "g": "g<.0>.conv",
        "W_z": "conv_out.conv",
        "norm": "conv_out.bn",
        "w_f": "concat_project.conv",
    },
    pairwise=("embedded_gaussian", "dot_product", "gaussian", "concatenation"),
    subsample="named",
    subsample_at="embedding",
    output_bias=False,
)
NONLOCAL_PYTORCH = BlockLayout(
    name="non-local_pytorch",
    owner="Non-local_pytorch",
    roles={
        "theta": "theta",
        "phi": "phi<.0>",
        "g": "g<.0>",
        "W_z": "W<.0>",
        "norm": "W.1",
        "w_f": "concat_project.0",
    },
    pairwise=("embedded_gaussian", "dot_product", "gaussian", "concatenation"),
    scaled=(),
    subsample="named",
    subsample_at="embedding",
)
TEA1528 = BlockLayout(
    name="tea1528",
    owner="tea1528's Non-Local-NN-Pytorch",
    roles={"theta": "theta", "phi": "phi", "g": "g", "W_z": "W_z.0", "norm": "W_z.1", "w_f": "W_f.0"},
    pairwise=("embedded_gaussian", "dot_product", "gaussian", "concatenation"),
    scaled=(),
    subsample=False,
)
RESNET3D = BlockLayout(
    name="pytorch-resnet3d",
    owner="pytorch-resnet3d",
    roles={"theta": "theta", "phi": "phi", "g": "g", "W_z": "out", "norm": "bn"},
    scale=True,
    pairwise=("embedded_gaussian",),
)
TIMM = BlockLayout(
    name="timm",
    owner="timm's NonLocalAttn",
    roles={"theta": "t", "phi": "p", "g": "g", "W_z": "z", "norm": "norm"},
    scale=True,
    pairwise=("embedded_gaussian",),
    subsample=False,
    scale_by="channels",
)
OURS = BlockLayout(
    name="native",
    owner="nonlocal_nn",
    roles={"theta": "theta", "phi": "phi", "g": "g", "W_z": "W_z", "norm": "norm", "w_f": "w_f"},
    pairwise=("embedded_gaussian", "dot_product", "gaussian", "concatenation"),
    scaled=("embedded_gaussian", "gaussian", "dot_product"),
    subsample_at="embedding",
)

BLOCK_LAYOUTS = (PYSLOWFAST, CAFFE2, MMACTION2, NONLOCAL_PYTORCH, TEA1528, RESNET3D, TIMM, OURS)


def find_blocks(state: Mapping[str, Tensor]) -> dict[str, FoundBlock]:
    """Every non-local block in a state dict, by the name of its module ("" for a block saved by itself).

    A block is where g and W_z of one layout stand side by side with shapes that fit each other.
    """
    found: dict[str, FoundBlock] = {}
    for layout in BLOCK_LAYOUTS:
        candidates = layout.candidates()
        for out, _ in candidates["W_z.weight"]:
            for name in state:
                start = name.removesuffix(out)  # with the separator
                prefix = start.removesuffix(layout.separator)
                if start == name or (start and start == prefix) or prefix in found:
                    continue
                for g, pools in candidates["g.weight"]:
                    if start + g in state and _fits(state[name], state[start + g]):
                        found[prefix] = _found(state, layout, candidates, start, pools)
    return {prefix: found[prefix] for prefix in sorted(found, key=_natural)}


def _found(
    state: Mapping[str, Tensor],
    layout: BlockLayout,
    candidates: Mapping[str, list[tuple[str, bool]]],
    start: str,
    pools: bool,
) -> FoundBlock:
    names: dict[str, str] = {}
    for ours, theirs in candidates.items():
        pooled = ours.partition(".")[0] in ("phi", "g")
        for name, optional in theirs:
            if start + name in state and (optional == pools or not pooled or len(theirs) == 1):
                names.setdefault(ours, start + name)
    used = set(names.values())
    return FoundBlock(
        layout,
        {ours: state[name] for ours, name in names.items()},
        tuple(names.values()),
        subsample=pools if layout.subsample == "named" else bool(layout.subsample),
        left=tuple(name for name in state if start and name.startswith(start) and name not in used),
    )


def _fits(out: Tensor, g: Tensor) -> bool:
    """Whether the shapes are (channels, inner, 1, ...) and (inner, channels, 1, ...)."""
    one = (1,) * (out.dim() - 2)
    return (
        3 <= out.dim() <= 5
        and out.dim() == g.dim()
        and (out.shape[0], out.shape[1]) == (g.shape[1], g.shape[0])
        and tuple(out.shape[2:]) == tuple(g.shape[2:]) == one
        and min(out.shape) > 0
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """layer10 comes after layer9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
