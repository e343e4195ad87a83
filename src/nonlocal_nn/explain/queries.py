"""What a view means in a capture: which blocks, which of their positions, which frames.

>>> parse_query("4,24,20"), parse_query("strongest"), parse_query("grid:2x3")
((4.0, 24.0, 20.0), 'strongest', 'grid:2x3')
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nonlocal_nn._names import nearest_names
from nonlocal_nn.explain.capture.affinity import Capture
from nonlocal_nn.explain.capture.block import BlockAffinity
from nonlocal_nn.explain.view import QueryLike, View

WAYS = 'a pixel and frame ("FRAME,ROW,COLUMN"), "centre", "strongest" or "grid" ("grid:2x3" for 2 rows of 3)'
_GRID = re.compile(r"grid(?::([1-9]\d?)x([1-9]\d?))?")
_DEFAULT_GRID = (2, 2)
_FRAMES, _FEW_FRAMES = 6, 8  # shown of a clip; all of one that has no more than a few


@dataclass(frozen=True)
class Query:
    """One position of a block's map, asked what it looks at.

    Attributes:
        position: flat, in the grid of the block.
        frame, row, column: the centre of the position, in input frames and pixels.
        text: for a caption.
    """

    position: int
    frame: float
    row: float
    column: float
    text: str


def asked_rows(captured: Capture, view: View) -> list[tuple[BlockAffinity, Query]]:
    """Every block of the view with each of its queries, as the rows of a figure are.

    Raises ValueError for a block or a query that the capture does not have.
    """
    every = view.block == "all"
    blocks = list(captured.blocks.values()) if every else choose_blocks(captured, view.block)
    return [(block, query) for block in blocks for query in find_queries(captured, block, view.query)]


def choose_blocks(captured: Capture, name: str | None) -> list[BlockAffinity]:
    """The block of that name, or all heads of a layer of that name; the last block or layer for None.

    Raises ValueError for a name that does not exist, with the nearest that do.
    """
    if name is None:
        last = list(captured.blocks.values())[-1]
        if not last.layer:
            return [last]
        name = last.layer
    if name in captured.blocks:
        return [captured.blocks[name]]
    heads = [block for block in captured.blocks.values() if block.layer == name]
    if not heads:
        near = nearest_names(name, captured.blocks, cutoff=0.5, otherwise=8)
        raise ValueError(f"no non-local block {name!r} was captured; the nearest are {', '.join(near)}")
    return heads


def parse_query(query: QueryLike) -> str | tuple[float, ...]:
    """The query as a word, or as numbers: (frame, row, column), or (row, column) of an image.

    Raises ValueError for anything else.
    """
    if not isinstance(query, str):
        numbers = tuple(float(number) for number in query)
        if len(numbers) not in (2, 3) or not np.isfinite(numbers).all():
            raise ValueError(
                f"query {tuple(query)} is not (frame, row, column), or (row, column) of an image"
            )
        return numbers
    word = query.strip().lower().replace("center", "centre")
    if word in ("centre", "strongest") or _GRID.fullmatch(word):
        return word
    try:
        return parse_query([float(part) for part in word.split(",")])
    except ValueError:
        raise ValueError(f"query {query!r} is none of the ways to ask: {WAYS}") from None


def find_queries(captured: Capture, block: BlockAffinity, query: QueryLike) -> list[Query]:
    """The positions of `block` that `query` means.

    A pixel stands for the position whose centre is nearest to it. "centre" is the middle of the middle frame;
    "strongest" the position that the block changes most; "grid" points spread evenly over the middle frame.

    Raises ValueError for a query in another form, or outside the clip.
    """
    asked = parse_query(query)
    frames, height, width = captured.frames.shape[:3]
    middle = (frames - 1) // 2
    if asked == "strongest":
        response = block.response()
        if not response.any():  # an untrained block changes nothing anywhere
            return [_at(block, (middle, (height - 1) / 2, (width - 1) / 2), "the centre")]
        return [_of(block, int(np.argmax(response)), "the position that responds most")]
    if asked == "centre":
        return [_at(block, (middle, (height - 1) / 2, (width - 1) / 2), "the centre")]
    if isinstance(asked, str):
        given = _GRID.fullmatch(asked)
        rows, columns = (
            int(n or d) for n, d in zip(given.groups() if given else (), _DEFAULT_GRID, strict=True)
        )
        points = [
            (middle, (row + 0.5) / rows * height - 0.5, (column + 0.5) / columns * width - 0.5)
            for row in range(rows)
            for column in range(columns)
        ]
        return [
            _at(block, point, f"{number} of a grid of {rows} x {columns}")
            for number, point in enumerate(points, 1)
        ]
    point = asked if len(asked) == 3 else (0.0, *asked)
    if len(asked) == 2 and frames > 1:
        raise ValueError(
            f"query {_listed(asked)} needs a frame, too: FRAME,ROW,COLUMN, frames 0 .. {frames - 1}"
        )
    sizes = (frames, height, width)
    if any(not 0 <= value <= size - 1 for value, size in zip(point, sizes, strict=True)):
        raise ValueError(
            f"query {_listed(asked)} (frame, row, column) lies outside the clip that the network sees: "
            f"frames 0 .. {frames - 1}, rows 0 .. {height - 1}, columns 0 .. {width - 1}"
        )
    return [_at(block, point, f"nearest to row {point[1]:g}, column {point[2]:g}")]


def chosen_frames(
    captured: Capture, frames: int | Sequence[int] | None, query_frames: Sequence[float]
) -> list[int]:
    """The numbers of the frames to show, ascending; evenly spread ones give way to the queries' own.

    Raises ValueError for frames that the clip does not have.
    """
    count = len(captured.frames)
    if frames is not None and not isinstance(frames, int):
        listed = sorted({int(number) for number in frames})
        if not listed or listed[0] < 0 or listed[-1] >= count:
            raise ValueError(f"frames {list(frames)}: the clip's frames are 0 .. {count - 1}")
        return listed
    wanted = (count if count <= _FEW_FRAMES else _FRAMES) if frames is None else frames
    if not 1 <= wanted <= count:
        raise ValueError(f"frames = {wanted}: the clip has {count}, from 1 to all of them can be shown")
    numbers = {int(number) for number in np.linspace(0, count - 1, wanted).round()} if wanted > 1 else {0}
    own = {min(count - 1, max(0, round(frame))) for frame in query_frames}
    for frame in sorted(own - numbers):
        free = numbers - own
        if not free:
            break
        numbers.remove(min(free, key=lambda number: (abs(number - frame), number)))
        numbers.add(frame)
    return sorted(numbers)


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _at(block: BlockAffinity, point: Sequence[float], text: str) -> Query:
    return _of(block, block.queries.nearest(*point), text)


def _of(block: BlockAffinity, position: int, text: str) -> Query:
    frame, row, column = (float(value) for value in block.queries.centres()[position])
    return Query(position, frame, row, column, text)
