"""Non-local blocks by themselves: out of any network's checkpoint, and in files of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.blocks.norm import FrozenBatchNorm
from nonlocal_nn.blocks.options import BlockOptions
from nonlocal_nn.checkpoints.block_layouts import FoundBlock, find_blocks
from nonlocal_nn.checkpoints.fill import filled_model
from nonlocal_nn.checkpoints.recognise import (
    Hints,
    checked_pairwise,
    checked_scale,
    file_pairwise,
    network_layout,
)


def build_blocks(
    state: Mapping[str, Tensor], path: str | Path, hints: Hints, *, partial: bool = False
) -> dict[str, NonLocalBlock]:
    """Every non-local block of a state dict, by the name of its module there; in eval mode.

    Raises:
        ValueError: there is none, one is not whole, or a hint contradicts the file.
    """
    found = find_blocks(state)
    if not found:
        names = ", ".join(list(state)[:4])
        raise ValueError(f"{path} has no non-local block that we know; its tensors are named {names}, ...")
    groups = _groups(found, state, hints)
    return {
        prefix: _filled(
            block, f"{path}{f', block {prefix}' if prefix else ''}", groups[prefix], hints, partial
        )
        for prefix, block in found.items()
    }


def block_header(block: NonLocalBlock) -> dict[str, Any]:
    """What a file says of the block beside its weights; JSON can hold it.

    Raises:
        ValueError: it has a scale that no option gives.
    """
    if block.scale not in (1.0, block.scale_of_product):
        raise ValueError(f"the block scales by {block.scale}; only {block.scale_of_product:g} can be written")
    frozen = isinstance(block.norm, FrozenBatchNorm)
    options = dataclasses.replace(
        block.options,
        inner_channels=block.inner_channels,
        scale=block.scale != 1.0,
        norm=None if block.norm is None else "frozen" if frozen else "batch",
    )
    return {"channels": block.channels, **options.to_file()}


def block_of_header(header: object) -> NonLocalBlock:
    """Build the block that `block_header` described.

    Raises:
        ValueError: it describes no block, or one of a pairwise function that is not known here.
    """
    values = dict(header) if isinstance(header, Mapping) else {}
    channels = values.pop("channels", None)
    if isinstance(channels, bool) or not isinstance(channels, int):
        raise ValueError(f"a block is described by its channels and options, not by {str(header)[:200]}")
    return NonLocalBlock(channels, **BlockOptions.from_file(values).arguments())


def _groups(found: Mapping[str, FoundBlock], state: Mapping[str, Tensor], hints: Hints) -> dict[str, int]:
    """Temporal groups of each block; a hint names a block's prefix or, in a known network, its stage."""
    layout = network_layout(state)
    stages: dict[str, str] = {}
    for prefix, block in found.items():
        ours = None if layout is None else layout.to_ours(block.names[0])
        stages[prefix] = prefix if ours is None else ours.partition(".")[0]
    given = hints.temporal_groups
    if given is None:
        given = {} if layout is None or "res_conv1_bn_rm" in state else layout.folded_groups
    else:
        for key in given:
            if key not in stages and key not in stages.values():
                raise ValueError(
                    f"hint temporal_groups names {key!r}; the blocks are {', '.join(map(repr, stages))}"
                )
    return {prefix: given.get(prefix, given.get(stages[prefix], 1)) for prefix in found}


def _filled(found: FoundBlock, what: str, groups: int, hints: Hints, partial: bool) -> NonLocalBlock:
    layout, tensors = found.layout, dict(found.tensors)
    kinds = file_pairwise(tensors, layout.pairwise)
    pairwise: Any = checked_pairwise(layout.owner, kinds, hints)
    scale = checked_scale(layout.owner, pairwise, layout.scaled, layout.scale, hints)
    out = tensors["W_z.weight"]
    channels, inner, dims = int(out.shape[0]), int(out.shape[1]), out.dim() - 2
    if "w_f" in tensors:
        tensors["w_f"] = tensors["w_f"].flatten()
    if scale and layout.scale_by == "channels":
        # Ours scales by the inner length; theirs goes into theta, where it is the same product.
        for name in ("theta.weight", "theta.bias"):
            if name in tensors:
                tensors[name] = tensors[name] * channels**-0.5
        scale = False
    normed = any(name.startswith("norm.") for name in tensors)
    folded = "norm.weight" in tensors and "norm.running_mean" not in tensors
    implied = {"num_batches_tracked": 0.0}
    if normed and not layout.output_bias:
        implied["W_z.bias"] = 0.0
    if folded and layout.name == "caffe2":
        implied |= {"running_mean": 0.0, "running_var": 1.0}

    def build() -> NonLocalBlock:
        block = NonLocalBlock(
            channels,
            inner,
            pairwise=pairwise,
            dims=dims,
            subsample=found.subsample,
            subsample_at=layout.subsample_at,
            temporal_groups=groups,
            scale=scale,
            norm="frozen" if folded and layout.name == "caffe2" else "batch" if normed else None,
        )
        if folded and layout.name == "caffe2" and block.norm is not None:
            block.norm.eps = 0.0  # type: ignore[assignment]
        return block

    what = f"{what} ({layout.owner})"
    return filled_model(build, tensors, implied, found.left, what, partial=partial)[0]
