"""Average precision: pycocotools' numbers where it has any, and the others by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nonlocal_nn.data.categories import COCO_PERSON, Task
from nonlocal_nn.detection.score import Scores, Truth, score_results

pytest.importorskip("faster_coco_eval")
pycoco = pytest.importorskip("pycocotools.coco")
pyeval = pytest.importorskip("pycocotools.cocoeval")

KINDS = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
FILES = {"boxes": "instances", "masks": "instances", "keypoints": "person_keypoints"}


def _noisy(values: dict[str, Any], task: Task, seed: int) -> list[dict[str, Any]]:
    """Results near the truth, or not: moved, doubled, missing, of wrong categories, of tied scores."""
    rng = np.random.default_rng(seed)
    categories = [one["id"] for one in values["categories"]]
    results = []
    for one in values["annotations"]:
        if rng.random() < 0.2:
            continue
        for _ in range(1 + (rng.random() < 0.3)):
            found: dict[str, Any] = {"image_id": one["image_id"], "category_id": one["category_id"]}
            if rng.random() < 0.1:
                found["category_id"] = int(rng.choice(categories))
            found["score"] = round(float(rng.random()), 1 if rng.random() < 0.5 else 6)
            x, y, width, height = one["bbox"]
            move = rng.normal(0, 0.08, 4)
            if task == "boxes":
                found["bbox"] = [
                    x + move[0] * width,
                    y + move[1] * height,
                    width * math.exp(move[2]),
                    height * math.exp(move[3]),
                ]
            elif task == "masks":
                if isinstance(one["segmentation"], dict):
                    continue
                found["segmentation"] = [
                    (np.array(part) + np.tile(move[:2] * [width, height], len(part) // 2)).tolist()
                    for part in one["segmentation"]
                ]
            else:
                points = np.array(one["keypoints"], float).reshape(-1, 3)
                points[:, :2] += rng.normal(0, 0.05 * math.sqrt(width * height + 1), (len(points), 2))
                points[:, 2] = 1
                found["keypoints"] = points.ravel().tolist()
            results.append(found)
    return results


def _with_masks(values: dict[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Polygons of results as compressed runs, as detectors write them."""
    from pycocotools import mask

    sizes = {one["id"]: (one["height"], one["width"]) for one in values["images"]}
    for one in results:
        runs = mask.merge(mask.frPyObjects(one["segmentation"], *sizes[one["image_id"]]))
        one["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    return results


def _theirs(values: dict[str, Any], results: list[dict[str, Any]], task: Task) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        owner = pycoco.COCO()
        owner.dataset = copy.deepcopy(values)
        owner.createIndex()
        counting = pyeval.COCOeval(owner, owner.loadRes(copy.deepcopy(results)), KINDS[task])
        counting.evaluate()
        counting.accumulate()
        counting.summarize()
    return counting.stats.tolist()


def _values_of(scores: Scores) -> list[float]:
    return [-1.0 if value is None else value for value in scores.numbers.values()]


@pytest.mark.parametrize("task", ["boxes", "masks", "keypoints"])
@pytest.mark.parametrize("name", ["coco_mini train2017", "tiny_coco train2017", "tiny_coco val2017"])
def test_all_numbers_are_those_of_pycocotools(shared_data: Path, name: str, task: Task) -> None:
    folder, split = name.split()
    file = shared_data / "coco" / folder / "annotations" / f"{FILES[task]}_{split}.json"
    values = json.loads(file.read_text())
    truth = Truth.read(file, task)
    assert truth.problems == ()
    for seed in range(2):
        results = _noisy(values, task, seed)
        if task == "masks":
            results = _with_masks(values, results)
        scores = score_results(truth, results, task)
        theirs = _theirs(values, results, task)
        assert len(theirs) == len(scores.numbers) == (10 if task == "keypoints" else 12)
        assert np.abs(np.array(_values_of(scores)) - theirs).max() <= 1e-12
        assert 0.05 < scores.numbers["AP"] < 0.95
        assert scores.problems == ()
        assert scores.numbers["AP"] == pytest.approx(np.mean(list(scores.by_category.values())), abs=1e-12)


def test_real_detections_of_poses(shared_data: Path) -> None:
    """The file of a published detector's boxes on four images."""
    folder = shared_data / "coco" / "mmpose_tests_coco"
    values = json.loads((folder / "test_coco.json").read_text())
    results = json.loads((folder / "test_coco_det_AP_H_56.json").read_text())
    scores = score_results(Truth.read(folder / "test_coco.json"), results, "boxes")
    assert np.abs(np.array(_values_of(scores)) - _theirs(values, results, "boxes")).max() <= 1e-12


def _made() -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 100} for n in ("a", "b", "c")],
        "categories": [{"id": 20, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 7, "name": "bird"}],
        "annotations": [
            {"id": 0, "image_id": "a", "category_id": 3, "bbox": [10, 10, 40, 40]},
            {"id": 1, "image_id": "b", "category_id": 3, "bbox": [10, 10, 50, 50]},
            {"id": 2, "image_id": "b", "category_id": 20, "bbox": [50, 50, 20, 20]},
        ],
    }


def _right(score: float = 0.5, only: Sequence[int] = (0, 1, 2)) -> list[dict[str, Any]]:
    truth = _made()["annotations"]
    return [
        {**{key: truth[n][key] for key in ("image_id", "category_id", "bbox")}, "score": score} for n in only
    ]


