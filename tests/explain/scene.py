"""A small film, and captures of it whose weights are known: a ball that is thrown over hills.

The affinities are what a Gaussian non-local operation makes of colour and place (Eq. 2 on hand-made
features), so the pictures look like what a trained network gives, and no network is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.pairwise import PairwiseFunction, get_pairwise

Floats = NDArray[np.float64]

# A name that would run as code, were it not kept as text.
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"'\u2028<!--"


@dataclass(frozen=True)
class FakeBlock:
    """As `BlockAffinity`: rows from two lists of features, a few at a time."""

    name: str
    queries: GridGeometry
    keys: GridGeometry
    theta: Floats
    phi: Floats
    pairwise: str = "embedded_gaussian"
    span: str = "spacetime"
    temporal_groups: int = 1
    asked: list[int] = field(default_factory=list)  # how many rows each call wanted

    @property
    def function(self) -> PairwiseFunction:
        return get_pairwise(self.pairwise)

    @property
    def sums_to_one(self) -> bool:
        return self.function.sums_to_one

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        self.asked.append(len(positions))
        products = self.theta[np.asarray(positions)] @ self.phi.T
        if self.pairwise == "dot_product":
            return (products / len(self.phi)).astype(np.float32)
        if self.pairwise == "concatenation":
            return (np.maximum(products, 0) / len(self.phi)).astype(np.float32)
        weights = np.exp(products - products.max(axis=1, keepdims=True))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def response(self) -> NDArray[np.float32]:
        return np.linalg.norm(self.theta - self.theta.mean(axis=0), axis=1).astype(np.float32)


@dataclass(frozen=True)
class FakeCapture:
    """As `Capture`."""

    frames: NDArray[np.uint8]
    blocks: dict[str, FakeBlock]
    classes: tuple[tuple[str, float], ...] = ()
    frame_seconds: tuple[float, ...] | None = None
    title: str = ""


def film(frames: int = 8, side: int = 224) -> NDArray[np.uint8]:
    """A red ball with a shadow that flies from left to right over a landscape: (frames, side, side, 3)."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    pictures = []
    for time in np.linspace(0, 1, frames):
        picture = np.empty((side, side, 3))
        sky = rows[..., None]
        picture[:] = (1 - sky) * np.array([96, 150, 205]) + sky * np.array([226, 224, 205])
        sun = np.exp(-(((rows - 0.17) ** 2 + (columns - 0.8) ** 2) / 0.006))[..., None]
        picture = picture * (1 - sun) + sun * np.array([255, 240, 190])
        for base, height, wave, colour in (
            (0.56, 0.09, 5.0, (104, 134, 140)),
            (0.66, 0.07, 8.0, (78, 118, 96)),
            (0.80, 0.04, 4.0, (96, 138, 66)),
        ):
            line = base - height * np.sin(wave * (columns + 0.04 * time) + 7 * base)
            inside = rows > line
            shade = (1.1 - 0.35 * (rows - line))[..., None]
            picture[inside] = (np.array(colour) * shade)[inside]
        centre = (0.68 - 1.9 * time * (1 - time), 0.1 + 0.78 * time)
        picture *= (
            1 - 0.35 * np.exp(-(((rows - 0.9) / 0.018) ** 2 + ((columns - centre[1]) / 0.06) ** 2))[..., None]
        )
        away = np.hypot(rows - centre[0], columns - centre[1]) / 0.075
        light = 1.15 - 0.6 * np.hypot(rows - centre[0] + 0.025, columns - centre[1] + 0.025) / 0.075
        cover = np.clip((1 - away) * 12, 0, 1)[..., None]
        ball = (
            np.array([214, 58, 44]) * light[..., None] + 40 * np.exp(-((light - 1.15) ** 2) * 60)[..., None]
        )
        picture = picture * (1 - cover) + ball * cover
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    return np.stack(pictures)


