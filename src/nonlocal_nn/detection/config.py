"""What `nonlocal detect test` is told: a plain dataclass, from YAML or the command line; no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DetectTestConfig", "ScoredTask"]

ScoredTask = Literal["auto", "boxes", "masks", "keypoints"]


@dataclass(frozen=True, kw_only=True)
class DetectTestConfig:
    """Score the results of any detector as COCO does: average precision and recall, and by category.

    The numbers are pycocotools'. Where that fails there is an answer, too: no results are an AP of 0, ids may
    be texts, and a missing area, iscrowd or num_keypoints is filled in. Results of an unknown image or
    category, or without a number for a score, are listed and left out: exit code 1 if there are any, else 0.
    """

    data: str
    """COCO json with the truth."""
    results: str
    """Results in COCO's form: a json list of image_id, category_id, score and bbox, segmentation (compressed
    runs) or keypoints."""
    task: ScoredTask = "auto"
    """What to score; auto: keypoints where the results have them, else masks where they have them, else
    boxes."""
    max_detections: tuple[int, ...] | None = None
    """Most detections of an image that count, ascending, such as 1,10,300; AP is at the largest. None: COCO's
    1, 10 and 100, or 20 for keypoints."""
    sigmas: tuple[float, ...] | None = None
    """How far annotators differ in each keypoint, relative to the object's size; none: COCO's for COCO's 17,
    else 0.05 for each."""
    out: str | None = None
    """Write all numbers to this .json file as well."""
    json: bool = False
    """Print JSON for scripts instead of tables."""
