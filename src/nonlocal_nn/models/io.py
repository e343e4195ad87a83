"""Models to files and back, and weights into a model that is there.

>>> import tempfile
>>> from pathlib import Path
>>> from nonlocal_nn.models.catalog import create_model
>>> model = create_model("c2d_tiny_nl1", num_classes=2)
>>> model.classes = ("hug", "kick")
>>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
>>> save_model(model, path)
>>> load_model(path).classes
('hug', 'kick')
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.models.block_io import block_from_options, block_options, build_blocks
from nonlocal_nn.models.build import build_model
from nonlocal_nn.models.placing import NoNumbers, filled_model
from nonlocal_nn.models.published import load_published
from nonlocal_nn.models.recognise import Hints
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.models.video_resnet import VideoResNet
from nonlocal_nn.weights.inflate import inflate_state_dict
from nonlocal_nn.weights.native import checkpoint_file, read_any_checkpoint, read_checkpoint, write_checkpoint
from nonlocal_nn.weights.report import LoadReport, compare
from nonlocal_nn.weights.safe_read import is_safetensors, read_state_dict


def save_model(
    model: VideoResNet | NonLocalBlock, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights, spec, class names and metadata to one safetensors file, whole or not at all.

    Args:
        model: one that was built from a spec; or a block, which is saved with its options.
        path: of the file; missing folders are made, an older file is replaced.
        metadata: more to remember, such as the frame stride of the clips; None: the model's own `metadata`.

    Raises:
        ValueError: the model was assembled by hand (no spec), was changed after it was built from its spec,
            or has another number of classes than names.
    """
    if isinstance(model, NonLocalBlock):
        eps = getattr(model.norm, "eps", None)
        header: dict[str, Any] = {"block": block_options(model), "norm_eps": eps}
        write_checkpoint(path, model.state_dict(), header | {"metadata": dict(metadata or {})})
        return
    if model.spec is None:
        raise ValueError("the model has no spec to build it from when it is loaded; save its state dict")
    if model.classes is not None and len(model.classes) != model.spec.num_classes:
        raise ValueError(
            f"the model has {model.spec.num_classes} classes, but model.classes names {len(model.classes)}"
        )
    with NoNumbers():
        described = build_model(model.spec).state_dict().keys()
    if changed := sorted(described ^ model.state_dict().keys()):
        raise ValueError(
            "the model is no longer what its spec describes, so its file could not be loaded: "
            f"{changed[0]!r} and {len(changed) - 1} more tensors were added or removed. Blocks put in later "
            "belong into the spec (create_model(..., nonlocal_after=...)); or save the state dict with "
            "torch.save"
        )
    header = {
        "spec": model.spec.to_json(),
        "classes": None if model.classes is None else list(model.classes),
        "metadata": dict(model.metadata if metadata is None else metadata),
    }
    write_checkpoint(path, model.state_dict(), header)


def load_model(
    path: str | Path,
    *,
    stem: str | None = None,
    pairwise: str | None = None,
    scale: bool | None = None,
    temporal_groups: Mapping[str, int] | None = None,
    inflation: str | None = None,
    partial: bool = False,
) -> VideoResNet | NonLocalBlock:
    """The model of a checkpoint in any of the public layouts, on the CPU and in eval mode.

    Our own files (from `save_model`), run folders, PySlowFast, the authors' Caffe2 pickles, mmaction2,
    pytorch-resnet3d, image ResNets of torchvision and timm, single blocks of Non-local_pytorch, mmcv or timm.
    The layout is recognised by the names of the tensors. Depth, width, classes, placement, temporal kernels
    and norms are read from them; the arguments are hints for what they cannot say, with a default for each
    layout (docs/checkpoints.md). Reading runs no code from the file.

    A `VideoResNet` has `.spec`, `.classes` and `.metadata` as they were saved, and `.load_report` with every
    tensor of a file that is not ours. A file of one block gives a `NonLocalBlock`.

    Args:
        path: of the file, or of a run folder.
        stem: a row of `nonlocal_nn.models.spec.STEMS`, "slowfast", "vnl", "vnl32", "mmaction2", "paper", ...
        pairwise: "embedded_gaussian" or "dot_product" have the same tensors.
        scale: whether theta . phi is scaled by the inverse root of its length.
        temporal_groups: {"res3": 4}: blocks of res3 see the clip in 4 contiguous groups; {} for none. For a
            single block {"": 4}.
        inflation: for an image ResNet None (C2D), "3x1x1" or "3x3x3".
        partial: load what fits and warn of the rest; otherwise a file that does not fill its model, or has
            tensors it does not use, is an error.

    Raises:
        FileNotFoundError: no such file, or no model in the folder.
        ValueError: the file is damaged, would run code, is of no known layout, does not fill its network, or
            a hint contradicts it.
    """
    hints = Hints(stem, pairwise, scale, temporal_groups, inflation)
    path = checkpoint_file(path)
    if is_safetensors(path):
        tensors, header = read_any_checkpoint(path)
        if header is not None:
            return _native(tensors, header, path, hints, partial=partial)
    return load_published(read_state_dict(path), path, hints, partial=partial)[0]


