"""What our detectors are beside torchvision's: described, and asked by `predict`.

>>> import nonlocal_nn as nl
>>> _ = torch.manual_seed(0)
>>> detector = nl.create_detector("mask_rcnn_tiny", categories={3: "cat"})
>>> (found,) = detector.predict([torch.zeros(3, 90, 120)], threshold=0.0, top=2)
>>> found.boxes.shape, found.names, [mask.mask.shape for mask in found.masks]
(torch.Size([2, 4]), ('cat', 'cat'), [(90, 120), (90, 120)])

torchvision pastes all masks of an image at full size before it returns: 100 of them on 12 megapixels are 5
GB. Here they are pasted, cut at 0.5 and kept as runs one by one; the pixels are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image
from torchvision.models.detection.transform import resize_boxes, resize_keypoints

from nonlocal_nn._modes import evaluating
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.data.categories import Category, Keypoints
from nonlocal_nn.data.images import read_image
from nonlocal_nn.data.outlines import Runs, runs_of_mask, text_of_counts
from nonlocal_nn.detection.spec import DetectorSpec

__all__ = ["Detections", "Detector"]


@dataclass(frozen=True)
class Detections:
    """What was found in one image, the surest first; tensors on the CPU.

    Attributes:
        boxes: float32 (n, 4), x1, y1, x2, y2 in pixels of the image.
        scores: float32 (n,), 0 to 1.
        labels: int64 (n,), from 1 on: categories[label - 1].
        categories: of the detector.
        masks: of each box, for a Mask R-CNN.
        keypoints: float32 (n, keypoints, 3), x, y and 1, and their scores (n, keypoints), for a Keypoint
            R-CNN.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    categories: tuple[Category, ...]
    masks: tuple[Runs, ...] | None = None
    keypoints: Tensor | None = None
    keypoint_scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> tuple[str, ...]:
        """The category's name of each."""
        return tuple(self.categories[label - 1].name for label in self.labels.tolist())

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """As results in COCO's form, with the user's ids; numbers in full precision.

        >>> box = torch.tensor([[1.0, 2.0, 4.0, 6.0]])
        >>> found = Detections(box, torch.tensor([0.5]), torch.tensor([1]), (Category(7, "dog"),))
        >>> found.to_coco(12)
        [{'image_id': 12, 'category_id': 7, 'score': 0.5, 'bbox': [1.0, 2.0, 3.0, 4.0]}]
        """
        rows = []
        for number in range(len(self)):
            x1, y1, x2, y2 = self.boxes[number].tolist()
            row: dict[str, Any] = {
                "image_id": image_id,
                "category_id": self.categories[int(self.labels[number]) - 1].id,
                "score": float(self.scores[number]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            if self.masks is not None:
                mask = self.masks[number]
                size = [mask.height, mask.width]
                row["segmentation"] = {"size": size, "counts": text_of_counts(mask.counts.tolist())}
            if self.keypoints is not None:
                row["keypoints"] = self.keypoints[number].flatten().tolist()
            rows.append(row)
        return rows


class Detector(nn.Module):
    """What our detectors are beside torchvision's: described, so that a file can build them again.

    Attributes:
        spec: what it was built from.
        categories: what its labels 1, 2, ... mean.
        keypoints: of an object; None where it finds none.
        metadata: more that its file remembers.
    """

    spec: DetectorSpec
    categories: tuple[Category, ...]
    keypoints: Keypoints | None
    metadata: dict[str, str]
    forward: Callable[..., Any]

    def blocks(self) -> Iterator[tuple[str, NonLocalBlock]]:
        """The non-local blocks, by name."""
        for name, module in self.named_modules():
            if isinstance(module, NonLocalBlock):
                yield name, module

    def predict(
        self,
        images: Iterable[Tensor | np.ndarray[Any, np.dtype[np.uint8]] | str | Path],
        *,
        threshold: float = 0.05,
        top: int = 100,
    ) -> Iterator[Detections]:
        """The detections of each image, one image at a time; in any mode, on any device.

        Args:
            images: each a float tensor (3, height, width) in [0, 1], a uint8 array (height, width, 3), or a
                path, whose picture is turned as its EXIF says.
            threshold: detections of a lower score are left out, 0 to 1.
            top: most detections of an image.

        Raises:
            ImageError: a path whose image cannot be read.
            ValueError: an image of another form, or a threshold or number that cannot be.
        """
        if not 0 <= threshold <= 1 or top < 1:
            raise ValueError(f"threshold {threshold} must be in 0 .. 1, and top {top} at least 1")
        heads: Any = self.get_submodule("roi_heads")
        before = heads.score_thresh, heads.detections_per_img
        device = next(self.parameters()).device
        for image in images:
            picture = _tensor(image).to(device)
            heads.score_thresh, heads.detections_per_img = threshold, top
            try:
                with torch.inference_mode(), evaluating(self):
                    found = _raw(self, picture)
            finally:
                heads.score_thresh, heads.detections_per_img = before
            yield found


def _tensor(image: Tensor | np.ndarray[Any, np.dtype[np.uint8]] | str | Path) -> Tensor:
    if isinstance(image, (str, Path)):
        image = read_image(image).pixels
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array of {image.dtype} {image.shape}; an image is uint8 (height, width, 3)")
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    if not image.is_floating_point() or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"a tensor of {image.dtype} {tuple(image.shape)}; an image is float (3, height, width) in [0, 1]"
        )
    return image


def _raw(detector: Detector, image: Tensor) -> Detections:
    """What torchvision's forward does, but for the pasting of masks."""
    parts: Any = detector
    height, width = image.shape[1:]
    batch, _ = parts.transform([image])
    features = parts.backbone(batch.tensors)
    proposals, _ = parts.rpn(batch, features)
    (found,), _ = parts.roi_heads(features, proposals, batch.image_sizes)
    shown = batch.image_sizes[0]
    boxes = resize_boxes(found["boxes"], shown, (height, width))
    masks = keypoints = scores = None
    if "masks" in found:
        masks = tuple(
            _runs(mask, box, height, width) for mask, box in zip(*_whole(found["masks"], boxes), strict=True)
        )
    if "keypoints" in found:
        keypoints = resize_keypoints(found["keypoints"], shown, (height, width)).cpu()
        scores = found["keypoints_scores"].cpu()
    return Detections(
        boxes.cpu(),
        found["scores"].cpu(),
        found["labels"].cpu(),
        detector.categories,
        masks,
        keypoints,
        scores,
    )


def _whole(masks: Tensor, boxes: Tensor) -> tuple[Tensor, list[list[int]]]:
    """Masks with a rim of one pixel, and their boxes in whole pixels, as torchvision pastes them."""
    padded, scale = expand_masks(masks, padding=1)
    return padded[:, 0], expand_boxes(boxes, scale).to(torch.int64).tolist()


def _runs(mask: Tensor, box: list[int], height: int, width: int) -> Runs:
    """One mask at the size of the image, where it is over one half; pasted into the columns of its box."""
    left, right = max(0, min(box[0], width - 1)), max(1, min(box[2] + 1, width))
    shifted = torch.tensor([box[0] - left, box[1], box[2] - left, box[3]])
    pasted = paste_mask_in_image(mask, shifted, height, right - left) > 0.5
    return runs_of_mask(pasted.cpu().numpy(), left, width)