def test_where_pycocotools_has_no_answer() -> None:
    """Fields that are missing, an id of 0, ids that are texts, no results, other limits."""
    truth = Truth.of(_made())
    assert truth.notes == (
        "3 annotations without an area, taken from the outline or the box",
        "3 annotations without iscrowd, taken as 0",
    )
    scores = score_results(truth, _right(), "boxes")
    assert scores.numbers["AP"] == 1
    assert scores.by_category == {"cat": 1.0, "dog": 1.0}
    assert scores.left_out == ("bird",)
    assert (scores.numbers["APsmall"], scores.numbers["APmedium"], scores.numbers["APlarge"]) == (1, 1, None)
    nothing = score_results(truth, [], "boxes")
    assert set(nothing.numbers.values()) == {0.0, None}
    assert nothing.by_category == {"cat": 0.0, "dog": 0.0}
    # pycocotools gives -1 where the largest limit is not 100
    several = score_results(truth, _right(), "boxes", max_detections=(1, 5))
    assert several.numbers["AP"] == 1
    assert "AR5" in several.numbers
    one = score_results(truth, _right(), "boxes", max_detections=(1,))
    assert one.numbers["AR"] == 1
    # half of the dogs, by hand: precision 1 up to a recall of one half, 51 of 101 points
    half = score_results(truth, _right(only=(0, 2)), "boxes")
    assert half.by_category["dog"] == pytest.approx(51 / 101, abs=1e-12)


def test_sigmas_of_keypoints() -> None:
    values = _made()
    values["categories"][1]["keypoints"] = ["tip", "end"]
    for one in values["annotations"]:
        one["keypoints"] = [20, 20, 2, 30, 30, 2]
    results = [{**one, "keypoints": [22, 20, 1, 30, 30, 1]} for one in _right()]
    truth = Truth.of(values, "keypoints")
    for sigma in (0.02, 0.05, 0.2):
        scores = score_results(truth, results, "keypoints", sigmas=(sigma, sigma))
        # of the first dog, area 1600: the mean of exp(-d^2 / (2 area (2 sigma)^2)) over its two points
        similar = [(1 + math.exp(-4 / (2 * area * (2 * sigma) ** 2))) / 2 for area in (1600, 2500)]
        expected = np.mean([np.mean([_at(threshold, similar)]) for threshold in np.arange(0.5, 0.96, 0.05)])
        assert scores.by_category["dog"] == pytest.approx(expected, abs=1e-12)
    assert score_results(truth, results, "keypoints").numbers == (
        score_results(truth, results, "keypoints", sigmas=(0.05, 0.05)).numbers
    )
    points = Truth.of({**values, "categories": [_person()]}, "keypoints").points
    assert points is not None
    assert (points.sigmas, points.flip_pairs) == (COCO_PERSON.sigmas, COCO_PERSON.flip_pairs)
    with pytest.raises(ValueError, match="sigmas has 3 values; give one above 0 for each of the 2 keypoints"):
        score_results(truth, results, "keypoints", sigmas=(0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="no category has keypoints"):
        Truth.of(_made(), "keypoints")


def _person() -> dict[str, Any]:
    return {"id": 3, "name": "person", "keypoints": list(COCO_PERSON.names)}


def _at(threshold: float, similar: Sequence[float]) -> float:
    """AP of two objects with one result each, tied scores, at one threshold."""
    found = [value >= threshold - 1e-12 for value in similar]
    if all(found):
        return 1.0
    if not any(found):
        return 0.0
    # in the order of images: right then wrong, or wrong then right
    return 51 / 101 * (1.0 if found[0] else 0.5)


def test_results_that_cannot_be_are_named_and_the_others_count() -> None:
    truth = Truth.of(_made())
    bad: list[Any] = [
        {"category_id": 3, "bbox": [1, 1, 2, 2], "score": 1},
        {"image_id": "z", "category_id": 3, "bbox": [1, 1, 2, 2], "score": 1},
        {"image_id": "a", "category_id": 4, "bbox": [1, 1, 2, 2], "score": 1},
        {"image_id": "a", "category_id": 3, "bbox": [1, 1, 2], "score": 1},
        {"image_id": "a", "category_id": 3, "bbox": [1, 1, 2, math.nan], "score": 1},
        {"image_id": "a", "category_id": 3, "bbox": [1, 1, 2, 2], "score": math.nan},
        {"image_id": "a", "category_id": 3, "score": 1},
        {"image_id": ["a"], "category_id": 3, "bbox": [1, 1, 2, 2], "score": 1},
        3,
    ]
    scores = score_results(truth, [*bad, *_right()], "boxes")
    assert scores.numbers["AP"] == 1
    assert [problem.reason.split(":")[0] for problem in scores.problems] == [f"result {n}" for n in range(9)]
    with pytest.raises(
        ValueError, match=r"all 1 results are of images that the json does not have, such as 'z'"
    ):
        score_results(truth, bad[1:2], "boxes")
    for limits in ((), (0,), (10, 5), (5, 5)):
        with pytest.raises(ValueError, match="give ascending whole numbers from 1 on"):
            score_results(truth, _right(), "boxes", max_detections=limits)


def test_nothing_that_is_given_is_changed() -> None:
    values, results = _made(), _right()
    before = copy.deepcopy((values, results))
    truth = Truth.of(values)
    held = copy.deepcopy(truth.values)
    score_results(truth, results, "boxes")
    assert (values, results) == before
    assert truth.values == held
    assert score_results(truth, results, "boxes").numbers["AP"] == 1
