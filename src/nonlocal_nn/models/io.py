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

import torch

from nonlocal_nn.models.build import build_model
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.models.video_resnet import VideoResNet
from nonlocal_nn.weights.inflate import inflate_state_dict
from nonlocal_nn.weights.native import read_checkpoint, write_checkpoint
from nonlocal_nn.weights.report import LoadReport, compare
from nonlocal_nn.weights.safe_read import read_state_dict


def save_model(model: VideoResNet, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights, spec, class names and metadata to one safetensors file, whole or not at all.

    Args:
        model: one that was built from a spec.
        path: of the file; missing folders are made, an older file is replaced.
        metadata: more to remember, such as the frame stride of the clips; None: the model's own `metadata`.

    Raises:
        ValueError: the model was assembled by hand (no spec), or has another number of classes than names.
    """
    if model.spec is None:
        raise ValueError("the model has no spec to build it from when it is loaded; save its state dict")
    if model.classes is not None and len(model.classes) != model.spec.num_classes:
        raise ValueError(
            f"the model has {model.spec.num_classes} classes, but model.classes names {len(model.classes)}"
        )
    header = {
        "spec": model.spec.to_json(),
        "classes": None if model.classes is None else list(model.classes),
        "metadata": dict(model.metadata if metadata is None else metadata),
    }
    write_checkpoint(path, model.state_dict(), header)


def load_model(path: str | Path) -> VideoResNet:
    """The model of a file that `save_model` wrote, or of a run folder, on the CPU and in eval mode.

    `.spec`, `.classes` (a tuple or None) and `.metadata` are as they were saved.

    Raises:
        FileNotFoundError: no such file, or no model in the folder.
        ValueError: the file is damaged, was written by something else, or does not hold the network it names.
    """
    tensors, header = read_checkpoint(path)
    if "spec" not in header:
        raise ValueError(f"{path}: its header has no spec of the network")
    spec = VideoResNetSpec.from_json(header["spec"])
    with torch.device("meta"):  # the weights come from the file: no numbers to draw, no memory to fill twice
        model = build_model(spec)
    state = model.state_dict()
    report = compare(tensors, state)
    absent = [name for name in state if name not in tensors]
    if not report.complete or absent:
        raise ValueError(
            f"{path} does not hold the network {spec.name!r} that its header describes: "
            + (str(report) if not report.complete else f"it lacks {', '.join(absent[:4])}")
        )
    model.load_state_dict(tensors, assign=True)
    classes = header.get("classes")
    model.classes = None if classes is None else tuple(classes)
    model.metadata = dict(header.get("metadata", {}))
    return model.eval()


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
