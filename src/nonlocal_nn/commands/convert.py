"""`nonlocal convert`: a checkpoint from any public layout into another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nonlocal_nn.checkpoints.layouts import WrittenLayout


@dataclass(frozen=True)
class ConvertConfig:
    """Read a checkpoint of any layout we know and write it in another: nonlocal convert IN OUT --to LAYOUT.

    The file read may be ours, PySlowFast's, the authors' Caffe2, mmaction2's, pytorch-resnet3d's or an image
    ResNet; nothing in it is run. The weights stay the same to the last bit. What is printed last are the
    hints with which the new file loads as the network it was.
    """

    files: list[str]
    """The file to read and the file to write."""
    to: WrittenLayout
    """The layout to write; native is our own safetensors with everything about the network inside."""
    stem: str | None = None
    """Conv1 and the first pools, if not the layout's default: slowfast, vnl, vnl32, mmaction2, paper."""
    pairwise: str | None = None
    """The pairwise function, where the tensors do not say: dot_product."""
    scale: bool | None = None
    """Whether theta . phi is scaled, if not as the layout's default."""
    temporal_groups: dict[str, int] | None = None
    """Groups of frames that blocks see apart, by stage: '{"res3": 4}'."""
    inflation: str | None = None
    """For an image ResNet: 3x1x1 or 3x3x3; left out, no convolution spans time (C2D)."""
    fold_norms: bool = False
    """Make every batch norm the fixed factor and term that it is in evaluation, as the authors did before
    they trained longer clips; the outputs stay the same but for rounding."""


def convert_command(config: ConvertConfig) -> int:
    """Convert; 0.

    Raises:
        FileNotFoundError: there is no file to read.
        ValueError: it cannot be read, or the layout cannot express it; nothing is written then.
    """
    if len(config.files) != 2:
        raise ValueError(
            f"convert takes two files, the one to read and the one to write; got {len(config.files)}: "
            f"{' '.join(config.files)}"
        )
    source, target = config.files

    from nonlocal_nn.checkpoints.export import export_model
    from nonlocal_nn.checkpoints.load import load_model

    model = load_model(
        source,
        stem=config.stem,
        pairwise=config.pairwise,
        scale=config.scale,
        temporal_groups=config.temporal_groups,
        inflation=config.inflation,
    )
    if config.fold_norms:
        model = _folded(model, source)
    hints = export_model(model, target, config.to)
    report = getattr(model, "load_report", None)
    if report is not None:
        print(f"{source}: {report}")
    spec = getattr(model, "spec", None)
    what = "a non-local block" if spec is None else f"{spec.name}, {spec.num_classes} classes"
    print(f"{target}: {what}, {config.to} layout, {len(model.state_dict())} tensors")
    if config.to != "native":
        given = "".join(f", {name}={value!r}" for name, value in hints.items())
        print(f"load it with nonlocal_nn.load_model({target!r}{given})")
    return 0


def _folded(model: Any, source: str) -> Any:
    from nonlocal_nn.models.fold import fold_norms

    if getattr(model, "spec", None) is None:
        raise ValueError(f"--fold_norms: {source} is no network of ours, but a block")
    return fold_norms(model)