def features(pictures: NDArray[np.uint8], grid: GridGeometry, detail: float) -> Floats:
    """Colour and place at every position of a grid, (positions, 6): their products say how alike two are."""
    count, height, width, _ = pictures.shape
    centres = grid.centres()
    reach = int(grid.step[1] // 2)
    frame = np.clip(np.rint(centres[:, 0]), 0, count - 1).astype(int)
    near = []
    for row in (-reach // 2, reach // 2):
        for column in (-reach // 2, reach // 2):
            y = np.clip(np.rint(centres[:, 1] + row), 0, height - 1).astype(int)
            x = np.clip(np.rint(centres[:, 2] + column), 0, width - 1).astype(int)
            near.append(pictures[frame, y, x] / 255)
    colour = np.mean(near, axis=0)
    place = np.stack([centres[:, 0] / max(1, count), centres[:, 1] / height, centres[:, 2] / width], axis=1)
    grain = np.random.default_rng(len(centres)).normal(
        scale=0.004, size=colour.shape
    )  # no two weights are equal
    made = np.concatenate(
        [(colour - 0.5 + grain) * 2.2, (place - 0.5) * np.array([0.35, 0.55, 0.35])], axis=1
    )
    return np.asarray(made * detail)


def grids(frames: int, side: int, step: int, time_step: int = 1) -> tuple[GridGeometry, GridGeometry]:
    """A map with a position for each `step` pixels and `time_step` frames, and its keys, 2x2 pooled."""
    size = side // step
    first = ((time_step - 1) / 2, (step - 1) / 2, (step - 1) / 2)
    queries = GridGeometry(
        (frames // time_step, size, size), first, (time_step, step, step), (9.0, 99.0, 99.0)
    )
    return queries, queries.pooled((frames // time_step, size // 2, size // 2))


def nearness(
    pictures: NDArray[np.uint8], queries: GridGeometry, keys: GridGeometry, detail: float
) -> tuple[Floats, Floats]:
    """theta and phi whose product is minus half the squared distance of the features, but for a constant."""
    theta, phi = (features(pictures, grid, detail) for grid in (queries, keys))
    ones, squares = np.ones((len(theta), 1)), (phi**2).sum(axis=1, keepdims=True)
    return np.hstack([theta, ones]), np.hstack([phi, -squares / 2])


def capture_of_film(frames: int = 8, side: int = 224, title: str = "thrown_ball.mp4") -> FakeCapture:
    """Five blocks as in i3d_r50_nl5 (finer and coarser maps), the last one with a dot product."""
    pictures = film(frames, side)
    blocks = {}
    for name, step, detail, pairwise in (
        ("res3.nonlocal1", 8, 2.6, "embedded_gaussian"),
        ("res3.nonlocal3", 8, 5.0, "embedded_gaussian"),
        ("res4.nonlocal1", 16, 3.5, "embedded_gaussian"),
        ("res4.nonlocal3", 16, 5.0, "concatenation"),
        ("res4.nonlocal5", 16, 3.0, "dot_product"),
    ):
        queries, keys = grids(frames, side, step)
        theta, phi = nearness(pictures, queries, keys, detail)
        if pairwise != "embedded_gaussian":
            theta, phi = (features(pictures, grid, detail) for grid in (queries, keys))
        blocks[name] = FakeBlock(name, queries, keys, theta, phi, pairwise)
    classes = (
        ("throwing", 0.871),
        ("juggling balls", 0.064),
        ("catching", 0.03),
        ("bowling", 0.012),
        ("golf", 0.004),
    )
    seconds = tuple(round(0.27 * n, 2) for n in range(frames))
    return FakeCapture(pictures, blocks, classes, seconds, title)


def noisy_block(
    frames: int, side: int, step: int, pairwise: str = "embedded_gaussian", sharpness: float = 2.0
) -> FakeBlock:
    """Affinities without any pattern, which deflate hardly makes smaller."""
    queries, keys = grids(frames, side, step)
    generator = np.random.default_rng(0)
    theta = generator.normal(size=(queries.positions, 4)) * sharpness
    phi = generator.normal(size=(keys.positions, 4))
    return FakeBlock(f"{pairwise}{step}", queries, keys, theta, phi, pairwise)


def noise_capture(blocks: list[FakeBlock], frames: int, side: int) -> FakeCapture:
    return FakeCapture(film(frames, side), {f"res{n}": block for n, block in enumerate(blocks)})


def all_rows(block: FakeBlock) -> NDArray[np.float32]:
    return block.rows(np.arange(block.queries.positions))
