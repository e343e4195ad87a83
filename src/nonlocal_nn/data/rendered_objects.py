"""The embedded data set of detection: what an object is called is the colour of its twin, far away.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     made = render_objects(folder, train_images=8, test_images=4)
...     sorted(path.name for path in made.test_images.iterdir()), made.test_json.name
(['00000.png', '00001.png', '00002.png', '00003.png'], 'test.json')

Images of 96 x 96 as PNG, and a COCO json with boxes and masks. On one side of an image are two grey discs,
each with a black shape; on the other side two discs with the same two shapes on different colours. Only the
grey discs are objects, and the category of each (red, green or blue; ids 3, 7 and 20) is the colour of the
disc with its shape.

Why nothing but relating the two places tells. Images come in pairs that differ in one thing: which of the two
coloured discs has which colour. Shapes and places are the same in both, and so are the numbers of pixels of
every colour, since all shapes are of one area; the categories of the two objects are exchanged. A detector
that sees no twin beside a grey disc is right for one image of a pair as often as it is wrong for the other.

About one pair in eight has no grey discs: images without objects. About one in eight has a heap of small grey
discs with one outline, marked as a crowd.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nonlocal_nn._files import write_whole
from nonlocal_nn.data.categories import Category
from nonlocal_nn.data.outlines import runs_of_mask
from nonlocal_nn.data.rendered_files import clear, stamp_of, write_all, write_stamp

__all__ = ["CATEGORIES", "RenderedObjects", "render_objects"]

SIDE_PIXELS = 96
CATEGORIES = (Category(3, "red"), Category(7, "green"), Category(20, "blue"))
SHAPES = ("square", "triangle", "cross", "lens", "ring", "stairs")
_COLOURS = ((214, 60, 60), (60, 176, 76), (70, 96, 220))
_GREY = (150, 150, 150)
_RADIUS = 12
_SHAPE_PIXELS = 80
_OURS = ("train", "test", "train.json", "test.json")
_VERSION = 1  # raise when the pixels or names change: folders made by an older version are made anew
_EVERY = 8  # one pair in so many has no objects, and another one a crowd
_TRIES = 1000

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RenderedObjects:
    """Where the images and their json are."""

    train_images: Path
    test_images: Path
    train_json: Path
    test_json: Path


@dataclass(frozen=True)
class _Recipe:
    """All that decides the bytes; the stamp file holds it."""

    version: int
    seed: int
    train_images: int
    test_images: int


@dataclass(frozen=True)
class _Pair:
    """Two images that differ in the colours of the twins."""

    folder: str
    number: int
    seed: tuple[int, int, int]


def render_objects(
    directory: str | os.PathLike[str],
    *,
    train_images: int = 2000,
    test_images: int = 200,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RenderedObjects:
    """Write the data set below ``directory``; a set already there is left as it is.

    Args:
        directory: made where missing. A set of another recipe (sizes, seed) in it is replaced.
        train_images, test_images: even numbers, since images come in pairs.
        seed: decides every pixel.
        workers: processes that draw; default, one for each core.
        progress: called with (images done, images in all) as the work goes on.

    Raises:
        ValueError: a count is not a positive even number, or ``directory`` holds files that this function did
            not write.
    """
    counts = {"train": train_images, "test": test_images}
    for name, count in counts.items():
        if count < 2 or count % 2:
            raise ValueError(f"{name}_images must be even and at least 2 (images come in pairs), got {count}")
    root = Path(directory)
    recipe = _Recipe(_VERSION, seed, train_images, test_images)
    made = RenderedObjects(root / "train", root / "test", root / "train.json", root / "test.json")
    if stamp_of(root) == asdict(recipe):
        return made
    clear(root, _OURS)
    pairs = [
        _Pair(folder, number, (seed, split, number))
        for split, (folder, count) in enumerate(counts.items())
        for number in range(count // 2)
    ]
    for folder in counts:
        (root / folder).mkdir()
    write_all(_write_pair, root, pairs, train_images + test_images, workers, progress)
    for folder, path in (("train", made.train_json), ("test", made.test_json)):
        text = json.dumps(_json_of([pair for pair in pairs if pair.folder == folder]))
        write_whole(path, lambda partial, text=text: partial.write_text(text))  # type: ignore[misc]
    write_stamp(root, asdict(recipe))
    return made


def _write_pair(root: Path, pair: _Pair) -> int:
    from PIL import Image as Pictures

    drawn = draw_pair(pair.seed)
    for place, (pixels, _) in enumerate(drawn):
        Pictures.fromarray(pixels).save(root / _name(pair, place))
    return len(drawn)


def _name(pair: _Pair, place: int) -> str:
    return f"{pair.folder}/{2 * pair.number + place:05d}.png"


def _json_of(pairs: list[_Pair]) -> dict[str, Any]:
    """COCO's form. Drawn again rather than kept: it takes as long as to hand masks between processes."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for pair in pairs:
        for place, (_, objects) in enumerate(draw_pair(pair.seed)):
            number = len(images) + 1
            images.append(
                {"id": number, "file_name": _name(pair, place), "width": SIDE_PIXELS, "height": SIDE_PIXELS}
            )
            for one in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **one.to_coco()})
    categories = [{"id": category.id, "name": category.name} for category in CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}


