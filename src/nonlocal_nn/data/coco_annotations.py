"""One annotation of a COCO json: its box, outline and keypoints, or why it cannot be used."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nonlocal_nn.data.categories import COCO_PERSON, Keypoints
from nonlocal_nn.data.outlines import Polygons, Runs, counts_of_text

__all__ = [
    "Corners",
    "Parts",
    "Unusable",
    "area_of",
    "box_of",
    "called",
    "categories_of",
    "crowd_of",
    "is_id",
    "is_number",
    "keypoints_of",
    "outline_of",
    "points_of",
    "size_of",
    "why_no_annotation",
    "why_no_image",
]


class Unusable(Exception):  # noqa: N818 - not an error that anybody sees
    """An annotation is left out."""


class Parts(NamedTuple):
    """Polygons as the json has them, x and y in turn."""

    parts: list[list[float]]

    @property
    def polygons(self) -> Polygons:
        return Polygons(tuple(np.array(part, np.float32).reshape(-1, 2) for part in self.parts))

    @property
    def area(self) -> float:
        return self.polygons.area

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.polygons.box


@dataclass
class Corners:
    """Whether boxes look like corners: many end outside as [x, y, w, h], none as [x1, y1, x2, y2]."""

    boxes: int = 0
    beyond: int = 0
    as_corners: int = 0

    def count(self, x: float, y: float, w: float, h: float, height: int, width: int) -> None:
        """One box."""
        if height and width:
            self.boxes += 1
            self.beyond += x + w > width + 1 or y + h > height + 1
            self.as_corners += x < w <= width + 1 and y < h <= height + 1

    @property
    def likely(self) -> bool:
        """As corners, all fit."""
        return self.boxes > 0 and self.beyond > 0.1 * self.boxes and self.as_corners == self.boxes


def box_of(
    one: dict[str, Any],
    outline: Parts | Runs | None,
    height: int,
    width: int,
    corners: Corners,
    filled: Counter[str],
) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of an annotation, cut to the image; raises Unusable."""
    given = one.get("bbox")
    if given is None and outline is not None:
        filled["annotations without a box, taken from the outline"] += 1
        x1, y1, x2, y2 = outline.box
    else:
        if not isinstance(given, list) or len(given) != 4 or not all(map(is_number, given)):
            raise Unusable(f"its box {_short(given)} is not four numbers [x, y, width, height]")
        x, y, w, h = given
        if w <= 0 or h <= 0:
            raise Unusable(f"its box {_short(given)} has no area: a width or height of {min(w, h):g}")
        x1, y1, x2, y2 = float(x), float(y), float(x + w), float(y + h)
        corners.count(x, y, w, h, height, width)
    if height and width:
        inside = max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise Unusable(f"its box {_short(given)} lies outside of the image of {width} x {height}")
        if inside != (x1, y1, x2, y2):
            filled["boxes that end outside of the image, cut"] += max(x2 - width, y2 - height) > 1
        x1, y1, x2, y2 = inside
    x1, y1, x2, y2 = (float(np.float32(value)) for value in (x1, y1, x2, y2))
    if not (x1 < x2 < math.inf and y1 < y2 < math.inf):
        raise Unusable(f"its box {_short(given)} has no area, or is too large")
    return x1, y1, x2, y2


def outline_of(one: dict[str, Any], height: int, width: int, filled: Counter[str]) -> Parts | Runs:
    """Polygons or runs of an annotation; raises Unusable."""
    given = one.get("segmentation")
    if not given:
        raise Unusable("it has no outline (segmentation)")
    if isinstance(given, dict):
        return _runs(given, height, width)
    if not isinstance(given, list):
        raise Unusable(f"its outline is {type(given).__name__}, neither polygons nor runs")
    parts = []
    for part in given:
        if not isinstance(part, list) or len(part) % 2 or not _are_numbers(part):
            raise Unusable("a polygon of its outline is no list of x, y, x, y, ...")
        if len(part) < 6:
            filled["polygons under 3 points, left out"] += 1
        else:
            parts.append(part)
    if not parts:
        raise Unusable("no polygon of its outline has 3 points")
    return Parts(parts)


def points_of(one: dict[str, Any], count: int, filled: Counter[str]) -> list[float]:
    """`count` times x, y and 0, 1 or 2 of an annotation; raises Unusable."""
    given = one.get("keypoints")
    if given is None:
        filled["annotations without keypoints, taken as not marked"] += 1
        return [0.0] * (3 * count)
    if not isinstance(given, list) or len(given) != 3 * count or not all(map(is_number, given)):
        held = len(given) // 3 if isinstance(given, list) else 0
        raise Unusable(f"it has {held} keypoints, not {count} times x, y and 0, 1 or 2")
    marked = sum(value > 0 for value in given[2::3])
    if "num_keypoints" not in one:
        filled["annotations without num_keypoints, counted"] += 1
    elif one["num_keypoints"] != marked:
        filled["annotations with another num_keypoints than are marked, counted"] += 1
    return [float(value) for value in given]


