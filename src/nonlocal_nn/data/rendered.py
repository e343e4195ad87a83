"""The embedded data set: is the digit seen early in one corner the digit seen late in the opposite one?

>>> import tempfile
>>> from nonlocal_nn.data.rendered import render
>>> with tempfile.TemporaryDirectory() as folder:
...     made = render(folder, train_videos=8, test_videos=4, workers=1)
...     sorted(str(path.relative_to(folder)) for path in made.test.rglob("*.mp4"))
['test/different/quartet00000_1.mp4', 'test/different/quartet00000_2.mp4', \
'test/same/quartet00000_0.mp4', 'test/same/quartet00000_3.mp4']

Real H.264 files of real handwriting (scikit-learn's bundled digits). A video shows one digit in the upper
left corner during its first half and one in the lower right corner during its second half; the label says
whether the two are the same digit (``same``) or not (``different``). They are never the same piece of
handwriting.

Why no sum of local features separates the classes. Videos come in quartets built from two early halves (A, B:
digits a and b) and two late halves (A', B': other handwritings of a and b) over one background::

    same       A  then A'      B  then B'
    different  A  then B'      B  then A'

Every half stands once under either label, and so does everything that can be seen in any one frame, at any
one place over the whole video, or in any region that does not hold both corners at both times. A network
whose features each see no more than that, pooled over the whole video into a linear layer (C2D here: one
frame each, then global average pooling), has a logit l = u(first half) + v(second half). Within a quartet its
logits for the "same" videos then add up to those for the "different" ones,

    l(AA') + l(BB')  =  u(A) + u(B) + v(A') + v(B')  =  l(AB') + l(BA'),

so, the cross-entropy being convex, its mean loss over the quartet is at least log 2, that of a coin (Jensen).
The label can be learned only by relating the two places. The halves are encoded apart (a key frame starts the
second, and nothing is lost), so that all this holds for the decoded pixels too, bit for bit;
`tests/data/test_rendered.py` checks it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nonlocal_nn.data.defaults import RENDERED_TEST_VIDEOS, RENDERED_TRAIN_VIDEOS
from nonlocal_nn.data.handwriting import Image, background, digits, handwritings, write_on
from nonlocal_nn.data.rendered_files import clear, encode, stamp_of, write_all, write_stamp

CLASSES = ("different", "same")
FRAMES = 16
SIDE_PIXELS = 48
DIGITS = (0, 1)

_HALF = FRAMES // 2
_DIGIT_PIXELS = 20
_MARGIN_PIXELS = 2
_OURS = ("train", "test", "train.csv", "test.csv")
_VERSION = 2  # raise when the pixels or names change: folders made by an older version are made anew


@dataclass(frozen=True)
class RenderedSet:
    """Where the videos are: ``train`` and ``test`` hold one folder for each class.

    ``train_list`` and ``test_list`` are csv files of the same videos, with the columns path, label, quartet.
    """

    train: Path
    test: Path
    train_list: Path
    test_list: Path
    train_videos: int
    test_videos: int


@dataclass(frozen=True)
class _Recipe:
    """All that decides the bytes; the stamp file holds it."""

    version: int
    seed: int
    train_videos: int
    test_videos: int


@dataclass(frozen=True)
class _Quartet:
    """The four videos made from two early and two late halves, all named by handwriting index."""

    folder: str
    number: int
    seed: tuple[int, int, int]
    early: tuple[int, int]
    late: tuple[int, int]


def render(
    directory: str | os.PathLike[str],
    *,
    train_videos: int = RENDERED_TRAIN_VIDEOS,
    test_videos: int = RENDERED_TEST_VIDEOS,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RenderedSet:
    """Write the data set below ``directory`` as mp4 files; a set already there is left as it is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     render(folder, train_videos=4, test_videos=4, workers=1).train_videos
    4

    Args:
        directory: made where missing. A set of another recipe (sizes, seed) in it is replaced.
        train_videos, test_videos: multiples of 4, since videos come in quartets. Both classes are equally
            frequent, and no handwriting is in both sets.
        seed: decides every pixel.
        workers: processes that encode; default, one for each core.
        progress: called with (videos done, videos in all) as the work goes on.

    Raises:
        ValueError: a count is not a positive multiple of 4, or ``directory`` holds files that this function
            did not write.
        ImportError: scikit-learn is missing.
    """
    for name, count in (("train_videos", train_videos), ("test_videos", test_videos)):
        if count < 4 or count % 4:
            raise ValueError(
                f"{name} must be a positive multiple of 4 (videos come in quartets), got {count}"
            )
    root = Path(directory)
    recipe = _Recipe(_VERSION, seed, train_videos, test_videos)
    result = RenderedSet(
        root / "train",
        root / "test",
        root / "train.csv",
        root / "test.csv",
        train_videos,
        test_videos,
    )
    if stamp_of(root) == asdict(recipe):
        return result
    clear(root, _OURS)
    for split in ("train", "test"):
        for label in CLASSES:
            (root / split / label).mkdir(parents=True)
    quartets = _plan(recipe)
    write_all(_write_quartet, root, quartets, train_videos + test_videos, workers, progress)
    for folder, path in (("train", result.train_list), ("test", result.test_list)):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "quartet"))
            writer.writerows(
                row for quartet in quartets if quartet.folder == folder for row in _rows(quartet)
            )
    write_stamp(root, asdict(recipe))
    return result


def _plan(recipe: _Recipe) -> list[_Quartet]:
    """Choose the handwritings of every quartet."""
    quartets = []
    for split, folder in enumerate(("train", "test")):
        rng = np.random.default_rng([recipe.seed, split])
        pools = {digit: handwritings(digit, held_out=folder == "test") for digit in DIGITS}
        for number in range((recipe.train_videos, recipe.test_videos)[split] // 4):
            pair = rng.choice(DIGITS, size=2, replace=False)
            (early_a, late_a), (early_b, late_b) = (
                rng.choice(pools[int(d)], size=2, replace=False) for d in pair
            )
            quartets.append(
                _Quartet(
                    folder,
                    number,
                    (recipe.seed, split, number),
                    (int(early_a), int(early_b)),
                    (int(late_a), int(late_b)),
                )
            )
    return quartets


def _write_quartet(root: Path, quartet: _Quartet) -> int:
    images = digits(_DIGIT_PIXELS)[0]
    rng = np.random.default_rng(quartet.seed)
    behind = background(SIDE_PIXELS, rng)
    early = [_half(behind, images[i], rng, at_end=False) for i in quartet.early]
    late = [_half(behind, images[i], rng, at_end=True) for i in quartet.late]
    rows = _rows(quartet)
    for place, (name, _, _) in enumerate(rows):
        first, second = divmod(place, 2)
        video = np.concatenate([early[first], late[second]])
        encode(root / name, video, key_frame_every=_HALF, pixel_format="yuv420p")
    return len(rows)


def _rows(quartet: _Quartet) -> list[tuple[str, str, int]]:
    """(path below the root, label, quartet) of AA', AB', BA', BB'."""
    rows = []
    for place in range(4):
        label = CLASSES[int(place // 2 == place % 2)]
        name = f"quartet{quartet.number:05d}_{place}.mp4"
        rows.append((f"{quartet.folder}/{label}/{name}", label, quartet.number))
    return rows


def _half(behind: Image, digit: Image, rng: np.random.Generator, *, at_end: bool) -> Image:
    """One half of a video: the digit drifts a little in its corner."""
    video = np.repeat(behind[None].astype(np.float64), _HALF, axis=0)
    # Each digit stays in its quarter, off the middle by more than the reach of one chroma sample.
    room = SIDE_PIXELS // 2 - _MARGIN_PIXELS - _DIGIT_PIXELS
    start, drift = rng.uniform(0, room, size=2), rng.uniform(-0.4, 0.4, size=2)
    for frame in range(_HALF):
        y, x = (int(v) for v in np.rint(np.clip(start + drift * frame, 0, room)))
        if at_end:
            y, x = (v + SIDE_PIXELS // 2 + _MARGIN_PIXELS for v in (y, x))
        write_on(video[frame], digit, (y, x), 235.0)
    result: Image = np.clip(np.rint(video), 0, 255).astype(np.uint8)
    return result
