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
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nonlocal_nn._cores import available_cores
from nonlocal_nn.data.defaults import RENDERED_TEST_VIDEOS, RENDERED_TRAIN_VIDEOS

CLASSES = ("different", "same")
FRAMES = 16
SIDE_PIXELS = 48
FRAMES_PER_SECOND = 8
DIGITS = (0, 1)

_HALF = FRAMES // 2
_DIGIT_PIXELS = 20
_MARGIN_PIXELS = 2
_TEST_SHARE = 4  # one handwriting in four is kept for the test videos
_STAMP = "rendered.json"
_OURS = ("train", "test", "train.csv", "test.csv", _STAMP)
_VERSION = 2  # raise when the pixels or names change: folders made by an older version are made anew

Image = npt.NDArray[np.uint8]


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
    if _read_stamp(root) == asdict(recipe):
        return result
    _clear(root)
    quartets = _plan(recipe)
    done = 0
    count = min(workers if workers is not None else available_cores(), len(quartets))
    if count <= 1:
        for quartet in quartets:
            done += _write_quartet(root, quartet)
            if progress is not None:
                progress(done, 4 * len(quartets))
    else:
        with ProcessPoolExecutor(count) as pool:
            for written in pool.map(_write_quartet, [root] * len(quartets), quartets, chunksize=8):
                done += written
                if progress is not None:
                    progress(done, 4 * len(quartets))
    for folder, path in (("train", result.train_list), ("test", result.test_list)):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "quartet"))
            writer.writerows(
                row for quartet in quartets if quartet.folder == folder for row in _rows(quartet)
            )
    # The stamp is written last: a set without one was interrupted, and is made anew.
    (root / _STAMP).write_text(json.dumps(asdict(recipe)))
    return result


def _read_stamp(root: Path) -> object:
    try:
        return json.loads((root / _STAMP).read_text())
    except (OSError, ValueError):
        return None


def _clear(root: Path) -> None:
    """Empty the folder, unless something in it is not ours."""
    if root.exists():
        strangers = sorted(p.name for p in root.iterdir() if p.name not in _OURS)
        if strangers:
            raise ValueError(
                f"{root} holds {strangers[0]!r}, which is not part of a rendered set; "
                "choose an empty or a new folder"
            )
        (root / _STAMP).unlink(missing_ok=True)
    for split in ("train", "test"):
        (root / f"{split}.csv").unlink(missing_ok=True)
        shutil.rmtree(root / split, ignore_errors=True)
        for label in CLASSES:
            (root / split / label).mkdir(parents=True)


def _plan(recipe: _Recipe) -> list[_Quartet]:
    """Choose the handwritings of every quartet."""
    targets = _digits()[1]
    quartets = []
    for split, folder in enumerate(("train", "test")):
        rng = np.random.default_rng([recipe.seed, split])
        pools = {}
        for digit in DIGITS:
            (indices,) = np.nonzero(targets == digit)
            held_out = np.arange(len(indices)) % _TEST_SHARE == 0
            pools[digit] = indices[held_out if folder == "test" else ~held_out]
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
    images = _digits()[0]
    rng = np.random.default_rng(quartet.seed)
    background = _background(rng)
    early = [_half(background, images[i], rng, at_end=False) for i in quartet.early]
    late = [_half(background, images[i], rng, at_end=True) for i in quartet.late]
    rows = _rows(quartet)
    for place, (name, _, _) in enumerate(rows):
        first, second = divmod(place, 2)
        _encode(root / name, np.concatenate([early[first], late[second]]))
    return len(rows)


def _rows(quartet: _Quartet) -> list[tuple[str, str, int]]:
    """(path below the root, label, quartet) of AA', AB', BA', BB'."""
    rows = []
    for place in range(4):
        label = CLASSES[int(place // 2 == place % 2)]
        name = f"quartet{quartet.number:05d}_{place}.mp4"
        rows.append((f"{quartet.folder}/{label}/{name}", label, quartet.number))
    return rows


_cache: tuple[Image, npt.NDArray[np.int64]] | None = None


def _digits() -> tuple[Image, npt.NDArray[np.int64]]:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8, enlarged to _DIGIT_PIXELS, with what they show."""
    global _cache
    if _cache is None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                "the rendered data set is made of scikit-learn's digits: pip install 'nonlocal-nn[demo]'"
            ) from error
        bunch = load_digits()
        small = bunch.images / 16.0
        # Bilinear enlargement: where the new pixel centres lie on the old grid, then one matrix an axis.
        centres = np.clip((np.arange(_DIGIT_PIXELS) + 0.5) * 8 / _DIGIT_PIXELS - 0.5, 0, 7)
        weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(8)))
        large: Image = np.clip(255 * (weights @ small @ weights.T), 0, 255).astype(np.uint8)
        _cache = (large, bunch.target.astype(np.int64))
    return _cache


def _background(rng: np.random.Generator) -> Image:
    """A still of soft waves in muted colours, (side, side, 3)."""
    y, x = np.mgrid[:SIDE_PIXELS, :SIDE_PIXELS] / SIDE_PIXELS
    image = np.full((SIDE_PIXELS, SIDE_PIXELS, 3), 60.0)
    for _ in range(3):
        fx, fy = rng.uniform(-2, 2, size=2)
        wave = np.sin(2 * np.pi * (fx * x + fy * y) + rng.uniform(0, 2 * np.pi))
        image += 8 * wave[..., None] * rng.uniform(0.4, 1.0, size=3)
    result: Image = np.clip(image, 0, 255).astype(np.uint8)
    return result


def _half(background: Image, digit: Image, rng: np.random.Generator, *, at_end: bool) -> Image:
    """One half of a video: the digit drifts a little in its corner."""
    video = np.repeat(background[None].astype(np.float64), _HALF, axis=0)
    # Each digit stays in its quarter, off the middle by more than the reach of one chroma sample.
    room = SIDE_PIXELS // 2 - _MARGIN_PIXELS - _DIGIT_PIXELS
    start, drift = rng.uniform(0, room, size=2), rng.uniform(-0.4, 0.4, size=2)
    for frame in range(_HALF):
        y, x = (int(v) for v in np.rint(np.clip(start + drift * frame, 0, room)))
        if at_end:
            y, x = (v + SIDE_PIXELS // 2 + _MARGIN_PIXELS for v in (y, x))
        patch = video[frame, y : y + _DIGIT_PIXELS, x : x + _DIGIT_PIXELS]
        ink = digit[..., None] / 255.0
        patch[...] = patch * (1 - ink) + 235.0 * ink
    result: Image = np.clip(np.rint(video), 0, 255).astype(np.uint8)
    return result


def _encode(path: Path, video: Image) -> None:
    """Write lossless H.264 in which the bits of one half never depend on the other.

    Lossless, because a lossy encoder spends its bits over the whole frame: traces of the digit in one corner
    would be all over the picture, where a local feature could meet those of the other.
    """
    import av

    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width = stream.height = SIDE_PIXELS
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        stream.thread_count = 1
        stream.options = {
            "qp": "0",
            "preset": "veryfast",
            "x264-params": f"keyint={_HALF}:min-keyint={_HALF}:scenecut=0:bframes=0:rc-lookahead=0:mbtree=0",
        }
        for image in video:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
