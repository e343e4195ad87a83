"""The long-range set: is the ink of two pieces of handwriting, so far apart, the same?

>>> import tempfile
>>> far = LongRange(space=(38, 0), time=(0, 6), train_videos=8, test_videos=8)
>>> with tempfile.TemporaryDirectory() as folder:
...     print(write_long_range(folder, far, workers=1).read_text().splitlines()[1])
train/00000_0.mp4,same,train,train00000,38,0

A clip shows two pieces for two frames each, somewhere over a still background. They lie a set number of
pixels apart, along rows or columns, and begin a set number of frames apart; where and when is drawn anew for
every quartet. Videos come in quartets, of two first pieces (A, B: inks a and b) and two second ones (A', B':
inks a and b too) at the same places and times, over one background with the same distractors::

    same       A with A'      B with B'
    different  A with B'      B with A'

The handwriting is never the same piece, and differs between training and test videos. A network whose
features never hold a part of both pieces has log odds u(first) + v(second): it ties in every quartet
(`evaluation/quartets.py`), whatever its weights. With a reach of r pixels and pieces of p, that is so from
d = r + p - 1 pixels on, and in time from one frame more than its frames on: `ties_from`.

Files are lossless, with the colour of every pixel, and every frame is coded by itself, so that all this holds
for what is decoded.
"""

from __future__ import annotations

import colorsys
import csv
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nonlocal_nn.data.handwriting import background, digits, handwritings, write_on
from nonlocal_nn.data.rendered_files import clear, encode, stamp_of, write_all, write_stamp

CLASSES = ("different", "same")
COLUMNS = ("path", "label", "set", "quartet", "distance_pixels", "distance_frames")
LABELS = "labels.csv"
SHOWN_FRAMES = 2  # how long a piece is seen
MOST_INKS = 12  # 30 degrees of hue apart
_BRIGHT = 235
_VERSION = 1  # raise when the pixels or names change: folders made by an older version are made anew

Token = Literal["ink", "digit"]


