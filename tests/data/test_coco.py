"""COCO json: what is read is what it holds, by the user's ids, and what cannot be used is named."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlocal_nn.data.categories import COCO_PERSON, Category
from nonlocal_nn.data.coco import CocoSet, read_coco
from nonlocal_nn.data.outlines import Polygons, Runs, counts_of_text

SQUARE = [10, 10, 18, 10, 18, 16, 10, 16]


def _annotation(number: int, image: int | str, category: int | str, **more: Any) -> dict[str, Any]:
    box = {"bbox": [10, 10, 8, 6], "area": 48.0, "iscrowd": 0, "segmentation": [SQUARE]}
    return {"id": number, "image_id": image, "category_id": category, **box, **more}


def _values() -> dict[str, Any]:
    """Three images, the last without objects; ids with gaps, in no order."""
    return {
        "images": [
            {"id": 9, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 4, "file_name": "b.jpg", "width": 40, "height": 30},
            {"id": 6, "file_name": "c.jpg", "width": 40, "height": 30},
        ],
        "categories": [{"id": 20, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 7, "name": "bird"}],
        "annotations": [
            _annotation(1, 4, 7),
            _annotation(2, 9, 3, bbox=[0, 0, 5, 5]),
            _annotation(3, 9, 20, iscrowd=1, segmentation={"size": [30, 40], "counts": [0, 30, 1170]}),
        ],
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three images in folders of their own, which nobody opens here."""
    folder = tmp_path_factory.mktemp("coco")
    for place in ("a.jpg", "deep/er/b.jpg", "deep/c.jpg"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(b"")
    return folder


def _read(root: Path, values: Any, name: str = "all.json", **options: Any) -> CocoSet:
    file = root / name
    file.write_text(json.dumps(values))
    return read_coco(file, **options)


def test_ids_stay_outside_and_labels_have_no_gaps(root: Path) -> None:
    found = _read(root, _values(), task="masks")
    assert found.categories == (Category(20, "cat"), Category(3, "dog"), Category(7, "bird"))
    assert found.image_ids == (9, 4, 6)
    assert [Path(image.path).name for image in found] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [image.labels.tolist() for image in found] == [[2, 1], [3], []]
    assert [image.crowds.tolist() for image in found] == [[False, True], [False], []]
    assert found[0].boxes.tolist() == [[0, 0, 5, 5], [10, 10, 18, 16]]
    assert (found[0].height, found[0].width) == (30, 40)
    square, runs = found[0].outlines
    assert isinstance(square, Polygons)
    assert isinstance(runs, Runs)
    assert square.box == (10, 10, 18, 16)
    assert square.area == 48
    assert (runs.mask.shape, runs.area, runs.box) == ((30, 40), 30, (0, 0, 1, 30))
    assert found.problems == found.notes == ()
    assert "3 images, 3 objects of 3 categories, 1 images without objects" in found.describe()
    dropped = _read(root, _values(), empty="drop")
    assert dropped.image_ids == (9, 4)
    assert dropped[0].outlines is None


def test_a_network_knows_categories_by_name(root: Path) -> None:
    known = (Category(1, "dog"), Category(2, "cat"), Category(3, "bird"))
    found = _read(root, _values(), categories=known)
    assert found.categories == known
    assert [image.labels.tolist() for image in found] == [[1, 2], [3], []]
    with pytest.raises(ValueError, match=r"1 objects are of the category 'cat', which the network does not"):
        _read(root, _values(), categories=known[::2])
    values = _values()
    values["annotations"].pop(2)  # a category that nothing is of does no harm
    assert _read(root, values, categories=known[::2])[0].labels.tolist() == [1]


def test_text_ids(root: Path) -> None:
    values = _values()
    for image in values["images"]:
        image["id"] = f"image {image['id']}"
    for one in values["annotations"]:
        one["image_id"] = f"image {one['image_id']}"
        one["category_id"] = f"c{one['category_id']}"
    for category in values["categories"]:
        category["id"] = f"c{category['id']}"
    found = _read(root, values)
    assert found.image_ids == ("image 9", "image 4", "image 6")
    assert [image.labels.tolist() for image in found] == [[2, 1], [3], []]


def test_several_files(root: Path) -> None:
    first, second = _values(), _values()
    first["images"], second["images"] = first["images"][:1], second["images"][1:]
    first["annotations"], second["annotations"] = first["annotations"][1:], second["annotations"][:1]
    second["categories"] = [{"id": 1, "name": "bird"}, {"id": 2, "name": "fish"}]
    second["annotations"][0]["category_id"] = 1
    (root / "1.json").write_text(json.dumps(first))
    (root / "2.json").write_text(json.dumps(second))
    found = read_coco([root / "1.json", root / "2.json"])
    assert [category.name for category in found.categories] == ["cat", "dog", "bird", "fish"]
    assert [image.labels.tolist() for image in found] == [[2, 1], [3], []]
    assert "the category 'bird' is 1 here and 7 in the file before" in found.notes[0]
    again = read_coco([root / "1.json", root / "1.json", root / "2.json"])
    assert len(again) == 3
    assert "listed twice" in again.problems[0].reason
    second["categories"][1]["id"] = 20
    (root / "2.json").write_text(json.dumps(second))
    with pytest.raises(ValueError, match="the id 20 is 'fish' here and another category in a file before"):
        read_coco([root / "1.json", root / "2.json"])


def test_images_lie_anywhere_below_the_folder(root: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "train" / f"{name}.jpg").write_bytes(b"")
    found = _read(tmp_path, _values(), "annotations/all.json")
    assert [image.path for image in found] == [str(tmp_path / "train" / f"{n}.jpg") for n in "abc"]
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "b.jpg").write_bytes(b"")
    (tmp_path / "train" / "c.jpg").unlink()
    found = _read(tmp_path, _values(), "annotations/all.json")
    assert [str(problem).split(":")[0] for problem in found.problems] == ["b.jpg", "c.jpg"]
    assert "2 files have this name" in found.problems[0].reason
    assert "no such image in" in found.problems[1].reason
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        read_coco(root / "all.json", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_coco(tmp_path / "absent.json")


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("boxes", {"bbox": [1, 1, 0, 5]}, "has no area: a width or height of 0"),
    ("boxes", {"bbox": [1, 1, -3, 5]}, "has no area: a width or height of -3"),
    ("boxes", {"bbox": [1, 1, math.nan, 5]}, "is not four numbers"),
    ("boxes", {"bbox": [1, 1, math.inf, 5]}, "is not four numbers"),
    ("boxes", {"bbox": [1, 1, 5]}, "is not four numbers"),
    ("boxes", {"bbox": None}, "is not four numbers"),
    ("boxes", {"bbox": ["1", 1, 5, 5]}, "is not four numbers"),
    ("boxes", {"bbox": [50, 1, 5, 5]}, "lies outside of the image of 40 x 30"),
    ("boxes", {"bbox": [-9, 1, 5, 5]}, "lies outside of the image"),
    ("boxes", {"bbox": [1, 1, 1e-9, 5]}, "has no area"),
    ("boxes", {"image_id": 77}, "its image 77 is none of the json's"),
    ("boxes", {"image_id": [4]}, "its image [4] is none"),
    ("boxes", {"category_id": 77}, "its category 77 is none of the json's"),
    ("boxes", {"category_id": None}, "its category None is neither"),
    ("boxes", {"id": 2}, "its id was there already"),
    ("boxes", {"id": {}}, "its id {} is neither"),
    ("masks", {"segmentation": []}, "no outline"),
    ("masks", {"segmentation": [[1, 2, 3, 4]]}, "no polygon of its outline has 3 points"),
    ("masks", {"segmentation": [[1, 2, 3, 4, 5]]}, "no list of x, y"),
    ("masks", {"segmentation": [[1, 2, 3, 4, 5, math.nan]]}, "no list of x, y"),
    ("masks", {"segmentation": "polygon"}, "neither polygons nor runs"),
    ("masks", {"segmentation": {"size": [40, 30], "counts": [1200]}}, "of 30 x 40 pixels, the image of 40 x"),
    ("masks", {"segmentation": {"size": [30, 40], "counts": [1, 2]}}, "add up to 3 pixels, not 1200"),
    ("masks", {"segmentation": {"size": [30, 40], "counts": [1200]}}, "has no pixel inside"),
    ("masks", {"segmentation": {"size": [30, 40], "counts": [-1, 1201]}}, "no whole numbers"),
    ("masks", {"segmentation": {"size": [30, 40], "counts": "\u00e9"}}, "is no letter of a compressed mask"),
    ("masks", {"segmentation": {"size": [30, 40], "counts": "o"}}, "cut off"),
    ("masks", {"segmentation": {"size": 30, "counts": [1]}}, "is not [height, width]"),
    ("keypoints", {"keypoints": [1, 2, 2]}, "it has 1 keypoints, not 3"),
    ("keypoints", {"keypoints": [1, 2, 2] * 4}, "it has 4 keypoints, not 3"),
    ("keypoints", {"keypoints": ["1", 2, 2] * 3}, "not 3 times"),
]


