"""How the programs of `gpu/softmax.py` cut their work into tiles."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

# How float32 numbers are multiplied; "tf32x3": as three products of parts with 10 bits after the point.
DotPrecision = Literal["ieee", "tf32x3", "tf32"]


class Tiles(NamedTuple):
    """One step of a program: rows x others logits, summed `depth` columns at a time, for `width` columns.

    All are powers of two. `warps` x 32 threads share the work; loads are `stages` steps ahead.
    """

    rows: int
    others: int
    depth: int
    width: int
    warps: int = 8
    stages: int = 2


def default_tiles(dtype: torch.dtype, columns: int, precision: DotPrecision) -> Tiles:
    """Tiles for results of that many columns: as many of them at once as the registers hold.

    >>> default_tiles(torch.bfloat16, 512, "ieee")
    Tiles(rows=64, others=32, depth=64, width=512, warps=8, stages=2)

    For each entry the compiler says that the sums stay in registers (or all but a few of them) and that the
    loads fit the shared memory of any GPU since compute capability 8.0. Which is fastest is not measured yet.
    """
    if dtype == torch.float32 and precision != "tf32":  # more registers for each product
        return Tiles(32, 32, 32, 256)
    wide = columns > 256
    if dtype == torch.float32:
        return Tiles(32, 32, 32, 512) if wide else Tiles(64, 32, 32, 256)
    return Tiles(64, 32, 64, 512) if wide else Tiles(64, 64, 64, 256)


def blocks(rows: int, block: int) -> int:
    return -(-rows // block)


def groups_of_columns(columns: int, most: int) -> tuple[int, int]:
    """The width of a group of result columns, and the number of groups. Products need 16 columns or more."""
    groups = max(1, -(-columns // most))
    each = -(-columns // groups)
    return min(most, max(16, 1 << max(0, each - 1).bit_length())), groups
