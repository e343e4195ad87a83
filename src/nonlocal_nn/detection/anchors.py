"""Which boxes the anchors of a detector can reach, without building it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from nonlocal_nn.detection.spec import LEVEL_STRIDES, DetectorSpec

__all__ = ["ASPECT_RATIOS", "best_overlaps"]

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width


def best_overlaps(
    boxes: npt.NDArray[np.float32], sizes: npt.NDArray[np.int32], spec: DetectorSpec
) -> npt.NDArray[np.float64]:
    """The overlap (IoU) of each box with the anchor that fits it best.

    An anchor of 0.7 or more is trained to find the box. Below that only the best one of all is, which finds
    it badly where it fits badly: boxes far smaller or longer than all anchors are hardly ever found.

    >>> spec = DetectorSpec("mine", sides=(100,), anchor_sizes=(16, 32, 64, 128, 256))
    >>> boxes = np.array([[24, 24, 40, 40], [50, 50, 52, 52]], np.float32)
    >>> best_overlaps(boxes, np.array([[100, 100], [100, 100]], np.int32), spec).round(3).tolist()
    [1.0, 0.016]

    Args:
        boxes: (boxes, 4), x1, y1, x2, y2 in pixels of the image.
        sizes: (boxes, 2), height and width of the image of each.
        spec: of the detector, for its anchors and the size that images are brought to in a test.
    """
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    scale = np.minimum(spec.sides[-1] / shorter, spec.longest_side / longer)
    # Images are brought to whole pixels and padded to multiples of 32; here as (width, height).
    shown = np.floor(sizes * scale[:, None])[:, ::-1]
    box = boxes.astype(np.float64) * np.tile(shown / sizes[:, ::-1], 2)
    padded = np.ceil(shown / 32) * 32
    centre = (box[:, :2] + box[:, 2:]) / 2
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    best = np.zeros(len(boxes))
    for level, size in zip(LEVEL_STRIDES, spec.anchor_sizes, strict=True):
        cells = np.ceil(padded / level)
        stride = padded // cells  # of the last level, which is rounded up, less than its 64 pixels
        place = np.clip(np.round(centre / stride), 0, cells - 1) * stride  # the nearest of the grid
        for ratio in ASPECT_RATIOS:
            half = np.round(np.array([size / math.sqrt(ratio), size * math.sqrt(ratio)]) / 2)
            low = np.maximum(box[:, :2], place - half)
            high = np.minimum(box[:, 2:], place + half)
            common = np.prod(np.clip(high - low, 0, None), axis=1)
            best = np.maximum(best, common / (area + np.prod(2 * half) - common))
    return best