@pytest.mark.parametrize(("task", "fault", "reason"), FAULTS)
def test_every_fault_of_an_annotation_is_named_and_leaves_the_others(
    root: Path, task: str, fault: dict[str, Any], reason: str
) -> None:
    values = _values()
    if task == "keypoints":
        values["categories"][2]["keypoints"] = ["tip", "left_end", "right_end"]
        for one in values["annotations"]:
            one["keypoints"] = [1, 2, 2, 3, 4, 1, 0, 0, 0]
    bad = {**values["annotations"][0], **fault}
    # Behind the others: a second one with an id of theirs is the one that is left out.
    values["annotations"] = [*values["annotations"][1:], bad]
    found = _read(root, values, task=task)
    assert [image.labels.tolist() for image in found] == [[2, 1], [], []]
    (problem,) = found.problems
    assert reason in problem.reason
    assert problem.path == str(root / "all.json")
    assert problem.reason.startswith("annotation ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": 9}, "its id 9 was there already"),
        ({"id": None}, "its id None is neither"),
        ({"file_name": ""}, "it has no file_name"),
        ({"file_name": 3}, "it has no file_name"),
        ({"file_name": "x" * 5000}, "cannot be looked for"),
        ({"file_name": "../absent.jpg"}, "no such image"),
        ({"file_name": "a\0.jpg"}, "zero byte"),
    ],
)
def test_an_image_that_cannot_be_is_named(root: Path, change: dict[str, Any], reason: str) -> None:
    values = _values()
    values["images"][2].update(change)
    found = _read(root, values)
    assert found.image_ids == (9, 4)
    assert [reason in problem.reason for problem in found.problems] == [True]


