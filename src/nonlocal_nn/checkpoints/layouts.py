"""The layouts networks are published in: one table of names for each, read in both directions.

>>> LAYOUTS["pyslowfast"].to_ours("s3.pathway0_res0.branch2.a_bn.weight")
'res3.0.norm1.weight'
>>> LAYOUTS["caffe2"].to_theirs("res3.nonlocal1.norm.running_var")
'nonlocal_conv3_1_bn_riv'

A row names a module here and there; {s} is a stage counted from res2 = 2, {l} the same counted from 1, {b} a
block. What stands in <...> is there in some files only: <.0> is written with subsampling (or, for W_z, with a
norm), and either form is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

from nonlocal_nn.checkpoints import block_layouts as blocks

_NORM_NAMES = re.compile(r"(.*\.)?norm\d?")

Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """One public layout: names, what it fixes, and what it leaves to a hint.

    Attributes:
        modules: rows (module here, module there); of two rows for one module the first is written.
        block: its non-local blocks; its suffixes of tensors' names hold for the whole network.
        key: the entry of the file's outer dictionary that holds the tensors.
        stem: what is meant when no hint says otherwise.
        folded_groups: temporal groups of networks whose norms are folded, when no hint says otherwise.
        frames: of the clips its networks are usually tested on.
        image: its kernels have no time axis.
        stride_at: as in `VideoResNetSpec`.
    """

    name: str
    owner: str
    modules: Names
    block: blocks.BlockLayout
    key: str | None = None
    stem: str = "paper"
    folded_groups: Mapping[str, int] = field(default_factory=dict)
    frames: int = 32
    image: bool = False
    stride_at: Literal["1x1", "3x3"] = "3x3"

    def to_ours(self, theirs: str) -> str | None:
        """The name here of a tensor there; None if the layout has no such name."""
        for pattern, module, suffixes in self._readers:
            match = pattern.fullmatch(theirs)
            if match is not None:
                values = match.groupdict()
                tensor = suffixes.get(values.pop("tensor"))
                if tensor is None:
                    continue
                if "l" in values:
                    values["s"] = str(int(values.pop("l")) + 1)
                return _dotted(module.format(**values), tensor)
        return None

    def to_theirs(self, ours: str, *, subsample: bool = True, normed: bool = True) -> str | None:
        """The name there of a tensor here; None if the layout has none.

        subsample, normed: whether the blocks pool, and have a norm after W_z; in some layouts names differ.
        """
        module, _, tensor = ours.rpartition(".")
        if module.endswith(".w_f") or tensor == "w_f":
            module, tensor = ours, "weight"
        suffixes = self._suffixes(module)
        if tensor not in suffixes:
            return None
        for pattern, theirs in self._writers:
            match = pattern.fullmatch(module)
            if match is not None:
                values = match.groupdict()
                if "s" in values:
                    values["l"] = str(int(values["s"]) - 1)
                optional = normed if module.endswith("W_z") else subsample
                name = re.sub(r"<(.*?)>", r"\1" if optional else "", theirs)
                return name.format(**values) + suffixes[tensor]
        return None

    @cached_property
    def _readers(self) -> list[tuple[re.Pattern[str], str, dict[str, str]]]:
        readers = []
        for ours, theirs in self.modules:
            suffixes = {there: here for here, there in self._suffixes(ours).items()}
            tensors = "|".join(re.escape(suffix) for suffix in suffixes)
            readers.append((re.compile(f"{_regex(theirs)}(?P<tensor>{tensors})"), ours, suffixes))
        return readers

    @cached_property
    def _writers(self) -> list[tuple[re.Pattern[str], str]]:
        return [(re.compile(_regex(ours)), theirs) for ours, theirs in self.modules]

    def _suffixes(self, ours: str) -> Mapping[str, str]:
        return self.block.norm if _NORM_NAMES.fullmatch(ours) else self.block.conv


def _dotted(module: str, tensor: str) -> str:
    """w_f is a parameter of the block here, not a module with a weight."""
    return module if module.endswith("w_f") else f"{module}.{tensor}"


def _regex(template: str) -> str:
    """A template of a table as a regular expression with its placeholders as groups."""
    text = re.escape(template)
    text = re.sub(r"<(.*?)>", r"(?:\1)?", text)
    return re.sub(r"\\\{([sbl])\\\}", r"(?P<\1>[0-9]{1,3})", text)


def _residual(there: str, shortcut: tuple[str, str], part: str, norm: str) -> Names:
    """Rows of a residual block: `part` and `norm` name its three convolutions by {n}."""
    rows = [
        ("res{s}.{b}.shortcut.conv", f"{there}{shortcut[0]}"),
        ("res{s}.{b}.shortcut.norm", f"{there}{shortcut[1]}"),
    ]
    for number, letter in zip("123", "abc", strict=True):
        rows.append((f"res{{s}}.{{b}}.conv{number}", there + part.format(n=number, letter=letter)))
        rows.append((f"res{{s}}.{{b}}.norm{number}", there + norm.format(n=number, letter=letter)))
    return tuple(rows)


def _block(there: str, block: blocks.BlockLayout) -> Names:
    return tuple(
        (f"res{{s}}.nonlocal{{b}}.{role}", there + name)
        for role, names in block.roles.items()
        for name in names.split("|")
    )


PYSLOWFAST = Layout(
    name="pyslowfast",
    owner="PySlowFast (.pyth)",
    key="model_state",
    modules=(
        ("stem.conv", "s1.pathway0_stem.conv"),
        ("stem.norm", "s1.pathway0_stem.bn"),
        *_residual(
            "s{s}.pathway0_res{b}.",
            ("branch1", "branch1_bn"),
            "branch2.{letter}",
            "branch2.{letter}_bn",
        ),
        *_block("s{s}.pathway0_nonlocal{b}.", blocks.PYSLOWFAST),
        ("head.fc", "head.projection"),
    ),
    block=blocks.PYSLOWFAST,
    stem="slowfast",
    frames=8,
)

CAFFE2 = Layout(
    name="caffe2",
    owner="the authors' Caffe2 (.pkl)",
    key="blobs",
    modules=(
        ("stem.conv", "conv1"),
        ("stem.norm", "res_conv1_bn"),
        *_residual("res{s}_{b}_", ("branch1", "branch1_bn"), "branch2{letter}", "branch2{letter}_bn"),
        *_block("nonlocal_conv{s}_{b}_", blocks.CAFFE2),
        ("head.fc", "pred"),
    ),
    block=blocks.CAFFE2,
    stem="vnl",
    folded_groups={"res3": 4},
    frames=8,
)

MMACTION2 = Layout(
    name="mmaction2",
    owner="mmaction2 (.pth)",
    key="state_dict",
    modules=(
        ("stem.conv", "backbone.conv1.conv"),
        ("stem.norm", "backbone.conv1.bn"),
        *_residual(
            "backbone.layer{l}.{b}.", ("downsample.conv", "downsample.bn"), "conv{n}.conv", "conv{n}.bn"
        ),
        *_block("backbone.layer{l}.{b}.non_local_block.", blocks.MMACTION2),
        ("head.fc", "cls_head.fc_cls"),
    ),
    block=blocks.MMACTION2,
    stem="mmaction2",
)

_TORCHVISION: Names = (
    ("stem.conv", "conv1"),
    ("stem.norm", "bn1"),
    *_residual("layer{l}.{b}.", ("downsample.0", "downsample.1"), "conv{n}", "bn{n}"),
    ("head.fc", "fc"),
    # Squeeze-and-excitation of timm, and of moskomule's senet.pytorch.
    ("res{s}.{b}.excitation.W_1", "layer{l}.{b}.se.fc1"),
    ("res{s}.{b}.excitation.W_2", "layer{l}.{b}.se.fc2"),
    ("res{s}.{b}.excitation.W_1", "layer{l}.{b}.se.fc.0"),
    ("res{s}.{b}.excitation.W_2", "layer{l}.{b}.se.fc.2"),
)

RESNET3D = Layout(
    name="pytorch-resnet3d",
    owner="pytorch-resnet3d (.pth)",
    modules=(
        *_TORCHVISION,
        *_block("layer{l}.{b}.nl.", blocks.RESNET3D),
    ),
    # A whole network can be of dot products, by a hint; a block by itself cannot.
    block=replace(blocks.RESNET3D, pairwise=("embedded_gaussian", "dot_product")),
    stem="vnl32",
)

IMAGE = Layout(
    name="image",
    owner="an image ResNet of torchvision or timm",
    modules=_TORCHVISION,
    block=blocks.RESNET3D,
    stem="paper",
    image=True,
)

SENET = Layout(
    name="senet",
    owner="an SE-ResNet as its authors published them (timm's legacy_seresnet)",
    modules=(
        ("stem.conv", "layer0.conv1"),
        ("stem.norm", "layer0.bn1"),
        *_residual("layer{l}.{b}.", ("downsample.0", "downsample.1"), "conv{n}", "bn{n}"),
        ("res{s}.{b}.excitation.W_1", "layer{l}.{b}.se_module.fc1"),
        ("res{s}.{b}.excitation.W_2", "layer{l}.{b}.se_module.fc2"),
        ("head.fc", "last_linear"),
    ),
    block=blocks.RESNET3D,
    stem="caffe_image",
    image=True,
    stride_at="1x1",
    frames=1,
)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (PYSLOWFAST, CAFFE2, MMACTION2, RESNET3D, IMAGE, SENET)
}
"""Every layout of whole networks, by name. IMAGE has the names of RESNET3D; its kernels have no time axis."""

WrittenLayout = Literal["native", "pyslowfast", "mmaction2", "caffe2"]
"""A layout that `export_model` and `nonlocal convert` write; "native" is our own."""

WRITTEN_LAYOUTS: tuple[str, ...] = get_args(WrittenLayout)
