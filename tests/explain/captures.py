"""Small captures with known weights, for the tests of what is drawn of them: 8 frames of 16 x 24 pixels."""

from __future__ import annotations

import numpy as np

from nonlocal_nn.explain.capture.affinity import Capture
from nonlocal_nn.explain.capture.block import BlockAffinity
from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.pairwise import get_pairwise

QUERIES = GridGeometry((4, 4, 6), (0, 1.5, 1.5), (2, 4, 4), (1, 4, 4))
KEYS = QUERIES.pooled((4, 2, 3))


def block_of(matrix: np.ndarray, pairwise: str = "embedded_gaussian", **options) -> BlockAffinity:
    responses = options.pop("responses", np.arange(96, dtype=np.float32)[::-1].copy())
    return BlockAffinity(
        "res3.nonlocal1",
        get_pairwise(pairwise),
        "spacetime",
        1,
        QUERIES,
        KEYS,
        lambda positions: matrix[positions],
        responses,
    )


def captured_of(*blocks: BlockAffinity, frames: int = 8, title: str = "a.mp4") -> Capture:
    t, y, x, c = np.ogrid[:frames, :16, :24, :3]
    pictures = (127 + 120 * np.sin(0.2 * y + 0.15 * x + 0.9 * c + 0.4 * t)).astype(np.uint8)
    named = {f"{block.name}{'' if number == 0 else number}": block for number, block in enumerate(blocks)}
    return Capture(pictures, tuple(n / 10 for n in range(frames)), named, (("wave", 0.75),), title)


def rows_of(pairwise: str) -> np.ndarray:
    weights = np.random.default_rng(0).normal(size=(96, 24)).astype(np.float32)
    if pairwise == "dot_product":
        return weights / 24
    weights = np.maximum(weights, 0) if pairwise == "concatenation" else np.exp(weights)
    return weights / (24 if pairwise == "concatenation" else weights.sum(axis=1, keepdims=True))


def words(figure) -> str:
    """All text beside the axes of a figure."""
    return " ".join(text.get_text() for text in figure.texts)
