"""The set of discs and twins: real files that COCO's reader takes, and nothing tells but the twin."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nonlocal_nn.data.coco import read_coco
from nonlocal_nn.data.outlines import Runs
from nonlocal_nn.data.rendered_objects import CATEGORIES, SHAPES, draw_pair, render_objects


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    return render_objects(tmp_path_factory.mktemp("objects"), train_images=120, test_images=20, workers=2)


def test_the_files_are_what_the_json_says(made) -> None:
    found = read_coco(made.train_json, task="masks")
    assert (len(found), found.problems, found.notes) == (120, (), ())
    assert found.categories == CATEGORIES
    assert [category.id for category in found.categories] == [3, 7, 20]
    counts = [len(image.labels) for image in found]
    assert Counter(counts).keys() == {0, 2, 3}
    assert found.crowds.sum() == counts.count(3) > 0
    for image in found:
        pixels = np.asarray(Image.open(image.path).convert("RGB"))
        assert pixels.shape == (96, 96, 3)
        for box, outline, crowd in zip(image.boxes, image.outlines, image.crowds, strict=True):
            assert isinstance(outline, Runs)
            assert outline.box == tuple(box)
            inside = pixels[outline.mask.astype(bool)]
            colours = {tuple(pixel) for pixel in inside.tolist()}
            assert colours == ({(150, 150, 150)} if crowd else {(150, 150, 150), (0, 0, 0)})
            assert crowd or outline.area == 441  # a whole disc
    assert len(read_coco(made.test_json, task="masks")) == 20


def test_the_two_images_of_a_pair_differ_in_nothing_but_what_belongs_together() -> None:
    told = Counter()
    for number in range(200):
        (one, objects), (other, others) = draw_pair((0, 0, number))
        # No count of pixels tells: the same colours as often, and the same in every row of sorted pixels.
        assert np.array_equal(
            np.sort(one.reshape(-1, 3) @ [65536, 256, 1]), np.sort(other.reshape(-1, 3) @ [65536, 256, 1])
        )
        # Around every object not a pixel differs; what differs is coloured.
        for first, second in zip(objects, others, strict=True):
            assert np.array_equal(first.mask, second.mask)
            assert np.array_equal(one[first.mask], other[second.mask])
            assert first.crowd == second.crowd
        categories = [[found.category for found in these if not found.crowd] for these in (objects, others)]
        assert categories[0] == categories[1][::-1]
        told.update(categories[0])
        assert len(set(categories[0])) in (0, 2)
        differs = np.abs(one.astype(int) - other).sum(axis=2) > 0
        assert differs.any()
        columns = np.nonzero(differs)[1]
        assert columns.max() < 48 or columns.min() >= 48  # one side alone
    assert min(told.values()) > 80  # each of the three colours is as frequent, nearly


def test_the_twin_tells() -> None:
    """A reader that looks for the shape of each object among the coloured discs is always right."""
    colours = ((214, 60, 60), (60, 176, 76), (70, 96, 220))
    checked = 0
    for number in range(60):
        for image, objects in draw_pair((1, 0, number)):
            for found in objects:
                if found.crowd:
                    continue
                rows, columns = np.nonzero(found.mask)
                top, left = rows.min(), columns.min()
                shape = (image[top : top + 25, left : left + 25] == 0).all(axis=2)
                answers = []
                for category, colour in enumerate(colours):
                    rows, columns = np.nonzero((image == colour).all(axis=2))
                    if not len(rows):
                        continue
                    y, x = rows.min(), columns.min()
                    twin = (image[y : y + 25, x : x + 25] == 0).all(axis=2)
                    if np.array_equal(shape, twin):
                        answers.append(category)
                assert answers == [found.category]
                checked += 1
    assert checked > 100


def test_every_shape_has_as_many_pixels_and_is_another() -> None:
    from nonlocal_nn.data import rendered_objects

    y, x = np.mgrid[-20:21, -20:21]
    masks = [rendered_objects._shape(name, y, x) for name in SHAPES]
    assert {int(mask.sum()) for mask in masks} == {80}
    assert all(np.hypot(y, x)[mask].max() <= 10 for mask in masks)
    for first in range(len(masks)):
        for second in range(first):
            assert (masks[first] ^ masks[second]).sum() > 30  # of the 80


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed, workers in zip(folders, (5, 5, 6), (1, 2, 1), strict=True):
        render_objects(folder, train_images=8, test_images=4, seed=seed, workers=workers)
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    ]
    assert len(files[0]) == 8 + 4 + 2 + 1
    assert files[0] == files[1]
    assert files[0] != files[2]
    before = (folders[0] / "train" / "00000.png").stat().st_mtime_ns
    render_objects(folders[0], train_images=8, test_images=4, seed=5)  # there already
    assert (folders[0] / "train" / "00000.png").stat().st_mtime_ns == before
    train = {tuple(json.dumps(files[0][path].hex())) for path in files[0] if path.parts[0] == "train"}
    test = {tuple(json.dumps(files[0][path].hex())) for path in files[0] if path.parts[0] == "test"}
    assert not train & test


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    for counts in ({"train_images": 3}, {"train_images": 0}, {"test_images": 5}):
        with pytest.raises(ValueError, match="must be even and at least 2"):
            render_objects(tmp_path, **counts)
    (tmp_path / "mine.txt").write_text("not to be lost")
    with pytest.raises(ValueError, match="is not part of a rendered set"):
        render_objects(tmp_path, train_images=2, test_images=2)
    assert (tmp_path / "mine.txt").exists()
