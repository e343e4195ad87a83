"""What `predict` gives is what the detector's own call gives, mask by mask and by the user's ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import nonlocal_nn as nl
from nonlocal_nn.data.errors import ImageError
from nonlocal_nn.data.outlines import Runs, counts_of_text, runs_of_mask, text_of_counts

pytest.importorskip("torchvision")

from nonlocal_nn.detection.detector import Detections


def _detector(name: str):
    torch.manual_seed(0)
    detector = nl.create_detector(name, categories={3: "cat", 20: "dog"})
    with torch.no_grad():
        # Weights that are sure of something: boxes of different sizes and scores.
        for layer in (detector.roi_heads.box_predictor.cls_score, detector.roi_heads.box_predictor.bbox_pred):
            layer.weight.normal_(0, 0.3)
    return detector


def _image(height: int = 90, width: int = 121) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["faster_rcnn_tiny_nl1", "mask_rcnn_tiny_nl1", "keypoint_rcnn_tiny_nl1"])
def test_it_is_what_the_detector_says(name: str) -> None:
    detector = _detector(name)
    images = [_image(), _image(64, 40)]
    ours = list(detector.predict(images))
    assert detector.training  # as before
    assert (detector.roi_heads.score_thresh, detector.roi_heads.detections_per_img) == (0.05, 100)
    detector.eval()
    for image, found in zip(images, ours, strict=True):
        with torch.inference_mode():
            (theirs,) = detector([image])
        assert len(found) == len(theirs["boxes"]) > 0
        assert torch.equal(found.boxes, theirs["boxes"])
        assert torch.equal(found.scores, theirs["scores"])
        assert torch.equal(found.labels, theirs["labels"])
        assert set(found.names) <= {"cat", "dog"}
        if "masks" in theirs:
            assert found.masks is not None
            pasted = (theirs["masks"][:, 0] > 0.5).numpy()
            assert all(
                np.array_equal(one.mask, other) for one, other in zip(found.masks, pasted, strict=True)
            )
        if "keypoints" in theirs:
            assert torch.equal(found.keypoints, theirs["keypoints"])
            assert torch.equal(found.keypoint_scores, theirs["keypoints_scores"])


def test_threshold_and_top() -> None:
    detector = _detector("faster_rcnn_tiny")
    (every,) = detector.predict([_image()], threshold=0.0)
    assert torch.equal(every.scores, every.scores.sort(descending=True).values)
    limit = float(every.scores.median())
    (some,) = detector.predict([_image()], threshold=limit)
    assert 0 < len(some) < len(every)
    assert (some.scores > limit).all()
    (few,) = detector.predict([_image()], threshold=0.0, top=3)
    assert torch.equal(few.boxes, every.boxes[:3])
    (none,) = detector.predict([_image()], threshold=1.0)
    assert len(none) == 0
    assert none.to_coco(1) == []


def test_paths_and_arrays_are_images_too(tmp_path: Path) -> None:
    pixels = (_image().permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    detector = _detector("mask_rcnn_tiny")
    by_path, by_array, by_tensor = detector.predict(
        [tmp_path / "a.png", pixels, torch.from_numpy(pixels).permute(2, 0, 1) / 255]
    )
    for found in (by_array, by_tensor):
        assert torch.equal(found.boxes, by_path.boxes)
    with pytest.raises(ImageError, match="no such file"):
        list(detector.predict([tmp_path / "absent.png"]))
    for wrong in (
        pixels[..., 0],
        pixels.astype(np.float32),
        torch.zeros(3, 9, 9, dtype=torch.uint8),
        _image()[:1],
    ):
        with pytest.raises(ValueError, match=r"an image is (uint8|float) \("):
            list(detector.predict([wrong]))
    for options in ({"threshold": 1.5}, {"threshold": -1}, {"top": 0}):
        with pytest.raises(ValueError, match=r"must be in 0 \.\. 1, and top"):
            list(detector.predict([pixels], **options))


def test_results_come_out_with_the_ids_that_went_in() -> None:
    for name in ("mask_rcnn_tiny", "keypoint_rcnn_tiny"):
        (found,) = _detector(name).predict([_image()], top=5)
        rows = json.loads(json.dumps(found.to_coco("a picture")))
        assert {row["category_id"] for row in rows} <= {3, 20}
        for number, row in enumerate(rows):
            assert row["image_id"] == "a picture"
            assert row["score"] == float(found.scores[number])
            x, y, width, height = row["bbox"]
            assert torch.allclose(torch.tensor([x, y, x + width, y + height]), found.boxes[number])
            if found.masks is not None:
                counts = counts_of_text(row["segmentation"]["counts"])
                assert counts == found.masks[number].counts.tolist()
            if found.keypoints is not None:
                assert np.array(row["keypoints"]).reshape(17, 3).tolist() == found.keypoints[number].tolist()


def test_scored_against_itself_everything_is_found() -> None:
    from nonlocal_nn.detection.score import Truth, score_results

    (found,) = _detector("mask_rcnn_tiny").predict([_image()], top=4)
    results = found.to_coco(7)
    results = [one for one in results if sum(counts_of_text(one["segmentation"]["counts"])[1::2])]
    assert results
    truth = Truth.of(
        {
            "images": [{"id": 7, "file_name": "a.png", "height": 90, "width": 121}],
            "categories": [{"id": 3, "name": "cat"}, {"id": 20, "name": "dog"}],
            "annotations": [{"id": number, **one} for number, one in enumerate(results)],
        },
        "masks",
    )
    assert score_results(truth, results, "masks").numbers["AP50"] == pytest.approx(1.0)


@given(st.lists(st.integers(0, 2**28), min_size=1, max_size=40))
def test_compressed_runs_are_read_as_they_were_written(counts: list[int]) -> None:
    assert counts_of_text(text_of_counts(counts)) == counts


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_runs_of_some_columns_are_those_of_all(height: int, width: int, data: st.DataObject) -> None:
    left = data.draw(st.integers(0, 3))
    columns = data.draw(st.integers(1, width))
    values = data.draw(st.lists(st.booleans(), min_size=height * columns, max_size=height * columns))
    mask = np.zeros((height, left + width), bool)
    mask[:, left : left + columns] = np.array(values).reshape(height, columns)
    part = runs_of_mask(mask[:, left : left + columns], left, left + width)
    assert part.counts.tolist() == runs_of_mask(mask).counts.tolist()
    assert part.width == left + width


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_runs_of_a_mask_are_the_mask(height: int, width: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(values).reshape(height, width)
    runs = runs_of_mask(mask)
    assert np.array_equal(runs.mask, mask)
    assert (runs.counts[1:] > 0).all()
    assert Runs(runs.counts, height, width).area == mask.sum()


def test_detections_without_masks_have_none() -> None:
    (found,) = _detector("faster_rcnn_tiny").predict([_image()], top=1)
    assert isinstance(found, Detections)
    assert found.masks is found.keypoints is found.keypoint_scores is None
    assert set(found.to_coco(1)[0]) == {"image_id", "category_id", "score", "bbox"}
