"""A published checkpoint, in whatever layout, becomes a network or a block that gives its owner's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.models.block_io import build_blocks
from nonlocal_nn.models.build import build_model
from nonlocal_nn.models.placing import filled_model
from nonlocal_nn.models.recognise import Hints, infer_spec, network_layout, to_ours
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.models.video_resnet import VideoResNet
from nonlocal_nn.weights.block_layouts import find_blocks
from nonlocal_nn.weights.layouts import LAYOUTS, Layout
from nonlocal_nn.weights.report import LoadReport


def load_published(
    state: Mapping[str, Tensor], path: str | Path, hints: Hints, *, partial: bool
) -> tuple[VideoResNet | NonLocalBlock, LoadReport]:
    """The network a state dict holds, or its block if it is one block.

    Raises:
        ValueError: the layout is not known, the file does not fill its network, or a hint contradicts it.
    """
    layout = network_layout(state)
    if layout is not None:
        return _network(state, path, layout, hints, partial)
    blocks = find_blocks(state)
    if not blocks:
        raise ValueError(_unknown(state, path))
    if len(blocks) > 1 or len(next(iter(blocks.values())).names) < len(state):
        others = len(state) - sum(len(block.names) for block in blocks.values())
        raise ValueError(
            f"{path} is of no network we know; it has {len(blocks)} non-local block(s) "
            f"({', '.join(map(repr, list(blocks)[:6]))}) and {others} other tensors. nl.load_blocks gives "
            "the blocks; a single block loads when the file holds nothing else"
        )
    for name in ("stem", "inflation"):
        if getattr(hints, name) is not None:
            raise ValueError(f"{path} holds one block, which has no {name}; the hint does not apply")
    return next(iter(build_blocks(state, path, hints, partial=partial).values()))


def _network(
    state: Mapping[str, Tensor], path: str | Path, layout: Layout, hints: Hints, partial: bool
) -> tuple[VideoResNet, LoadReport]:
    what = f"{path} ({layout.owner})"
    try:
        named, unused = to_ours(state, layout)
        spec = infer_spec(named, state, layout, hints)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    model, report = filled_model(
        lambda: build_model(spec),
        named,
        implied_values(spec, layout),
        unused,
        what,
        partial=partial,
        inflate=layout.image,
    )
    model.load_report = report
    return model, report


def implied_values(spec: VideoResNetSpec, layout: Layout) -> dict[str, float]:
    """Tensors the layout does not write because it fixes their value."""
    implied = {"num_batches_tracked": 0.0}
    if not layout.output_bias and spec.nonlocal_norm is not None:
        for stage, indices in spec.nonlocal_after.items():
            implied |= {f"{stage}.nonlocal{index}.W_z.bias": 0.0 for index in indices}
    if spec.norm == "frozen" and spec.norm_eps == 0:
        implied |= {"running_mean": 0.0, "running_var": 1.0}
    return implied


def _unknown(state: Mapping[str, Tensor], path: str | Path) -> str:
    owners = "; ".join(layout.owner for layout in LAYOUTS.values())
    names = ", ".join(list(state)[:4])
    return (
        f"{path} is of no layout we know. Its {len(state)} tensors are named {names}, ...; known are: "
        f"{owners}; Non-local_pytorch and timm blocks; and our own safetensors"
    )
