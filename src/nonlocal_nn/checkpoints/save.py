"""A network or a block into our own file: its weights, and the description it is built from when loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonlocal_nn._modes import meta_init
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.checkpoints.native import write_checkpoint
from nonlocal_nn.models.build import build_model
from nonlocal_nn.models.video_resnet import VideoResNet


def save_model(
    model: VideoResNet | NonLocalBlock, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights, spec, class names and metadata to one safetensors file, whole or not at all.

    >>> import tempfile
    >>> import nonlocal_nn as nl
    >>> model = nl.create_model("c2d_tiny", num_classes=2)
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_model(model, path, {"frame_stride": "2"})
    >>> nl.load_model(path).metadata
    {'frame_stride': '2'}

    Args:
        model: one that was built from a spec; or a block, which is saved with its options.
        path: of the file; missing folders are made, an older file is replaced.
        metadata: more to remember, such as the frame stride of the clips; None: the model's own `metadata`.

    Raises:
        ValueError: the model was assembled by hand (no spec), was changed after it was built from its spec,
            or has another number of classes than names.
    """
    header = _block_header(model) if isinstance(model, NonLocalBlock) else _network_header(model)
    if metadata is not None:
        header["metadata"] = dict(metadata)
    write_checkpoint(path, model.state_dict(), header)


def _block_header(block: NonLocalBlock) -> dict[str, Any]:
    eps = getattr(block.norm, "eps", None)
    return {"block": block.header(), "norm_eps": eps, "metadata": {}}


def _network_header(model: VideoResNet) -> dict[str, Any]:
    """What the file says of the network, once it is sure that its spec builds the same tensors."""
    if model.spec is None:
        raise ValueError("the model has no spec to build it from when it is loaded; save its state dict")
    if model.classes is not None and len(model.classes) != model.spec.num_classes:
        raise ValueError(
            f"the model has {model.spec.num_classes} classes, but model.classes names {len(model.classes)}"
        )
    with meta_init():
        described = build_model(model.spec).state_dict().keys()
    if changed := sorted(described ^ model.state_dict().keys()):
        raise ValueError(
            "the model is no longer what its spec describes, so its file could not be loaded: "
            f"{changed[0]!r} and {len(changed) - 1} more tensors were added or removed. Blocks put in later "
            "belong into the spec (create_model(..., nonlocal_after=...)); or save the state dict with "
            "torch.save"
        )
    return {
        "spec": model.spec.to_json(),
        "classes": None if model.classes is None else list(model.classes),
        "metadata": dict(model.metadata),
    }