@dataclass(frozen=True)
class DrawnObject:
    """A grey disc, or a heap of them: its pixels, and the number of its category from 0 on."""

    mask: Mask
    category: int
    crowd: bool = False

    def to_coco(self) -> dict[str, Any]:
        """Box, area and mask as COCO has them; the mask as runs."""
        rows, columns = np.nonzero(self.mask)
        top, left = int(rows.min()), int(columns.min())
        return {
            "category_id": CATEGORIES[self.category].id,
            "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
            "area": int(self.mask.sum()),
            "iscrowd": int(self.crowd),
            "segmentation": {
                "size": list(self.mask.shape),
                "counts": runs_of_mask(self.mask).counts.tolist(),
            },
        }


def draw_pair(seed: tuple[int, int, int]) -> list[tuple[Image, list[DrawnObject]]]:
    """Two images and their objects.

    >>> (one, objects), (other, others) = draw_pair((0, 0, 5))
    >>> one.shape, [found.category for found in objects] == [found.category for found in others][::-1]
    ((96, 96, 3), True)
    """
    rng = np.random.default_rng(seed)
    kind = int(rng.integers(_EVERY))
    empty, crowded = kind == 0, kind == 1
    behind = rng.normal(60, 6, (SIDE_PIXELS, SIDE_PIXELS, 3)).clip(0, 255).astype(np.uint8)
    shapes = rng.choice(len(SHAPES), size=2, replace=False)
    colours = rng.choice(len(_COLOURS), size=2, replace=False)
    left = bool(rng.integers(2))
    grey_places = _places(rng, left)
    twin_places = _places(rng, not left)
    order = rng.permutation(2)
    heap = _heap(rng, grey_places) if crowded else None
    drawn = []
    for swap in range(2):
        image = behind.copy()
        objects = []
        for which in range(2):
            colour = int(colours[which ^ swap])
            _disc(image, twin_places[int(order[which])], _COLOURS[colour], SHAPES[shapes[which]])
            if not empty:
                mask = _disc(image, grey_places[which], _GREY, SHAPES[shapes[which]])
                objects.append(DrawnObject(mask, colour))
        if heap is not None:
            image[heap] = _GREY
            objects.append(DrawnObject(heap, int(colours[swap]), crowd=True))
        drawn.append((image, objects))
    return drawn


def _places(rng: np.random.Generator, left: bool) -> list[tuple[int, int]]:
    """The middles of two discs, row and column, on one side of the image, apart from each other."""
    low, high = _RADIUS + 1, SIDE_PIXELS // 2 - _RADIUS - 3
    shift = 0 if left else SIDE_PIXELS // 2 + 1
    for _ in range(_TRIES):
        rows = rng.integers(_RADIUS + 1, SIDE_PIXELS - _RADIUS - 1, size=2)
        columns = rng.integers(low, high, size=2) + shift
        if np.hypot(*(np.diff(rows), np.diff(columns)))[0] > 2 * _RADIUS + 3:
            return [(int(rows[n]), int(columns[n])) for n in range(2)]
    raise AssertionError("two discs fit on half of the image")


def _disc(image: Image, middle: tuple[int, int], colour: tuple[int, int, int], shape: str) -> Mask:
    """Draw a disc with a black shape in it; the pixels of the whole disc."""
    y, x = _from(middle)
    mask: Mask = np.hypot(y, x) <= _RADIUS
    image[mask] = colour
    image[mask & _shape(shape, y, x)] = 0
    return mask


def _from(middle: tuple[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How far down and right each pixel lies from a place."""
    rows, columns = np.mgrid[:SIDE_PIXELS, :SIDE_PIXELS]
    return rows - middle[0], columns - middle[1]


def _shape(name: str, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64]) -> Mask:
    """The pixels of a shape around a place: of every shape as many, so that no colour has more for it."""
    far, near = np.maximum(abs(y), abs(x)), np.minimum(abs(y), abs(x))
    # The pixels of the lowest rank are the shape.
    ranks = {
        "square": far,
        "triangle": np.where((y <= 6) & (2 * abs(x) <= y + 7), 0, 9) + abs(y) / 100,
        "cross": 10 * near + far,
        "lens": 5 * abs(y) + 2 * abs(x),
        "ring": abs(np.hypot(y, x) - 6.5),
        "stairs": np.where(y * x > 0, far, far + 9),
    }
    rank = np.where(np.hypot(y, x) <= _RADIUS - 2, ranks[name], np.inf)
    mask: Mask = np.zeros(rank.shape, bool)
    mask.ravel()[np.argsort(rank, axis=None, kind="stable")[:_SHAPE_PIXELS]] = True
    return mask


def _heap(rng: np.random.Generator, taken: list[tuple[int, int]]) -> Mask | None:
    """A few small discs that touch, apart from the large ones on their side; None where there is no room."""
    side = SIDE_PIXELS // 2
    shift = 0 if taken[0][1] < side else side
    for _ in range(_TRIES):
        middle = int(rng.integers(8, SIDE_PIXELS - 8)), int(rng.integers(8, side - 8)) + shift
        if all(np.hypot(middle[0] - row, middle[1] - column) > _RADIUS + 9 for row, column in taken):
            break
    else:
        return None
    heap = np.zeros((SIDE_PIXELS, SIDE_PIXELS), bool)
    for _ in range(4):
        y, x = _from((middle[0] + int(rng.integers(-3, 4)), middle[1] + int(rng.integers(-3, 4))))
        heap |= np.hypot(y, x) <= 3
    return heap