@dataclass(frozen=True, kw_only=True)
class LongRange:
    """What is asked, and how far apart.

    >>> LongRange(space=(12, 20), time=(0,)).distances
    ((12, 0), (20, 0))
    >>> LongRange(space=(39,))
    Traceback (most recent call last):
    ValueError: space = 39: a piece of 10 pixels 39 pixels away does not fit into frames of 48: at most 38

    Raises:
        ValueError: a distance that does not fit or lets the pieces cover each other, inks that cannot be told
            apart, counts that do not divide into whole quartets.
    """

    space: tuple[int, ...] = (38,)
    """Pixels between the two pieces, for each distance of the set: 12,20,38."""
    time: tuple[int, ...] = (0,)
    """Frames between their beginnings, for each distance; one number, here or in `space`, stands for all."""
    classes: int = 2
    """Inks, evenly spaced in hue (2 to 12), or digits (2 to 10)."""
    token: Token = "ink"
    """What must be the same: ink, the colour, or digit, which digit is written (all in white; harder)."""
    distractors: int = 0
    """Grey pieces of handwriting anywhere, at any time, that do not count."""
    token_pixels: int = 10
    """Side of a piece of handwriting."""
    side_pixels: int = 48
    """Side of a frame."""
    frames: int = 8
    """Frames of a video."""
    train_videos: int = 1440
    """Videos to train on: as many quartets for each distance."""
    test_videos: int = 480
    """Held-out videos, of handwriting that is in none of the others."""
    seed: int = 0
    """Decides every pixel."""

    def __post_init__(self) -> None:
        for name, least in (("token_pixels", 4), ("side_pixels", 4), ("frames", SHOWN_FRAMES)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be {least} or more")
        if self.side_pixels % 2:
            raise ValueError(f"side_pixels = {self.side_pixels}: H.264 wants an even number")
        if self.distractors < 0:
            raise ValueError(f"distractors = {self.distractors}: 0 or more")
        if self.token not in ("ink", "digit"):
            raise ValueError(f"token = {self.token!r}: choose ink or digit")
        most = MOST_INKS if self.token == "ink" else 10
        if not 2 <= self.classes <= most:
            what = "inks, more of which could not be told apart" if self.token == "ink" else "digits"
            raise ValueError(f"classes = {self.classes}: from 2 to {most} {what}")
        if not self.space or not self.time or 1 != len(self.space) != len(self.time) != 1:
            raise ValueError(
                f"space has {len(self.space)} distances and time {len(self.time)}: give as many of both, or "
                "one that stands for all"
            )
        if len(set(self.distances)) != len(self.distances):
            raise ValueError(f"space and time name a distance twice: {self.distances}")
        for pixels, frames in self.distances:
            self._check(pixels, frames)
        for name in ("train_videos", "test_videos"):
            unit = 4 * len(self.distances)
            if (count := getattr(self, name)) < unit or count % unit:
                raise ValueError(
                    f"{name} = {count}: it must be a multiple of {unit}, as videos come in quartets and each "
                    f"of the {len(self.distances)} distances gets as many"
                )

    @property
    def distances(self) -> tuple[tuple[int, int], ...]:
        """(pixels, frames) of each distance of the set."""
        count = max(len(self.space), len(self.time))
        space, time = (list(v) * (count if len(v) == 1 else 1) for v in (self.space, self.time))
        return tuple(zip(space, time, strict=True))

    def _check(self, pixels: int, frames: int) -> None:
        room = self.side_pixels - self.token_pixels
        if not 0 <= pixels <= room:
            raise ValueError(
                f"space = {pixels}: a piece of {self.token_pixels} pixels {pixels} pixels away does not fit "
                f"into frames of {self.side_pixels}: at most {room}"
            )
        if not 0 <= frames <= self.frames - SHOWN_FRAMES:
            raise ValueError(
                f"time = {frames}: a piece that is seen for {SHOWN_FRAMES} frames from {frames} frames on "
                f"does not fit into clips of {self.frames}: at most {self.frames - SHOWN_FRAMES}"
            )
        if pixels < self.token_pixels and frames < SHOWN_FRAMES:
            raise ValueError(
                f"space = {pixels} with time = {frames}: the pieces would cover each other; give at least "
                f"{self.token_pixels} pixels or {SHOWN_FRAMES} frames"
            )


def ties_from(reach: int, size: int) -> int:
    """The least distance from which no feature holds a part of both pieces.

    >>> ties_from(25, 10), ties_from(5, SHOWN_FRAMES)          # pixels, frames
    (34, 6)

    reach: pixels or frames that a feature sees; size: of a piece. The nearest pixels of pieces d apart are
    d - size + 1 apart, and lie in one field while d - size + 2 <= reach.
    """
    return reach + size - 1


def write_long_range(
    directory: str | os.PathLike[str],
    options: LongRange,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the set as mp4 files below a folder; a set already there is left as it is.

    Returns labels.csv, with the columns path, label ("same" or "different"), set ("train" or "test"),
    quartet, distance_pixels and distance_frames.

    workers: processes that encode; default, one for each core. progress: called with (videos done, in all).
    Raises ValueError where the folder holds files of others, ImportError without scikit-learn.
    """
    root = Path(directory)
    recipe = {"long_range": _VERSION, **json.loads(json.dumps(asdict(options)))}  # as the stamp gives it back
    if stamp_of(root) == recipe:
        return root / LABELS
    clear(root, ("train", "test", LABELS))
    for name in ("train", "test"):
        (root / name).mkdir()
    quartets = [
        _Quartet(options, part, number)
        for part, videos in (("train", options.train_videos), ("test", options.test_videos))
        for number in range(videos // 4)
    ]
    write_all(_write_quartet, root, quartets, options.train_videos + options.test_videos, workers, progress)
    with (root / LABELS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(row for quartet in quartets for row in quartet.rows())
    write_stamp(root, recipe)
    return root / LABELS


@dataclass(frozen=True)
class _Quartet:
    options: LongRange
    part: str
    number: int

    @property
    def distance(self) -> tuple[int, int]:
        distances = self.options.distances
        return distances[self.number % len(distances)]

    def rows(self) -> list[tuple[Any, ...]]:
        """The rows of labels.csv: AA', AB', BA', BB'."""
        name = f"{self.part}{self.number:05d}"
        return [
            (
                f"{self.part}/{self.number:05d}_{place}.mp4",
                CLASSES[place in (0, 3)],
                self.part,
                name,
                *self.distance,
            )
            for place in range(4)
        ]


def _write_quartet(root: Path, quartet: _Quartet) -> int:
    options = quartet.options
    rng = np.random.default_rng([options.seed, int(quartet.part == "test"), quartet.number])
    size, room = options.token_pixels, options.side_pixels - options.token_pixels
    images = digits(size)[0]
    behind = background(options.side_pixels, rng)
    video = np.repeat(behind[None].astype(np.float64), options.frames, axis=0)
    for _ in range(options.distractors):
        start = int(rng.integers(options.frames - SHOWN_FRAMES + 1))
        row, column = (int(v) for v in rng.integers(room + 1, size=2))
        grey = rng.uniform(120, _BRIGHT)
        piece = images[rng.integers(len(images))]
        write_on(video[start : start + SHOWN_FRAMES], piece, (row, column), grey)
    pieces, inks = _pieces(options, quartet.part, rng)
    corners, starts = _places(options, quartet.distance, room, rng)
    for place, row_of in enumerate(quartet.rows()):
        clip = video.copy()
        for which, chosen in enumerate(divmod(place, 2)):
            piece, ink = images[pieces[which][chosen]], inks[which][chosen]
            write_on(clip[starts[which] : starts[which] + SHOWN_FRAMES], piece, corners[which], ink)
        pixels = np.clip(np.rint(clip), 0, 255).astype(np.uint8)
        encode(root / row_of[0], pixels, key_frame_every=1, pixel_format="yuv444p")
    return 4


def _pieces(options: LongRange, part: str, rng: np.random.Generator) -> tuple[Any, Any]:
    """Handwritings and inks, [first or second][a or b]; all four handwritings are different pieces."""
    held_out = part == "test"
    kinds = rng.choice(options.classes, size=2, replace=False)
    if options.token == "digit":
        pieces = [
            rng.choice(handwritings(int(kind), held_out=held_out), size=2, replace=False) for kind in kinds
        ]
        white = (_BRIGHT,) * 3
        return list(zip(*pieces, strict=True)), [[white, white]] * 2
    pool = np.concatenate([handwritings(digit, held_out=held_out) for digit in range(10)])
    drawn = rng.choice(pool, size=(2, 2), replace=False)
    inks = [np.array(colorsys.hsv_to_rgb(kind / options.classes, 1, 1)) * _BRIGHT for kind in kinds]
    return drawn.tolist(), [inks, inks]


def _places(
    options: LongRange, distance: tuple[int, int], room: int, rng: np.random.Generator
) -> tuple[list[tuple[int, int]], list[int]]:
    """Upper left corners and first frames of the first and the second piece."""
    pixels, frames = distance
    along, across = int(rng.integers(room - pixels + 1)), int(rng.integers(room + 1))
    ends = [along, along + pixels]
    if rng.integers(2):
        ends.reverse()
    by_rows = bool(rng.integers(2))
    corners = [(end, across) if by_rows else (across, end) for end in ends]
    start = int(rng.integers(options.frames - SHOWN_FRAMES - frames + 1))
    return corners, [start, start + frames]
