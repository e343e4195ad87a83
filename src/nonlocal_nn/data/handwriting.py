"""Pieces of real handwriting (scikit-learn's digits) and still backgrounds, for rendered sets."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

_HELD_OUT = 4  # one handwriting in four is kept for the test videos


@functools.cache
def digits(pixels: int) -> tuple[Image, npt.NDArray[np.int64]]:
    """The 1,797 handwritten digits of 8 x 8, enlarged to pixels x pixels, with what they show.

    >>> images, shown = digits(20)
    >>> images.shape, sorted(set(shown.tolist())) == list(range(10))
    ((1797, 20, 20), True)

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the rendered data set is made of scikit-learn's digits: pip install 'nonlocal-nn[demo]'"
        ) from error
    bunch = load_digits()
    small = bunch.images / 16.0
    # Bilinear enlargement: where the new pixel centres lie on the old grid, then one matrix an axis.
    centres = np.clip((np.arange(pixels) + 0.5) * 8 / pixels - 0.5, 0, 7)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(8)))
    large: Image = np.clip(255 * (weights @ small @ weights.T), 0, 255).astype(np.uint8)
    return large, bunch.target.astype(np.int64)


def handwritings(digit: int, *, held_out: bool) -> npt.NDArray[np.int64]:
    """Which of the pieces show a digit: those for training, or the quarter that is kept for testing."""
    (indices,) = np.nonzero(digits(8)[1] == digit)
    kept = np.arange(len(indices)) % _HELD_OUT == 0
    chosen: npt.NDArray[np.int64] = indices[kept if held_out else ~kept]
    return chosen


def background(side_pixels: int, rng: np.random.Generator) -> Image:
    """A still of soft waves in muted colours, (side, side, 3)."""
    y, x = np.mgrid[:side_pixels, :side_pixels] / side_pixels
    image = np.full((side_pixels, side_pixels, 3), 60.0)
    for _ in range(3):
        fx, fy = rng.uniform(-2, 2, size=2)
        wave = np.sin(2 * np.pi * (fx * x + fy * y) + rng.uniform(0, 2 * np.pi))
        image += 8 * wave[..., None] * rng.uniform(0.4, 1.0, size=3)
    result: Image = np.clip(image, 0, 255).astype(np.uint8)
    return result


def write_on(
    frames: npt.NDArray[np.float64], piece: Image, corner: tuple[int, int], ink: npt.ArrayLike
) -> None:
    """Write a piece into frames (frames, side, side, 3), in place, its upper left corner at (row, column).

    ink: its colour, one number or three of 0 to 255.
    """
    row, column = corner
    side = len(piece)
    patch = frames[..., row : row + side, column : column + side, :]
    share = piece[..., None] / 255.0
    patch[...] = patch * (1 - share) + np.asarray(ink, dtype=np.float64) * share
