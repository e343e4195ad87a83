"""The best anchor of a box, worked out, is the best of all that torchvision lays down."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn.detection.anchors import best_overlaps
from nonlocal_nn.detection.catalog import get_detector_spec

image_list = pytest.importorskip("torchvision.models.detection.image_list")
ops = pytest.importorskip("torchvision.ops")


@pytest.mark.parametrize(
    ("name", "size"),
    [("faster_rcnn_tiny", (96, 150)), ("faster_rcnn_tiny", (70, 50)), ("faster_rcnn_r18", (300, 200))],
)
def test_the_best_anchor_is_the_best_of_all(name: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    height, width = size
    corners = rng.uniform(0, [width, height, width, height], (300, 4)).reshape(-1, 2, 2)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1) + 0.5], axis=1).astype(np.float32)
    boxes[:50, 2:] = boxes[:50, :2] + rng.uniform(1, 12, (50, 2))  # and small ones
    detector = nl.create_detector(name, categories=["a"]).eval()
    transform = detector.get_submodule("transform")
    image = torch.zeros(3, height, width)
    resized, targets = transform([image], [{"boxes": torch.from_numpy(boxes)}])
    with torch.inference_mode():
        levels = list(detector.get_submodule("backbone")(resized.tensors).values())
        anchors = detector.get_submodule("rpn.anchor_generator")(resized, levels)[0]
    expected = ops.box_iou(targets[0]["boxes"].double(), anchors.double()).max(dim=1).values
    found = best_overlaps(
        boxes, np.tile(np.array([size], np.int32), (len(boxes), 1)), get_detector_spec(name)
    )
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_no_boxes() -> None:
    spec = get_detector_spec("faster_rcnn_r50")
    assert best_overlaps(np.zeros((0, 4), np.float32), np.zeros((0, 2), np.int32), spec).shape == (0,)
