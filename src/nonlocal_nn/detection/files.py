"""A detector into a file, and from one: safetensors, with all that describes it in the header; no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from nonlocal_nn._modes import meta_init
from nonlocal_nn.checkpoints.native import checkpoint_file, read_checkpoint, write_checkpoint
from nonlocal_nn.data.categories import Category, Keypoints
from nonlocal_nn.detection.build import build_detector
from nonlocal_nn.detection.detector import Detector
from nonlocal_nn.detection.spec import DetectorSpec

__all__ = ["load_detector", "save_detector"]


def save_detector(detector: Detector, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights, spec, categories and keypoints to one safetensors file, whole or not at all.

    >>> import tempfile
    >>> import nonlocal_nn as nl
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_detector(nl.create_detector("faster_rcnn_tiny", categories={20: "cat"}), path)
    >>> load_detector(path).categories
    (Category(id=20, name='cat'),)

    Args:
        detector: from `create_detector` or `load_detector`.
        path: of the file; missing folders are made, an older file is replaced.
        metadata: more to remember; None: the detector's own `metadata`.

    Raises:
        ValueError: it is no detector of ours, or was changed after it was built from its spec.
    """
    if not isinstance(detector, Detector):
        raise ValueError(
            f"a {type(detector).__name__} that create_detector did not make has no spec to build it from; "
            "save its state dict with torch.save"
        )
    with meta_init():
        built = build_detector(detector.spec, detector.categories, detector.keypoints, loading=True)
    if changed := sorted(built.state_dict().keys() ^ detector.state_dict().keys()):
        raise ValueError(
            "the detector is no longer what its spec describes, so its file could not be loaded: "
            f"{changed[0]!r} and {len(changed) - 1} more tensors were added or removed. Blocks put in later "
            "belong into the spec (create_detector(..., nonlocal_after=...))"
        )
    header = {
        "detector": detector.spec.to_json(),
        "categories": [list(category) for category in detector.categories],
        "keypoints": None if detector.keypoints is None else detector.keypoints.to_dict(),
        "metadata": dict(detector.metadata if metadata is None else metadata),
    }
    write_checkpoint(path, detector.state_dict(), header)


def load_detector(path: str | Path) -> Detector:
    """The detector of a file that `save_detector` wrote, or of its run folder; on the CPU, in eval mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds no detector of ours.
    """
    file = checkpoint_file(path)
    tensors, header = read_checkpoint(file)
    if "detector" not in header:
        raise ValueError(f"{file} holds no detector; nonlocal_nn.load_model reads networks and blocks")
    try:
        spec = DetectorSpec.from_json(header["detector"])
        categories = tuple(Category(number, name) for number, name in header["categories"])
        keypoints = None if header["keypoints"] is None else Keypoints(**header["keypoints"])
        metadata = {str(name): str(value) for name, value in header["metadata"].items()}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: its header describes no detector ({error})") from error
    # Not on "meta": the anchors are tensors outside of the state dict.
    with torch.random.fork_rng(devices=[]):
        detector = build_detector(spec, categories, keypoints, loading=True)
    try:
        detector.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fill the detector of its header: {error}") from None
    detector.metadata = metadata
    return detector.eval()
