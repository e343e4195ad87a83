"""Models from files: any public layout to a network or its blocks, and weights into a model that is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nonlocal_nn.blocks.global_context import GlobalContext
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.blocks.options import Span, SubsampleAt
from nonlocal_nn.blocks.squeeze_excitation import Gate, SqueezeExcitation
from nonlocal_nn.checkpoints.block_layouts import find_blocks
from nonlocal_nn.checkpoints.blocks import block_of_header, build_blocks
from nonlocal_nn.checkpoints.context_blocks import ContextBlock, build_context_block, find_context_blocks
from nonlocal_nn.checkpoints.fill import filled_model
from nonlocal_nn.checkpoints.inflate import inflate_state_dict
from nonlocal_nn.checkpoints.layouts import IMAGE, LAYOUTS, Layout
from nonlocal_nn.checkpoints.native import checkpoint_file, read_any_checkpoint, read_checkpoint
from nonlocal_nn.checkpoints.recognise import Hints, implied_values, infer_spec, network_layout, to_ours
from nonlocal_nn.checkpoints.report import LoadReport, compare
from nonlocal_nn.checkpoints.safe_read import is_safetensors, read_state_dict, without_first_name
from nonlocal_nn.models.build import build_model
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.models.video_resnet import VideoResNet


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

    >>> import tempfile
    >>> import nonlocal_nn as nl
    >>> model = nl.create_model("c2d_tiny", num_classes=2)
    >>> model.classes = ("hug", "kick")
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> nl.save_model(model, path)
    >>> load_model(path).classes
    ('hug', 'kick')

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
    return _published(read_state_dict(path), path, hints, partial=partial)


def load_blocks(
    path: str | Path,
    *,
    pairwise: str | None = None,
    scale: bool | None = None,
    temporal_groups: Mapping[str, int] | None = None,
    subsample: bool | None = None,
    subsample_at: SubsampleAt | None = None,
    span: Span | None = None,
    gate: Gate | None = None,
) -> dict[str, NonLocalBlock | ContextBlock]:
    """Every block in any network's checkpoint, by the name of its module there; in eval mode.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "net.pth"
    >>> W, x = torch.ones(8, 4, 1, 1), torch.ones(4, 8, 1, 1)
    >>> block = {"g.0.weight": x, "g.0.bias": x[:, 0, 0, 0], "W.weight": W, "W.bias": torch.zeros(8)}
    >>> torch.save({f"module.mine.{name}": tensor for name, tensor in block.items()}, path)
    >>> {name: block.pairwise for name, block in load_blocks(path).items()}
    {'mine': 'gaussian'}

    The network around them can be anyone's. Blocks of PySlowFast, the authors' Caffe2 code, mmaction2 (mmcv),
    Non-local_pytorch, tea1528, pytorch-resnet3d, timm and ours are known by the names of their parts; so are
    squeeze-and-excitation of timm, torchvision and moskomule, and global context of GCNet (mmcv) and timm.
    What DataParallel and torch.compile put before the names is taken off. Our own non-local blocks' options
    come with torch.save(model.state_dict(), ...); where they are lost (safetensors, a state dict made anew)
    what is assumed is said in a warning. Hints are as for `load_model` and `NonLocalBlock`, and hold for all
    blocks; temporal_groups may name a block or a stage; gate is that of squeeze-and-excitation and global
    context, a sigmoid where nothing is said (torchvision's MobileNetV3 has "hard_sigmoid").

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read safely, has no block, or one that is not whole; or a hint
            contradicts it.
    """
    path = checkpoint_file(path)
    hints = Hints(
        None,
        pairwise,
        scale,
        temporal_groups,
        subsample=subsample,
        subsample_at=subsample_at,
        span=span,
    )
    if is_safetensors(path):
        tensors, header = read_any_checkpoint(path)
        if header is not None and "spec" in header:
            model = _native(tensors, header, path, hints, partial=False)
            kinds = (NonLocalBlock, SqueezeExcitation, GlobalContext)
            return {name: block for name, block in model.named_modules() if isinstance(block, kinds)}
        if header is not None and "block" in header:
            block = _native(tensors, header, path, hints, partial=False)
            return {"": block} if isinstance(block, NonLocalBlock) else {}
    state = read_state_dict(path)
    others = find_context_blocks(state)
    blocks: dict[str, NonLocalBlock | ContextBlock] = {}
    if not others or find_blocks(state):
        blocks |= build_blocks(state, path, hints)
    for prefix, found in others.items():
        what = f"{path}{f', block {prefix}' if prefix else ''}"
        blocks[prefix] = build_context_block(found, what, gate)
    return blocks


def load_weights(model: VideoResNet, path: str | Path, *, partial: bool = False) -> LoadReport:
    """Put the weights of one of our files (or run folders) into a model, for instance to fine-tune it.

    >>> import tempfile
    >>> import nonlocal_nn as nl
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> nl.save_model(nl.create_model("c2d_tiny", num_classes=2), path)
    >>> report = load_weights(nl.create_model("c2d_tiny", num_classes=5), path, partial=True)
    >>> len(report.placed), list(report.mismatched)
    (96, ['head.fc.weight', 'head.fc.bias'])

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

    Or those of a C2D of ours, a file or a run folder: kernels of one frame are inflated like an image's.

    >>> import tempfile, torch
    >>> import nonlocal_nn as nl
    >>> from nonlocal_nn.checkpoints.layouts import IMAGE
    >>> path, model = Path(tempfile.mkdtemp()) / "image.pth", nl.create_model("i3d_tiny", num_classes=2)
    >>> frames = {name: x.sum(dim=2) if x.dim() == 5 else x for name, x in model.state_dict().items()}
    >>> torch.save({IMAGE.to_theirs(name): x for name, x in frames.items()}, path)
    >>> print(load_image_weights(model, path))
    98 tensors placed

    The classifier is left out if it has other classes; non-local blocks keep their weights. The report
    names both.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or is not of the same ResNet. The model is then unchanged.
    """
    try:
        path = Path(path)
        to_ours: Callable[[str], str | None] = IMAGE.to_ours
        if path.is_dir() or (path.is_file() and is_safetensors(path)):
            path = checkpoint_file(path)
            tensors, header = read_any_checkpoint(path)
            if header is not None:
                to_ours = str  # our names are as they are
        else:
            tensors = read_state_dict(path)
        state, report = inflate_state_dict(tensors, model.state_dict(), to_ours)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    model.load_state_dict(state)
    return report


def _native(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: Path, hints: Hints, *, partial: bool
) -> VideoResNet | NonLocalBlock:
    """The model of one of our own files. Its header says all; a hint that says otherwise is an error."""
    if "block" in header:
        return _native_block(tensors, header, path, hints)
    if "detector" in header:
        raise ValueError(f"{path} holds a detector: nonlocal_nn.load_detector reads it")
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
        block = block_of_header(header["block"])
        if block.norm is not None and isinstance(eps, float):
            block.norm.eps = eps  # type: ignore[assignment]
        return block

    what = f"{path} (a block by its header)"
    return filled_model(build, tensors, {}, (), what, partial=False)[0]


def _published(
    state: Mapping[str, Tensor], path: str | Path, hints: Hints, *, partial: bool
) -> VideoResNet | NonLocalBlock:
    """The network a state dict holds, or its block if it is one block."""
    layout = network_layout(state)
    if layout is not None:
        return _network(state, path, layout, hints, partial=partial)
    blocks = find_blocks(state)
    inner = None if blocks else without_first_name(state)
    if inner is not None and (network_layout(inner) is not None or find_blocks(inner)):
        return _published(inner, path, hints, partial=partial)  # "model.", "net.": the owner's own wrapper
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
    state: Mapping[str, Tensor], path: str | Path, layout: Layout, hints: Hints, *, partial: bool
) -> VideoResNet:
    """A network of another project, with the report on its tensors."""
    what = f"{path} ({layout.owner})"
    try:
        named, unused = to_ours(state, layout)
        spec = infer_spec(named, state, layout, hints)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    model, report = filled_model(
        lambda: build_model(spec),
        named,
        implied_values(spec, layout, named),
        unused,
        what,
        partial=partial,
        inflate=layout.image,
    )
    model.load_report = report
    return model


def _unknown(state: Mapping[str, Tensor], path: str | Path) -> str:
    owners = "; ".join(layout.owner for layout in LAYOUTS.values())
    names = ", ".join(list(state)[:4])
    return (
        f"{path} is of no layout we know. Its {len(state)} tensors are named {names}, ...; known are: "
        f"{owners}; Non-local_pytorch and timm blocks; and our own safetensors"
    )
