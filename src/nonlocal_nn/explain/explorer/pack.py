"""All blocks of a capture within so many bytes: which plan each gets, and its rows packed by it.

Where all weights of all rows do not fit, they get fewer levels; then the largest of each row are kept with
their positions, and the others as sums over cells; at last fewer query positions are kept. The page says
which it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nonlocal_nn.explain.explorer.encode import (
    LEADER_PLAN,
    Deflater,
    Integers,
    PackedArray,
    Plan,
    encode,
    shares,
    space_bin_pixels,
)

if TYPE_CHECKING:
    from nonlocal_nn.explain.capture.block import BlockAffinity
    from nonlocal_nn.explain.capture.geometry import GridGeometry

# From the best to the smallest.
LADDER = (
    Plan(255),
    Plan(127),
    Plan(63),
    Plan(31),
    Plan(15),
    Plan(255, top=256),
    Plan(255, top=128),
    Plan(255, top=64),
    Plan(255, leaders=0, top=32, cells=2),
    Plan(255, leaders=0, top=32, cells=2, stride=2),
    Plan(127, leaders=0, top=16, cells=2, stride=4),
    Plan(63, leaders=0, top=8, cells=1, stride=8),
)

_CHUNK_WEIGHTS = 2_000_000  # so many weights are held at a time, 8 MB as float32
_LARGEST_ERROR = 0.07  # where all weights would be off by more, the largest of them tell more
_TRIAL_RUNS, _TRIAL_ROWS = 4, 24  # rows packed to learn what a plan costs

Done = Callable[[int], None]


def _ignore(_rows: int) -> None:
    pass


@dataclass(frozen=True)
class PackedBlock:
    """What the page needs of one block: what it is, and its arrays."""

    description: dict[str, Any]
    arrays: Mapping[str, PackedArray]
    plan: Plan

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(len(array.text) for array in self.arrays.values())


class _Packer:
    """One block, its ladder of plans, and where on the ladder it stands."""

    def __init__(self, block: BlockAffinity, pixels: tuple[int, int]) -> None:
        self.block, self.pixels = block, pixels
        signed = block.function.signed
        plans = (replace(plan, signed=signed) for plan in LADDER)
        self.plans = [plan for plan in plans if _suits(plan, block)]
        self.rung = 0
        self.packed: PackedBlock | None = None
        self._guesses: dict[Plan, tuple[int, bool]] = {}

    @property
    def plan(self) -> Plan:
        return self.plans[self.rung]

    @property
    def is_at_the_end(self) -> bool:
        return self.rung + 1 == len(self.plans)

    @property
    def size(self) -> int:
        """Bytes under the present plan: as packed, or a guess from some rows."""
        return self._guess()[0] if self.packed is None else self.packed.size

    def _guess(self) -> tuple[int, bool]:
        """The size under the present plan, told from some rows, and whether differences make it smaller."""
        if self.plan not in self._guesses:
            positions, _ = stored_queries(self.block.queries, self.plan.stride)
            starts = np.linspace(0, max(0, len(positions) - _TRIAL_ROWS), _TRIAL_RUNS).astype(np.int64)
            runs = np.unique((starts[:, None] + np.arange(_TRIAL_ROWS)).clip(max=len(positions) - 1))
            self._guesses[self.plan] = min(
                (self._trial(positions[runs], differences) * len(positions) // len(runs), differences)
                for differences in (False, True)
            )
        return self._guesses[self.plan]

    def _trial(self, positions: Integers, differences: bool) -> int:
        return sum(len(array.text) for array in self._arrays(positions, differences, _ignore).values())

    def step_down(self) -> None:
        self.rung, self.packed = self.rung + 1, None

    def pack(self, done: Done) -> PackedBlock:
        if self.packed is None:
            positions, grid = stored_queries(self.block.queries, self.plan.stride)
            arrays = self._arrays(positions, self._guess()[1], done)
            self.packed = PackedBlock(self._description(positions, grid), arrays, self.plan)
        return self.packed

    def _arrays(self, positions: Integers, differences: bool, done: Done) -> dict[str, PackedArray]:
        block, bin_pixels, bins = self.block, *self._bins()
        places = block.queries.centres()[:, 1:].astype(np.float32)
        keys_in_a_frame = math.prod(block.keys.shape[1:])
        key_places = block.keys.centres()[:keys_in_a_frame, 1:].astype(np.float32)
        streams: dict[str, Deflater] = {}
        step = max(1, _CHUNK_WEIGHTS // math.prod(block.keys.shape))
        for start in range(0, len(positions), step):
            chosen = positions[start : start + step]
            rows = block.rows(chosen)
            _check(rows, block, self.plan)
            arrays = encode(rows, block.keys.shape, self.plan)
            arrays |= shares(rows, block.keys.shape, places[chosen], key_places, bin_pixels, bins)
            for name, array in arrays.items():
                streams.setdefault(name, Deflater(differences and name == "codes")).add(array)
            done(len(chosen))
        return {name: stream.finish() for name, stream in streams.items()}

    def _bins(self) -> tuple[float, int]:
        bin_pixels = space_bin_pixels(*self.pixels)
        return bin_pixels, math.ceil(math.hypot(*self.pixels) / bin_pixels)

    def _description(self, positions: Integers, grid: dict[str, Any]) -> dict[str, Any]:
        block, plan = self.block, self.plan
        return {
            "name": block.name,
            "pairwise": block.function.name,
            "span": block.span,
            "groups": block.temporal_groups,
            "sumsToOne": block.sums_to_one,
            "queries": grid,
            "keys": _grid(block.keys),
            "steps": plan.steps,
            "signed": plan.signed,
            "leaders": plan.leaders,
            "leaderSteps": LEADER_PLAN.steps,
            "top": plan.top,
            "cells": plan.cells,
            "binPixels": self._bins()[0],
            "strongest": _strongest(block, positions),
            "stored": stored_text(plan, block.keys),
        }


def pack_blocks(
    blocks: Mapping[str, BlockAffinity],
    pixels: tuple[int, int],
    max_bytes: int,
    done: Done = _ignore,
    planned: Done = _ignore,
) -> list[PackedBlock]:
    """The best that fits into `max_bytes`; where it does not, the block that takes the most gives way.

    pixels: height and width of the clip. done: told of every few query positions packed. planned: told how
    many there will be, again when plans change.

    Raises:
        ValueError: the smallest plans do not fit, or a weight is not a finite number.
    """
    packers = [_Packer(block, pixels) for block in blocks.values()]
    while True:
        while (total := sum(packer.size for packer in packers)) > max_bytes:
            can_give = [packer for packer in packers if not packer.is_at_the_end]
            if not can_give:
                raise ValueError(
                    f"the weights of {len(packers)} blocks take {total} bytes at the least, and max_bytes "
                    f"leaves {max_bytes} for them: allow more, or show fewer blocks"
                )
            max(can_give, key=lambda packer: packer.size).step_down()
        planned(sum(_stored_count(p.block.queries, p.plan.stride) for p in packers if p.packed is None))
        packed = [packer.pack(done) for packer in packers]
        # a guess may have been too low: then go round again
        if sum(block.size for block in packed) <= max_bytes:
            return packed


def stored_queries(queries: GridGeometry, stride: int) -> tuple[Integers, dict[str, Any]]:
    """The flat positions that are stored, and the grid that they make.

    >>> from nonlocal_nn.explain.capture.geometry import GridGeometry
    >>> positions, grid = stored_queries(GridGeometry((1, 4, 5), (0, 3, 3), (1, 8, 8), (1, 8, 8)), 2)
    >>> positions.tolist(), grid["shape"], grid["step"]
    ([0, 2, 4, 10, 12, 14], [1, 2, 3], [1, 16, 16])
    """
    frames, height, width = queries.shape
    flat = np.arange(frames * height * width).reshape(queries.shape)[:, ::stride, ::stride]
    grid = _grid(queries)
    grid["shape"] = list(flat.shape)
    grid["step"] = [queries.step[0], queries.step[1] * stride, queries.step[2] * stride]
    return flat.ravel(), grid


def _stored_count(queries: GridGeometry, stride: int) -> int:
    return len(stored_queries(queries, stride)[0])


def stored_text(plan: Plan, keys: GridGeometry) -> str:
    """What the page says about its own exactness.

    >>> from nonlocal_nn.explain.capture.geometry import GridGeometry
    >>> stored_text(Plan(255), GridGeometry((1, 4, 4), (0, 0, 0), (1, 8, 8), (1, 8, 8)))[:79]
    "Every weight is stored, each to within 0.4 % of the range of its row's weights."
    """
    of = "the largest weight of its row" if plan.signed else "the range of its row's weights"
    exact = f"to within {100 * plan.error:.1f} % of {of}"
    leaders = f" Which {plan.leaders} of them lead is exact." if plan.leaders else ""
    if plan.top is None:
        return f"Every weight is stored, each {exact}.{leaders}"
    rows, columns = (min(plan.cells, size) for size in keys.shape[1:])
    text = (
        f"The {plan.top} largest weights of each row are stored {exact}; the others are spread evenly over "
    )
    text += f"{rows} × {columns} cells of each frame.{leaders}"
    if plan.stride > 1:
        text += f" Query positions are stored {plan.stride} apart along the height and the width."
    return text


def _grid(geometry: GridGeometry) -> dict[str, Any]:
    return {"shape": list(geometry.shape), "first": list(geometry.first), "step": list(geometry.step)}


def _suits(plan: Plan, block: BlockAffinity) -> bool:
    """False where a plan would save nothing (few keys, few query positions), or leave too few levels."""
    if plan.top is None and plan.error > _LARGEST_ERROR:
        return False
    few = plan.top is not None and 3 * plan.top > math.prod(block.keys.shape)
    return not few and (plan.stride == 1 or max(block.queries.shape[1:]) >= 2 * plan.stride)


def _check(rows: np.ndarray[Any, Any], block: BlockAffinity, plan: Plan) -> None:
    if not np.isfinite(rows).all():
        raise ValueError(
            f"block {block.name!r} has weights that are not finite numbers; there is nothing to show"
        )
    if not plan.signed and rows.min() < 0:
        raise ValueError(
            f"block {block.name!r}: {block.function.name} gives no negative weights, got {rows.min():.3g}"
        )


def _strongest(block: BlockAffinity, positions: Integers) -> int | None:
    """Which of the stored positions the block changes most; None where it changes nothing."""
    response = np.nan_to_num(block.response()[positions])
    return int(response.argmax()) if response.max() > 0 else None
