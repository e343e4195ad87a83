"""Non-local blocks by themselves: out of any network's checkpoint, and in files of their own."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.blocks.options import BlockOptions
from nonlocal_nn.checkpoints.block_layouts import OURS, FoundBlock, find_blocks
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
    said = getattr(state, "block_options", {})  # by our own blocks, in the metadata of their state dict
    known = {
        prefix: said[prefix] for prefix, block in found.items() if block.layout is OURS and prefix in said
    }
    groups = _groups(found, state, hints)
    guessed = [p for p, block in found.items() if block.layout is OURS and p not in known]
    if guessed:
        _say_what_is_assumed(path, guessed, hints)
    blocks = {}
    for prefix, block in found.items():
        what = f"{path}{f', block {prefix}' if prefix else ''}"
        if prefix in known:
            blocks[prefix] = _of_options(block, known[prefix], what, hints, partial)
        else:
            blocks[prefix] = _filled(block, what, groups[prefix], hints, partial)
    return blocks


def _of_options(
    found: FoundBlock, options: Mapping[str, Any], what: str, hints: Hints, partial: bool
) -> NonLocalBlock:
    """The block that its own options describe; a hint that says otherwise is an error."""
    for name, value in hints.of_blocks().items():
        if options.get(name) != value:
            raise ValueError(f"hint {name}={value!r} contradicts {what}, which says {options.get(name)!r}")
    return filled_model(
        lambda: block_of_header(options), found.tensors, {}, found.left, what, partial=partial
    )[0]


def _say_what_is_assumed(path: str | Path, prefixes: Sequence[str], hints: Hints) -> None:
    """Tensors do not tell these options of our own blocks: said, so that nobody takes them for read."""
    defaults = {f.name: f.default for f in dataclasses.fields(BlockOptions)}
    open_options = ("pairwise", "subsample", "subsample_at", "span", "temporal_groups", "scale")
    given = hints.of_blocks()
    assumed = ", ".join(f"{name}={defaults[name]!r}" for name in open_options if name not in given)
    if assumed:
        names = ", ".join(map(repr, prefixes[:3])) + (" ..." if len(prefixes) > 3 else "")
        warnings.warn(
            f"{path} does not say the options of its blocks ({names}): where tensors do not tell, {assumed} "
            "is assumed. Give hints, or save with nl.save_model or torch.save(model.state_dict(), ...), "
            "which keep them",
            stacklevel=4,
        )


def block_of_header(header: object) -> NonLocalBlock:
    """Build the block that `NonLocalBlock.header` described.

    Raises:
        ValueError: it describes no block, or one of a pairwise function that is not known here.
    """
    values = dict(header) if isinstance(header, Mapping) else {}
    eps = values.pop("norm_eps", None)  # in the metadata of a state dict
    channels = values.pop("channels", None)
    if isinstance(channels, bool) or not isinstance(channels, int):
        raise ValueError(f"a block is described by its channels and options, not by {str(header)[:200]}")
    block = NonLocalBlock(channels, **BlockOptions.from_file(values).arguments())
    if block.norm is not None and isinstance(eps, float):
        block.norm.eps = eps  # type: ignore[assignment]
    return block


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
    bias = tensors.pop("w_f.bias", None)
    if bias is not None:  # ReLU(a_i + b_j + bias): a_i takes it, by a theta moved along its half of w_f
        half = tensors["w_f"][:inner]
        tensors["theta.bias"] = tensors["theta.bias"] + half * (bias / half.square().sum())
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
            subsample=found.subsample if hints.subsample is None else hints.subsample,
            subsample_at=hints.subsample_at or layout.subsample_at,
            span=hints.span or "spacetime",
            temporal_groups=groups,
            scale=scale,
            norm="frozen" if folded and layout.name == "caffe2" else "batch" if normed else None,
        )
        if folded and layout.name == "caffe2" and block.norm is not None:
            block.norm.eps = 0.0  # type: ignore[assignment]
        return block

    what = f"{what} ({layout.owner})"
    return filled_model(build, tensors, implied, found.left, what, partial=partial)[0]
