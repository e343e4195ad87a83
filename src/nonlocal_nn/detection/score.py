"""Average precision as COCO counts it, of boxes, masks or keypoints: all numbers, and by category.

>>> truth = Truth.of({"images": [{"id": 5, "file_name": "a.jpg", "width": 40, "height": 30}],
...                   "categories": [{"id": 7, "name": "dog"}],
...                   "annotations": [{"id": 1, "image_id": 5, "category_id": 7, "bbox": [10, 10, 8, 6]}]})
>>> found = [{"image_id": 5, "category_id": 7, "bbox": [10, 10, 8, 6.5], "score": 0.9}]
>>> scores = score_results(truth, found, "boxes")
>>> round(scores.numbers["AP"], 2), scores.numbers["APlarge"], scores.by_category
(0.9, None, {'dog': 0.9})

The counting is that of faster-coco-eval, which gives pycocotools' numbers (a test compares them). What
pycocotools cannot count is counted here: no results are an AP of 0, a largest number of detections other than
100 is taken, and what is missing in a json is filled in as COCO defines it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nonlocal_nn.data.categories import Keypoints, Task
from nonlocal_nn.data.coco_annotations import (
    Corners,
    Unusable,
    area_of,
    box_of,
    called,
    categories_of,
    crowd_of,
    is_number,
    keypoints_of,
    outline_of,
    points_of,
    size_of,
    why_no_annotation,
    why_no_image,
)
from nonlocal_nn.data.coco_file import load_json
from nonlocal_nn.data.errors import Problem

__all__ = ["MAX_DETECTIONS", "Scores", "Truth", "score_results"]

MAX_DETECTIONS: dict[Task, tuple[int, ...]] = {
    "boxes": (1, 10, 100),
    "masks": (1, 10, 100),
    "keypoints": (20,),
}
_KINDS: dict[Task, str] = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
_FIELDS: dict[Task, str] = {"boxes": "bbox", "masks": "segmentation", "keypoints": "keypoints"}


@dataclass(frozen=True)
class Truth:
    """The annotations of a json as the evaluation takes them: numbers for ids, all fields there.

    Attributes:
        images: number of each image id.
        categories: number of each category id.
        names: of the categories, by number from 1 on.
        points: what the keypoints are, where there are any.
        values: COCO's form, with those numbers.
        problems: what was left out, and why.
        notes: what was filled in, in a line each.
    """

    images: Mapping[Any, int]
    categories: Mapping[Any, int]
    names: tuple[str, ...]
    points: Keypoints | None
    values: dict[str, list[dict[str, Any]]]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, file: str | Path, task: Task = "boxes") -> Truth:
        """Of a file.

        Raises:
            FileNotFoundError, ValueError: there is none, or it is no json of objects.
        """
        return cls.of(load_json(Path(file)), task, str(file))

    @classmethod
    def of(cls, given: Mapping[str, Any], task: Task = "boxes", called_so: str = "annotations") -> Truth:
        """Of what a json holds.

        Raises:
            ValueError: keypoints are asked for and no category has any.
        """
        problems: list[Problem] = []
        filled: Counter[str] = Counter()
        sizes: dict[Any, dict[str, int]] = {}
        for number, image in enumerate(given["images"]):
            reason = why_no_image(image, sizes)
            if reason is not None:
                problems.append(Problem(called_so, f"image {number}: {reason}"))
                continue
            sizes[image["id"]] = {side: size_of(image.get(side)) for side in ("height", "width")}
        # By their ids, as COCO goes through them: it decides which of two results of one score comes first.
        ordered = sorted(sizes, key=lambda key: (isinstance(key, str), key))
        images = {key: number for number, key in enumerate(ordered, start=1)}
        listed: list[dict[str, Any]] = [{"id": images[key], **sizes[key]} for key in ordered]
        named = categories_of(given["categories"], called_so)
        categories = {key: number for number, key in enumerate(named, start=1)}
        names = tuple(named.values())
        points = next((keypoints_of(one) for one in given["categories"] if one.get("keypoints")), None)
        if task == "keypoints" and points is None:
            raise ValueError(f"{called_so}: no category has keypoints")
        seen: set[Any] = set()
        annotations: list[dict[str, Any]] = []
        for number, one in enumerate(given["annotations"]):
            reason = why_no_annotation(one, images, categories, seen)
            if reason is None:
                try:
                    image = listed[images[one["image_id"]] - 1]
                    made = _annotation(one, task, image, points, filled)
                except Unusable as error:
                    reason = str(error)
                else:
                    made |= {"image_id": image["id"], "category_id": categories[one["category_id"]]}
                    annotations.append({"id": len(annotations) + 1, **made})
            if reason is not None:
                problems.append(Problem(called_so, f"{called(one, number)}: {reason}"))
        numbered = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
        values = {"images": listed, "annotations": annotations, "categories": numbered}
        notes = tuple(f"{count} {what}" for what, count in filled.items() if count)
        return cls(images, categories, names, points, values, tuple(problems), notes)


@dataclass(frozen=True)
class Scores:
    """What a set of results is worth.

    Attributes:
        numbers: COCO's, 0 to 1, by name: AP, AP50, AP75, APsmall, ... AR100, ...; None where there is no
            truth of that size.
        by_category: AP of each category that has truth.
        left_out: categories without truth.
        problems: results that could not be used, and why.
    """

    numbers: dict[str, float | None]
    by_category: dict[str, float]
    left_out: tuple[str, ...]
    problems: tuple[Problem, ...] = ()


def score_results(
    truth: Truth,
    results: Sequence[Mapping[str, Any]],
    task: Task,
    *,
    max_detections: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Scores:
    """Score results in COCO's form: image_id, category_id, score, and bbox, segmentation or keypoints.

    Args:
        truth: with the ids that the results speak of.
        results: none are an AP of 0.
        task: what is scored.
        max_detections: most detections of an image that count, ascending; None: COCO's 1, 10 and 100, or 20
            for keypoints. Average precision is at the largest.
        sigmas: of the keypoints; None: COCO's for COCO's 17, else 0.05 for each.

    Raises:
        ValueError: results of other images, or numbers that cannot be.
        ModuleNotFoundError: faster-coco-eval is not installed.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    limits = tuple(MAX_DETECTIONS[task] if max_detections is None else max_detections)
    if not limits or any(limit < 1 for limit in limits) or list(limits) != sorted(set(limits)):
        raise ValueError(f"max_detections is {list(limits)}; give ascending whole numbers from 1 on")
    usable, problems = _usable(truth, results, task)
    # It changes what it is given.
    owner = COCO({name: [dict(one) for one in rows] for name, rows in truth.values.items()})
    theirs = owner.loadRes(usable) if usable else COCO({**truth.values, "annotations": []})
    options = {"kpt_oks_sigmas": _sigmas(truth, sigmas)} if task == "keypoints" else {}
    counting = COCOeval_faster(owner, theirs, iouType=_KINDS[task], extra_calc=False, **options)
    counting.params.maxDets = list(limits)
    counting.evaluate()
    counting.accumulate()
    precision, recall = np.asarray(counting.eval["precision"]), np.asarray(counting.eval["recall"])
    thresholds = np.asarray(counting.params.iouThrs)
    areas = list(counting.params.areaRngLbl)
    numbers = _numbers(precision, recall, thresholds, areas, limits)
    each = precision[:, :, :, 0, -1]  # (threshold, recall, category)
    with_truth = {one["category_id"] for one in truth.values["annotations"] if not one["iscrowd"]}
    places = {int(number): place for place, number in enumerate(counting.params.catIds)}
    by_category, left_out = {}, []
    for number, name in enumerate(truth.names, start=1):
        value = _mean(each[:, :, places[number]]) if number in places else None
        if value is None or number not in with_truth:
            left_out.append(name)
        else:
            by_category[name] = value
    return Scores(numbers, by_category, tuple(left_out), tuple(problems))


