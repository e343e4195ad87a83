"""The words in pictures: which block, which weights, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn.explain.capture.affinity import Capture
from nonlocal_nn.explain.capture.block import BlockAffinity
from nonlocal_nn.explain.draw.overlay import Target

_SPANS = {"spacetime": "all of space and time", "space": "its own frame", "time": "its own place"}


def title_line(captured: Capture) -> str:
    """The video and what the network takes it for."""
    parts = [captured.title] if captured.title else []
    if captured.classes:
        name, score = captured.classes[0]
        named = f"class {name}" if name.isdecimal() else name  # a number where classes have no names
        parts.append(f"{named} ({100 * score:.0f} %)")
    return " — ".join(parts) or "What a position looks at"


def block_line(block: BlockAffinity) -> str:
    """The block in one line.

    >>> from nonlocal_nn.explain.capture.geometry import GridGeometry
    >>> from nonlocal_nn.pairwise import get_pairwise
    >>> grid, none = GridGeometry((4, 7, 7)), np.zeros(196, np.float32)
    >>> keys = grid.pooled((4, 3, 3))
    >>> block_line(BlockAffinity("res4", get_pairwise("gaussian"), "space", 1, grid, keys, len, none))
    'Block res4: Gaussian, 4 x 7 x 7 positions look at 4 x 3 x 3 keys, each at its own frame'
    """
    queries, keys = (" x ".join(map(str, _sizes(grid.shape))) for grid in (block.queries, block.keys))
    sees = "" if block.span == "spacetime" else f", each at {_SPANS[block.span]}"
    if block.temporal_groups > 1:
        sees += f", {block.temporal_groups} runs of frames by themselves"
    return f"Block {block.name}: {block.function.label}, {queries} positions look at {keys} keys{sees}"


def _sizes(shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Without the frame of an image and the row of a sequence."""
    if shape[0] > 1:
        return shape
    return shape[1:] if shape[1] > 1 else shape[2:]


def weight_text(weight: float, block: BlockAffinity) -> str:
    """A weight with its unit: percent where a row sums to one."""
    if not block.sums_to_one:
        return f"{weight:.2g}"
    percent = 100 * weight
    if 0 < percent < 0.005:
        return "<0.01 %"
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def weight_note(
    block: BlockAffinity, row: NDArray[np.floating[Any]], targets: Sequence[Target], rows: int, show: str
) -> str:
    """What the weights of a picture are, and how much of them is drawn."""
    arrows, of = "", f"Weights are f/C of the {block.function.label}"
    if not np.any(row) and rows == 1:
        arrows = f"All {_seen(block)} weights of this query are zero."
    elif show != "heat":
        count = f"the {len(targets)} largest of {_seen(block)} weights"
        if block.sums_to_one and rows == 1:
            held = 100 * sum(target.weight for target in targets)
            arrows = f"Arrows: {count}; they hold {held:.0f} % of the row."
        elif rows == 1:
            arrows = f"Arrows: {count} (in size)."
        else:
            arrows = f"Arrows: the largest of {_seen(block)} weights of each query, thickness by weight."
    if block.sums_to_one:
        kind = "Weights are f/C, a softmax: a row sums to 1."
    elif not block.function.signed:
        kind = f"{of}: unnormalised, a row does not sum to 1; none is negative."
    elif (row < 0).any():
        kind = f"{of}: unnormalised, and negative ones (blue) exist."
    else:
        kind = f"{of}: unnormalised; they can be negative, here none is."
    return " ".join(part for part in (arrows, kind) if part)


def _seen(block: BlockAffinity) -> int:
    """The keys that one query sees."""
    frames, height, width = block.keys.shape
    run = frames // block.temporal_groups
    return {"spacetime": run * height * width, "space": height * width, "time": run}[block.span]


def short(text: str, inches: float, points: float) -> str:
    """The text, cut in its middle where it would not fit.

    >>> short("a" * 300, inches=2, points=9)
    'aaaaaaaaaaaaa…aaaaaaaaaaaaa'
    """
    most = max(8, int(inches / (0.0082 * points)))
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[len(text) - half :]}"