def categories_of(listed: Sequence[Any], source: object) -> dict[Any, str]:
    """The name of each category id of a json.

    Raises:
        ValueError: a category without an id, or two of one id or name.
    """
    names: dict[Any, str] = {}
    for number, one in enumerate(listed):
        if not isinstance(one, dict) or not is_id(one.get("id")):
            raise ValueError(f"{source}: category {number} has no id that is a number or a text")
        name = str(one.get("name", one["id"]))
        if one["id"] in names:
            raise ValueError(f"{source}: two categories have the id {one['id']!r}")
        if name in names.values():
            raise ValueError(f"{source}: two categories are called {name!r}")
        names[one["id"]] = name
    return names


def crowd_of(one: Mapping[str, Any], filled: Counter[str]) -> bool:
    """Whether an annotation is of several objects."""
    if "iscrowd" not in one:
        filled["annotations without iscrowd, taken as 0"] += 1
    return bool(one.get("iscrowd", 0))


def area_of(
    one: Mapping[str, Any], outline: Parts | Runs | None, box_area: float, filled: Counter[str]
) -> float:
    """The area that an annotation states, or that of its outline, or of its box."""
    area = one.get("area")
    if area is None or not is_number(area) or area <= 0:
        filled["annotations without an area, taken from the outline or the box"] += 1
        return outline.area if outline is not None else box_area
    return float(area)


def why_no_annotation(
    one: Any, images: Container[Any], categories: Container[Any], seen: set[Any]
) -> str | None:
    """Why an annotation is none, before its box is looked at; notes its id in `seen`."""
    if not isinstance(one, dict):
        return f"it is {type(one).__name__}, no object"
    if not is_id(one.get("image_id")) or one["image_id"] not in images:
        return f"its image {_short(one.get('image_id'))} is none of the json's"
    if not is_id(one.get("category_id")):
        return f"its category {_short(one.get('category_id'))} is neither a number nor a text"
    key = one.get("id")
    if key is not None:
        if not is_id(key):
            return f"its id {_short(key)} is neither a number nor a text"
        if key in seen:
            return "its id was there already"
        seen.add(key)
    if one["category_id"] not in categories:
        return f"its category {one['category_id']!r} is none of the json's"
    return None


def why_no_image(image: Any, done: Container[Any]) -> str | None:
    """Why an entry of `images` is no image; `done`: the ids before."""
    if not isinstance(image, dict):
        return f"it is {type(image).__name__}, no object"
    if not is_id(image.get("id")):
        return f"its id {_short(image.get('id'))} is neither a number nor a text"
    if image["id"] in done:
        return f"its id {image['id']!r} was there already"
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        return "it has no file_name"
    if "\0" in image["file_name"]:
        return "its file_name holds a zero byte"
    return None


def _runs(given: Mapping[str, Any], height: int, width: int) -> Runs:
    """The runs of a mask, compressed or not."""
    size, counts = given.get("size"), given.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(map(size_of, size)):
        raise Unusable(f"the size {_short(size)} of its mask is not [height, width]")
    if height and width and (size[0], size[1]) != (height, width):
        raise Unusable(f"its mask is of {size[1]} x {size[0]} pixels, the image of {width} x {height}")
    if size[0] * size[1] >= 2**31:
        raise Unusable(f"its mask of {size[1]} x {size[0]} pixels is too large")
    if isinstance(counts, str):
        try:
            counts = counts_of_text(counts)
        except ValueError as error:
            raise Unusable(str(error)) from None
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        raise Unusable("the runs of its mask are no whole numbers from 0 on")
    if sum(counts) != size[0] * size[1]:
        raise Unusable(f"the runs of its mask add up to {sum(counts)} pixels, not {size[0] * size[1]}")
    if not sum(counts[1::2]):
        raise Unusable("its mask has no pixel inside")
    return Runs(np.array(counts, np.int32), size[0], size[1])


def keypoints_of(category: Mapping[str, Any]) -> Keypoints:
    """What a category's keypoints are. COCO counts from 1 in `skeleton`; left and right go by name."""
    names = tuple(str(name) for name in category["keypoints"])
    places = {name: number for number, name in enumerate(names)}
    pairs = [
        (number, places[other])
        for name, number in places.items()
        if "left" in name and (other := name.replace("left", "right")) in places
    ]
    skeleton = tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ())
    sigmas = COCO_PERSON.sigmas if names == COCO_PERSON.names else None
    return Keypoints(names, tuple(pairs), sigmas, skeleton)


def called(one: Any, number: int | None = None) -> str:
    """What people call an annotation."""
    if isinstance(one, dict) and is_id(one.get("id")):
        return f"annotation {one['id']!r}"
    return "an annotation without an id" if number is None else f"annotation number {number}"


def is_id(value: Any) -> bool:
    """Whether it is a whole number or a text."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number that can be a coordinate."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e9 < value < 1e9


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are numbers that can be coordinates; of millions of polygons, so in few calls."""
    try:
        numbers = array("d", values)
    except (TypeError, OverflowError):
        return False
    # The sum is NaN where any number is.
    return not numbers or (min(numbers) > -1e9 and max(numbers) < 1e9 and not math.isnan(sum(numbers)))


def size_of(value: Any) -> int:
    """Pixels, or 0 for what cannot be."""
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return int(value) if whole and 1 <= value < 2**20 else 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