def _numbers(
    precision: npt.NDArray[np.float64],
    recall: npt.NDArray[np.float64],
    thresholds: npt.NDArray[np.float64],
    areas: Sequence[str],
    limits: Sequence[int],
) -> dict[str, float | None]:
    """COCO's list: precision is (threshold, recall, category, area, limit), recall without the second."""
    at = {0.5: int(np.argmin(np.abs(thresholds - 0.5))), 0.75: int(np.argmin(np.abs(thresholds - 0.75)))}
    numbers = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[at[0.5], :, :, 0, -1]),
        "AP75": _mean(precision[at[0.75], :, :, 0, -1]),
    }
    for place, area in enumerate(areas[1:], start=1):
        numbers[f"AP{area}"] = _mean(precision[:, :, :, place, -1])
    if len(limits) > 1:
        for place, limit in enumerate(limits):
            numbers[f"AR{limit}"] = _mean(recall[:, :, 0, place])
    else:
        numbers["AR"] = _mean(recall[:, :, 0, -1])
        numbers["AR50"] = _mean(recall[at[0.5], :, 0, -1])
        numbers["AR75"] = _mean(recall[at[0.75], :, 0, -1])
    for place, area in enumerate(areas[1:], start=1):
        numbers[f"AR{area}"] = _mean(recall[:, :, place, -1])
    return numbers


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """The mean without the -1 of categories that have no truth."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _sigmas(truth: Truth, sigmas: Sequence[float] | None) -> list[float]:
    assert truth.points is not None
    points = truth.points if sigmas is None else replace(truth.points, sigmas=tuple(sigmas))
    return list(points.sigmas or [0.05] * len(points.names))


def _usable(
    truth: Truth, results: Sequence[Mapping[str, Any]], task: Task
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The results with numbers for ids, and those that cannot be."""
    usable: list[dict[str, Any]] = []
    problems: list[Problem] = []
    strangers = 0
    sizes = {one["id"]: (one["height"], one["width"]) for one in truth.values["images"]}
    for number, one in enumerate(results):
        reason = None
        if not isinstance(one, Mapping) or "image_id" not in one:
            reason = "it has no image_id"
        elif _hashed(one["image_id"]) not in truth.images:
            strangers += 1
            reason = f"its image {one['image_id']!r} is none of the json's"
        elif _hashed(one.get("category_id")) not in truth.categories:
            reason = f"its category {one.get('category_id')!r} is none of the json's"
        elif not is_number(one.get("score")):
            reason = f"its score is {one.get('score')!r}"
        else:
            image = truth.images[one["image_id"]]
            try:
                found = _found(one, task, truth.points, *sizes[image])
            except Unusable as error:
                reason = str(error)
            else:
                category = truth.categories[one["category_id"]]
                ids = {"image_id": image, "category_id": category, "score": float(one["score"])}
                usable.append({**ids, **found})
        if reason is not None:
            problems.append(Problem("results", f"result {number}: {reason}"))
    if strangers and strangers == len(results):
        raise ValueError(
            f"all {strangers} results are of images that the json does not have, such as "
            f"{results[0]['image_id']!r}; they belong to another set"
        )
    return usable, problems