def test_what_is_missing_is_filled_in_and_said(root: Path) -> None:
    values = _values()
    for one in values["annotations"]:
        one.pop("area")
        one.pop("iscrowd")
    values["annotations"][0].pop("bbox")
    values["annotations"][1]["bbox"] = [30, 20, 40, 40]
    values["annotations"][1]["segmentation"].append([1, 2, 3, 4])
    values["images"][1].pop("width")
    found = _read(root, values, task="masks")
    assert found.problems == ()
    assert found.areas.tolist() == [48, 30, 48]
    assert found[0].boxes[0].tolist() == [30, 20, 40, 30]
    assert (found[1].height, found[1].width) == (0, 0)
    assert sorted(found.notes) == [
        "1 annotations without a box, taken from the outline",
        "1 boxes that end outside of the image, cut",
        "1 images without a size, which is that of the file",
        "1 polygons under 3 points, left out",
        "3 annotations without an area, taken from the outline or the box",
        "3 annotations without iscrowd, taken as 0",
    ]


def test_boxes_that_look_like_corners_are_said(root: Path) -> None:
    values = _values()
    values["annotations"][0]["bbox"] = [15, 10, 38, 25]
    values["annotations"][1]["bbox"] = [20, 15, 30, 28]
    values["annotations"][2]["bbox"] = [2, 3, 10, 12]
    (note,) = (note for note in _read(root, values).notes if "corners" in note)
    assert "2 of 3 boxes end outside of their image, and none would if they were corners" in note
    values["annotations"][2]["bbox"] = [20, 3, 10, 12]  # no corner: 10 is left of 20
    assert not [note for note in _read(root, values).notes if "corners" in note]


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        ("no json", {}, "is not JSON"),
        ([{"image_id": 1, "score": 0.5}], {}, "as a detector's results are"),
        ("3", {}, "is not JSON|no annotations"),
        ({"images": [1], "annotations": [{"caption": "a cat"}]}, {}, "holds captions"),
        ({"images": [1], "annotations": [{"segments_info": []}]}, {}, "holds panoptic segments"),
        ({**_values(), "annotations": []}, {}, "has no 'annotations'.*needs no json"),
        ({**_values(), "categories": []}, {}, "has no 'categories'"),
        ({**_values(), "images": {}}, {}, "its 'images' is no list but dict"),
        ({**_values(), "categories": [{"name": "cat"}]}, {}, "category 0 has no id"),
        ({**_values(), "categories": [{"id": 1}, {"id": 1}]}, {}, "two categories have the id 1"),
        (
            {**_values(), "categories": [{"id": n, "name": "cat"} for n in (1, 2)]},
            {},
            "two .* are called 'cat'",
        ),
        (_values(), {"task": "keypoints"}, "no category has keypoints"),
    ],
)
def test_a_file_that_is_something_else_is_one_line(
    root: Path, values: Any, options: dict[str, Any], text: str
) -> None:
    file = root / "other.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(ValueError, match=text) as error:
        read_coco(file, **options)
    assert len(str(error.value).splitlines()) == 1