def load_blocks(
    path: str | Path,
    *,
    pairwise: str | None = None,
    scale: bool | None = None,
    temporal_groups: Mapping[str, int] | None = None,
) -> dict[str, NonLocalBlock]:
    """Every non-local block in any network's checkpoint, by the name of its module there; in eval mode.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "net.pth"
    >>> W, x = torch.ones(8, 4, 1, 1), torch.ones(4, 8, 1, 1)
    >>> block = {"g.0.weight": x, "g.0.bias": x[:, 0, 0, 0], "W.weight": W, "W.bias": torch.zeros(8)}
    >>> torch.save({f"module.mine.{name}": tensor for name, tensor in block.items()}, path)
    >>> {name: block.pairwise for name, block in load_blocks(path).items()}
    {'mine': 'gaussian'}

    The network around them can be anyone's. Blocks of PySlowFast, the authors' Caffe2 code, mmaction2 (mmcv),
    Non-local_pytorch, pytorch-resnet3d, timm and ours are known by the names of their parts. DataParallel's
    "module." is taken off. Hints are as for `load_model`; temporal_groups may name a block or a stage.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read safely, has no block, or one that is not whole; or a hint
            contradicts it.
    """
    path = checkpoint_file(path)
    hints = Hints(None, pairwise, scale, temporal_groups)
    if is_safetensors(path):
        tensors, header = read_any_checkpoint(path)
        if header is not None and "spec" in header:
            model = _native(tensors, header, path, hints, partial=False)
            return {name: block for name, block in model.named_modules() if isinstance(block, NonLocalBlock)}
        if header is not None and "block" in header:
            block = _native(tensors, header, path, hints, partial=False)
            return {"": block} if isinstance(block, NonLocalBlock) else {}
        state: Mapping[str, Tensor] = tensors
    else:
        state = read_state_dict(path)
    return {prefix: block for prefix, (block, _) in build_blocks(state, path, hints).items()}


def _native(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: Path, hints: Hints, *, partial: bool
) -> VideoResNet | NonLocalBlock:
    """The model of one of our own files; what it says needs no hint, and bears no other."""
    if "block" in header:
        return _native_block(tensors, header, path, hints)
    if "spec" not in header:
        raise ValueError(f"{path}: its header has no spec of the network")
    spec = VideoResNetSpec.from_json(header["spec"])
    for name, value in hints.given().items():
        if getattr(spec, name) != value:
            raise ValueError(
                f"hint {name}={value!r} contradicts {path}, whose header says {getattr(spec, name)!r}"
            )
    what = f"{path} ({spec.name!r} by its header)"
    model, _ = filled_model(lambda: build_model(spec), tensors, {}, (), what, partial=partial)
    classes = header.get("classes")
    model.classes = None if classes is None else tuple(classes)
    model.metadata = dict(header.get("metadata", {}))
    return model


def _native_block(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: Path, hints: Hints
) -> NonLocalBlock:
    for name, value in hints.given().items():
        own = header["block"].get(name) if name in ("pairwise", "scale") else None
        if own != value:
            raise ValueError(f"hint {name}={value!r} contradicts {path}, whose header says {header['block']}")
    eps = header.get("norm_eps")

    def build() -> NonLocalBlock:
        block = block_from_options(header["block"])
        if block.norm is not None and isinstance(eps, float):
            block.norm.eps = eps  # type: ignore[assignment]
        return block

    what = f"{path} (a block by its header)"
    return filled_model(build, tensors, {}, (), what, partial=False)[0]


def load_weights(model: VideoResNet, path: str | Path, *, partial: bool = False) -> LoadReport:
    """Put the weights of one of our files (or run folders) into a model, for instance to fine-tune it.

    Args:
        model: keeps its spec, classes and mode.
        path: as for `load_model`.
        partial: leave out what the two do not share (another number of classes, added non-local blocks); the
            report names it. Otherwise any difference is an error.

    Raises:
        FileNotFoundError: as `load_model`.
        ValueError: as `load_model`; or the tensors differ and `partial` is not given; or they have none in
            common. The model is then unchanged.
    """
    tensors, _ = read_checkpoint(path)
    state = model.state_dict()
    report = compare(tensors, state)
    if not report.complete and not partial:
        raise ValueError(
            f"the weights in {path} are of another network (partial=True places what fits): {report}"
        )
    if not report.placed:
        raise ValueError(f"no tensor in {path} fits this network: {report}")
    model.load_state_dict(state | {name: tensors[name] for name in report.placed})
    return report


def load_image_weights(model: VideoResNet, path: str | Path) -> LoadReport:
    """Put the weights of an image ResNet (torchvision's, .pth or .safetensors) into a video model, inflated.

    The classifier is left out if it has other classes; non-local blocks keep their weights. The report
    names both.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or is not of the same ResNet. The model is then unchanged.
    """
    try:
        state, report = inflate_state_dict(read_state_dict(path), model.state_dict())
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    model.load_state_dict(state)
    return report