def _found(
    one: Mapping[str, Any], task: Task, points: Keypoints | None, height: int, width: int
) -> dict[str, Any]:
    field = _FIELDS[task]
    given = one.get(field)
    if given is None:
        raise Unusable(f"it has no {field}")
    if task == "boxes":
        if not isinstance(given, (list, tuple)) or len(given) != 4 or not all(map(is_number, given)):
            raise Unusable(f"its bbox {given!r} is not four numbers")
        return {"bbox": [float(value) for value in given]}
    if task == "masks":
        outline_of({"segmentation": given}, height, width, Counter())
        return {"segmentation": given}
    assert points is not None
    return {"keypoints": points_of({"keypoints": given}, len(points.names), Counter())}


def _annotation(
    one: dict[str, Any],
    task: Task,
    image: Mapping[str, Any],
    points: Keypoints | None,
    filled: Counter[str],
) -> dict[str, Any]:
    """One annotation with all fields; its own numbers are kept as they are."""
    height, width = image["height"], image["width"]
    outline = outline_of(one, height, width, filled) if task == "masks" else None
    x1, y1, x2, y2 = box_of(one, outline, height, width, Corners(), filled)
    box = one.get("bbox", [x1, y1, x2 - x1, y2 - y1])
    area = area_of(one, outline, box[2] * box[3], filled)
    made = {"bbox": box, "area": area, "iscrowd": int(crowd_of(one, filled))}
    if task == "masks":
        made["segmentation"] = one["segmentation"]
    elif task == "keypoints":
        assert points is not None
        made["keypoints"] = points_of(one, len(points.names), filled)
        made["num_keypoints"] = sum(value > 0 for value in made["keypoints"][2::3])
    return made


def _hashed(value: Any) -> Any:
    """A key to look up; nothing that is no id is found."""
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else math.nan