def test_masks_of_a_json_with_boxes_alone(root: Path) -> None:
    values = _values()
    for one in values["annotations"]:
        one.pop("segmentation")
    with pytest.raises(ValueError, match=r"has boxes alone.*take a faster_rcnn"):
        _read(root, values, task="masks")
    assert len(_read(root, values).labels) == 3


def _text_of(counts: list[int]) -> str:
    """The compressed form, written from its description: 5 bits a letter, the sixth says that more follow."""
    letters = []
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        while True:
            bits = value & 31
            value >>= 5
            done = value == (-1 if bits & 16 else 0)
            letters.append(chr(48 + bits + (0 if done else 32)))
            if done:
                break
    return "".join(letters)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_compressed_runs_come_back(counts: list[int]) -> None:
    assert counts_of_text(_text_of(counts)) == counts


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_mask_of_runs_goes_column_by_column(height: int, width: int, data: st.DataObject) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width)))
    mask = mask.reshape(height, width).astype(np.uint8)
    flat = mask.T.ravel().tolist()
    counts, value, run = [], 0, 0
    for pixel in flat:
        if pixel != value:
            counts.append(run)
            value, run = pixel, 0
        run += 1
    counts.append(run)
    runs = Runs(np.array(counts, np.int32), height, width)
    assert np.array_equal(runs.mask, mask)
    assert runs.area == mask.sum()


