"""COCO json, of one file or several, as a set of images with their objects; no image is opened here.

>>> import json, tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> _ = (folder / "a.jpg").write_bytes(b"not opened here")
>>> _ = (folder / "all.json").write_text(json.dumps({
...     "images": [{"id": 5, "file_name": "a.jpg", "width": 40, "height": 30}],
...     "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
...     "annotations": [{"id": 1, "image_id": 5, "category_id": 3, "bbox": [10, 10, 8, 6]}]}))
>>> found = read_coco(folder / "all.json")
>>> found.categories, found[0].labels.tolist(), found[0].boxes.tolist()
((Category(id=7, name='dog'), Category(id=3, name='cat')), [2], [[10.0, 10.0, 18.0, 16.0]])

Labels inside are 1, 2, ... in the order of `categories`; the ids of the json stay outside. What cannot be
used becomes a `Problem` and is left out; a file that is something else is an error.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nonlocal_nn._names import nearest_names
from nonlocal_nn.data.categories import Category, Keypoints, Task
from nonlocal_nn.data.coco_annotations import (
    Corners,
    Parts,
    Unusable,
    area_of,
    box_of,
    called,
    categories_of,
    crowd_of,
    is_id,
    keypoints_of,
    outline_of,
    points_of,
    size_of,
    why_no_annotation,
    why_no_image,
)
from nonlocal_nn.data.coco_file import Places, load_json
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.outlines import Outlines, Polygons, Runs
from nonlocal_nn.data.table import Texts

__all__ = ["CocoImage", "CocoSet", "Empty", "read_coco"]

Empty = Literal["keep", "drop"]
_SHOWN = 5


class CocoImage(NamedTuple):
    """One image and its objects.

    Attributes:
        path: the file.
        id: in the json.
        height, width: as the json says, in pixels; 0 where it does not.
        boxes: float32 (objects, 4), x1, y1, x2, y2 in pixels, inside the image.
        labels: int32 (objects,), from 1 on.
        crowds: bool (objects,): several objects under one outline, no target in training.
        areas: float64 (objects,), in pixels.
        keypoints: float32 (objects, keypoints, 3), x, y and 0, 1 or 2 for not marked, hidden, visible; or
            None.
        outlines: one for each object, or None.
    """

    path: str
    id: int | str
    height: int
    width: int
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    crowds: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    keypoints: npt.NDArray[np.float32] | None
    outlines: tuple[Polygons | Runs, ...] | None


@dataclass(frozen=True)
class CocoSet(Sequence[CocoImage]):
    """Images with their objects, in a few arrays.

    Attributes:
        paths: of the images.
        image_ids: of the json.
        sizes: int32 (images, 2), height and width; 0 where the json does not say.
        ends: int64 (images + 1,): the objects of image n are ends[n] to ends[n + 1].
        boxes, labels, crowds, areas, keypoints, outlines: of all objects, see `CocoImage`.
        categories: what the labels 1, 2, ... are.
        points: what the keypoints are; None where none were asked for.
        problems: what was left out, and why.
        notes: what was filled in or looks strange, in a line each.
    """

    paths: Texts
    image_ids: Sequence[int | str]
    sizes: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    crowds: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    keypoints: npt.NDArray[np.float32] | None
    outlines: Outlines | None
    categories: tuple[Category, ...]
    points: Keypoints | None
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> CocoImage:  # type: ignore[override]
        row = range(len(self))[index]
        begin, end = int(self.ends[row]), int(self.ends[row + 1])
        height, width = self.sizes[row].tolist()
        return CocoImage(
            self.paths[row],
            self.image_ids[row],
            height,
            width,
            self.boxes[begin:end],
            self.labels[begin:end],
            self.crowds[begin:end],
            self.areas[begin:end],
            None if self.keypoints is None else self.keypoints[begin:end],
            None if self.outlines is None else tuple(self.outlines[n] for n in range(begin, end)),
        )

    @property
    def task(self) -> Task:
        """What was read of every object."""
        if self.keypoints is not None:
            return "keypoints"
        return "boxes" if self.outlines is None else "masks"

    def describe(self) -> str:
        """One line for people."""
        empty = int((np.diff(self.ends) == 0).sum())
        text = f"{len(self)} images, {len(self.labels)} objects of {len(self.categories)} categories"
        if empty:
            text += f", {empty} images without objects"
        if self.problems:
            text += f", {len(self.problems)} left out (first: {self.problems[0]})"
        return text


def read_coco(
    files: str | Path | Sequence[str | Path],
    images: str | Path | None = None,
    *,
    task: Task | None = "boxes",
    categories: Sequence[Category] | None = None,
    empty: Empty = "keep",
) -> CocoSet:
    """Read annotations in COCO's form.

    Args:
        files: a json, or several whose images are put one after the other.
        images: folder of the images, which may lie anywhere below it; None: the folder of the json, or the
            one above where the json lies in "annotations".
        task: "masks" needs an outline of every object, "keypoints" the keypoints; None: the most that the
            first json has.
        categories: those of a network, which go by name: ids and order of the json may be others.
        empty: "keep" images without objects, or "drop" them as COCO's own scripts do.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a file that is not COCO's json of objects (captions, results, panoptic), a category that
            the network does not know, masks or keypoints asked of a json without, or nothing usable.
    """
    sources = [files] if isinstance(files, (str, Path)) else list(files)
    if not sources:
        raise ValueError("no json was given")
    reading: _Reading | None = None
    for source in sources:
        file = Path(source)
        values = load_json(file)
        if reading is None:
            known = None if categories is None else tuple(categories)
            reading = _Reading(task or _task_of(values), known, empty)
        reading.add(file, values, Places(_folder_of(file, images)))
    assert reading is not None
    return reading.finished([str(source) for source in sources])


def _task_of(values: Mapping[str, Any]) -> Task:
    """The most that a json has of its objects."""

    def some(rows: Sequence[Any], name: str) -> bool:
        return any(isinstance(one, dict) and one.get(name) for one in rows)

    if some(values["categories"], "keypoints") and some(values["annotations"], "keypoints"):
        return "keypoints"
    return "masks" if some(values["annotations"], "segmentation") else "boxes"


def _folder_of(file: Path, images: str | Path | None) -> Path:
    if images is None:
        return file.parent.parent if file.parent.name == "annotations" else file.parent
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of images: {folder}")
    return folder


class _Reading:
    """What is read so far."""

    def __init__(self, task: Task, known: tuple[Category, ...] | None, empty: Empty) -> None:
        self.task, self.known, self.empty = task, known, empty
        self.categories: list[Category] = [] if known is None else list(known)
        self.points: Keypoints | None = None
        self.problems: list[Problem] = []
        self.filled: Counter[str] = Counter()
        self.notes: list[str] = []
        self.paths = Texts()
        self.image_ids: list[int | str] = []
        self.sizes = array("i")
        self.ends = array("q", [0])
        self.boxes = array("f")
        self.labels = array("i")
        self.crowds = bytearray()
        self.areas = array("d")
        self.keypoints = array("f")
        self.outlines = Outlines()
        self.taken: set[str] = set()

    def add(self, file: Path, values: Mapping[str, Any], places: Places) -> None:
        """All of one json."""
        labels = self._labels(file, values["categories"])
        by_image: dict[Any, list[dict[str, Any]]] = {}
        ids = {one["id"] for one in values["images"] if isinstance(one, dict) and is_id(one.get("id"))}
        seen: set[Any] = set()
        used: Counter[Any] = Counter()
        for number, one in enumerate(values["annotations"]):
            reason = why_no_annotation(one, ids, labels, seen)
            if reason is not None:
                self.problems.append(Problem(str(file), f"{called(one, number)}: {reason}"))
                continue
            used[one["category_id"]] += 1
            by_image.setdefault(one["image_id"], []).append(one)
        self._check_known(file, labels, used)
        self._check_task(file, values["annotations"])
        corners = Corners()
        done: set[Any] = set()
        for number, image in enumerate(values["images"]):
            self._add_image(file, number, image, done, places, by_image, labels, corners)
        if corners.likely:
            self.notes.append(
                f"{file}: {corners.beyond} of {corners.boxes} boxes end outside of their image, and none "
                "would if they were corners [x1, y1, x2, y2]; COCO's are [x, y, width, height]"
            )

    def _add_image(
        self,
        file: Path,
        number: int,
        image: Any,
        done: set[Any],
        places: Places,
        by_image: Mapping[Any, list[dict[str, Any]]],
        labels: Mapping[Any, _Label],
        corners: Corners,
    ) -> None:
        reason = why_no_image(image, done)
        if reason is not None:
            self.problems.append(Problem(str(file), f"image {number}: {reason}"))
            return
        done.add(image["id"])
        own = by_image.get(image["id"], [])
        if not own and self.empty == "drop":
            return
        place = places.find(image["file_name"])
        if isinstance(place, Problem):
            self.problems.append(place)
            return
        if place in self.taken:
            self.problems.append(Problem(place, f"listed twice, again in {file}"))
            return
        height, width = size_of(image.get("height")), size_of(image.get("width"))
        if not height or not width:
            height = width = 0
            self.filled["images without a size, which is that of the file"] += 1
        before = len(self.labels)
        for one in own:
            label = labels[one["category_id"]].number
            if label is None:
                continue
            self._add_object(file, one, label, height, width, corners)
        if self.empty == "drop" and len(self.labels) == before:
            return
        self.taken.add(place)
        self.paths.append(place)
        self.image_ids.append(image["id"])
        self.sizes.extend((height, width))
        self.ends.append(len(self.labels))

    def _add_object(
        self, file: Path, one: dict[str, Any], label: int, height: int, width: int, corners: Corners
    ) -> None:
        """One annotation, or why it is left out."""
        count = 0 if self.points is None else len(self.points.names)
        try:
            outline = outline_of(one, height, width, self.filled) if self.task == "masks" else None
            box = box_of(one, outline, height, width, corners, self.filled)
            points = points_of(one, count, self.filled) if self.task == "keypoints" else ()
        except Unusable as error:
            self.problems.append(Problem(str(file), f"{called(one)}: {error}"))
            return
        self.boxes.extend(box)
        self.labels.append(label)
        self.crowds.append(crowd_of(one, self.filled))
        box_area = (box[2] - box[0]) * (box[3] - box[1])
        self.areas.append(area_of(one, outline, box_area, self.filled))
        self.keypoints.extend(points)
        if isinstance(outline, Parts):
            self.outlines.add_polygons(outline.parts)
        elif isinstance(outline, Runs):
            self.outlines.add_runs(outline.counts.tolist(), height=outline.height, width=outline.width)

    # -- categories

    def _labels(self, file: Path, listed: Sequence[Any]) -> dict[Any, _Label]:
        """The label of each id of a json; None for a category that the network does not know."""
        names = categories_of(listed, file)
        labels = {key: _Label(name, self._number(file, key, name)) for key, name in names.items()}
        for one in listed:
            if self.task == "keypoints" and one.get("keypoints"):
                self._take_points(file, one)
        return labels

    def _number(self, file: Path, key: int | str, name: str) -> int | None:
        for number, category in enumerate(self.categories, start=1):
            if category.name == name:
                if category.id != key and self.known is None:
                    self.notes.append(
                        f"{file}: the category {name!r} is {key!r} here and {category.id!r} in the file "
                        f"before; results say {category.id!r}"
                    )
                return number
        if self.known is not None:
            return None
        if any(category.id == key for category in self.categories):
            raise ValueError(f"{file}: the id {key!r} is {name!r} here and another category in a file before")
        self.categories.append(Category(key, name))
        return len(self.categories)

    def _check_known(self, file: Path, labels: Mapping[Any, _Label], used: Mapping[Any, int]) -> None:
        assert self.known is None or self.categories == list(self.known)
        for key, label in labels.items():
            if label.number is None and used.get(key):
                near = nearest_names(label.name, [category.name for category in self.categories], count=3)
                hint = f"; the nearest it knows are {', '.join(near)}" if near else ""
                raise ValueError(
                    f"{file}: {used[key]} objects are of the category {label.name!r}, which the network does "
                    f"not know{hint}. Remove or rename it in the json, or train with it"
                )

    def _take_points(self, file: Path, category: Mapping[str, Any]) -> None:
        try:
            points = keypoints_of(category)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: the keypoints of {category.get('name')!r}: {error}") from None
        if self.points is not None and self.points.names != points.names:
            raise ValueError(
                f"{file}: {category.get('name')!r} has {len(points.names)} keypoints and another category "
                f"{len(self.points.names)} others; one network finds one set"
            )
        self.points = points

    def _check_task(self, file: Path, annotations: Sequence[Any]) -> None:
        """Is there anything of what the network is to learn?"""
        objects = [one for one in annotations if isinstance(one, dict)]
        if self.task == "masks" and not any(one.get("segmentation") for one in objects):
            raise ValueError(
                f"{file} has boxes alone; masks need outlines (segmentation): take a faster_rcnn"
            )
        if self.task == "keypoints":
            if self.points is None:
                raise ValueError(
                    f"{file}: no category has keypoints; take the person_keypoints json, or name them in the "
                    'category: "keypoints": ["nose", ...]'
                )
            if not any(one.get("keypoints") for one in objects):
                raise ValueError(f"{file}: no annotation has keypoints")

    # -- the end

    def finished(self, sources: Sequence[str]) -> CocoSet:
        """The set."""
        if not len(self.paths):
            reasons = "; ".join(str(problem) for problem in self.problems[:_SHOWN]) or "it is empty"
            raise ValueError(f"no usable image in {', '.join(sources)}: {reasons}")
        repeated = len(self.image_ids) - len(set(self.image_ids))
        if repeated:
            self.notes.append(
                f"{repeated} image ids occur in several of the files: results tell images by file_name, too"
            )
        self.notes += [f"{count} {what}" for what, count in self.filled.items() if count]
        objects = len(self.labels)
        points = None
        if self.task == "keypoints":
            points = np.array(self.keypoints, np.float32).reshape(objects, -1, 3)
        return CocoSet(
            paths=self.paths,
            image_ids=tuple(self.image_ids),
            sizes=np.array(self.sizes, np.int32).reshape(-1, 2),
            ends=np.array(self.ends, np.int64),
            boxes=np.array(self.boxes, np.float32).reshape(-1, 4),
            labels=np.array(self.labels, np.int32),
            crowds=np.frombuffer(bytes(self.crowds), np.bool_),
            areas=np.array(self.areas, np.float64),
            keypoints=points,
            outlines=self.outlines if self.task == "masks" else None,
            categories=tuple(self.categories),
            points=self.points if self.task == "keypoints" else None,
            problems=tuple(self.problems),
            notes=tuple(self.notes),
        )


class _Label(NamedTuple):
    """A category of one json: its name, and its label, or None where the network does not know it."""

    name: str
    number: int | None