_ODD = st.one_of(
    *(st.none(), st.booleans(), st.integers(-5, 100), st.floats(), st.text(max_size=4)),
    *(st.lists(st.integers(-5, 50), max_size=6), st.just({}), st.just([[1.0, 2.0]])),
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused_in_one_line(root: Path, data: st.DataObject) -> None:
    values: dict[str, Any] = _values()
    values["categories"][0]["keypoints"] = ["tip", "end"]
    for one in values["annotations"]:
        one["keypoints"] = [1, 2, 2, 0, 0, 0]
    whole = copy.deepcopy(values)
    for _ in range(data.draw(st.integers(1, 4))):
        place: Any = values
        while isinstance(place, (dict, list)) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if data.draw(st.integers(0, 3)) == 0 or not isinstance(place[key], (dict, list)):
                if isinstance(place, dict) and data.draw(st.booleans()):
                    place.pop(key)
                else:
                    place[key] = data.draw(_ODD)
                break
            place = place[key]
    for task in ("boxes", "masks", "keypoints"):
        try:
            found = _read(root, values, "mutated.json", task=task)
        except ValueError as error:
            lines = len(str(error).splitlines())
        else:
            lines = 0
        assert lines <= 1
        if lines:
            continue
        assert len(found.ends) == len(found) + 1
        assert found.ends[-1] == len(found.labels) == len(found.boxes) == len(found.areas)
        assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()
        assert np.isfinite(found.boxes).all()
        assert (found.areas > 0).all()
        assert ((found.labels >= 1) & (found.labels <= len(found.categories))).all()
        for image in found:
            assert task != "masks" or len(image.outlines) == len(image.labels)
            assert task != "keypoints" or image.keypoints.shape == (len(image.labels), 2, 3)
        # An untouched annotation of an untouched image is there.
        if values["categories"] == whole["categories"] and values["images"] == whole["images"]:
            kept = sum(one in values["annotations"] for one in whole["annotations"])
            assert len(found.labels) >= kept - 1  # of two with one id, one counts


def test_real_files_hold_what_they_hold(shared_data: Path) -> None:
    for name, images, objects, people in (("coco_mini", 80, 739, 172), ("tiny_coco", 50, 470, 99)):
        folder = shared_data / "coco" / name
        file = folder / "annotations" / "instances_train2017.json"
        values = json.loads(file.read_text())
        found = read_coco(file, task="masks")
        assert (len(found), len(found.labels), found.problems) == (images, objects, ())
        ids = [category.id for category in found.categories]
        by_image: dict[int, list[dict[str, Any]]] = {}
        for one in values["annotations"]:
            by_image.setdefault(one["image_id"], []).append(one)
        for image in found:
            own = by_image.get(image.id, [])
            assert [ids[label - 1] for label in image.labels] == [one["category_id"] for one in own]
            assert image.areas.tolist() == [one["area"] for one in own]
            assert image.crowds.tolist() == [bool(one["iscrowd"]) for one in own]
            for box, one in zip(image.boxes, own, strict=True):
                x, y, width, height = one["bbox"]
                assert np.allclose(box, [x, y, x + width, y + height], atol=1.01)
            for outline, one in zip(image.outlines, own, strict=True):
                if isinstance(one["segmentation"], dict):
                    assert isinstance(outline, Runs)
                    # The json counts the gaps in a crowd, too; boxes end at the last pixel.
                    assert outline.area <= one["area"]
                    x, y, width, height = one["bbox"]
                    assert outline.box == (x, y, x + width + 1, y + height + 1)
                else:
                    assert isinstance(outline, Polygons)
                    assert len(outline.points) == len(one["segmentation"])
                    # COCO's area is that of the pixels, up to half a pixel along the outline.
                    around = sum(np.abs(np.diff(part, axis=0)).sum() for part in outline.points)
                    assert abs(outline.area - one["area"]) <= around / 2 + 1
        posed = read_coco(folder / "annotations" / "person_keypoints_train2017.json", task="keypoints")
        assert (len(posed), len(posed.labels)) == (images, people)
        assert posed.points == COCO_PERSON
        marked = [int((points[:, 2] > 0).sum()) for points in posed.keypoints]
        people_json = json.loads((folder / "annotations" / "person_keypoints_train2017.json").read_text())
        assert Counter(marked) == Counter(one["num_keypoints"] for one in people_json["annotations"])
        with pytest.raises(ValueError, match="holds captions"):
            read_coco(folder / "annotations" / "captions_train2017.json")
