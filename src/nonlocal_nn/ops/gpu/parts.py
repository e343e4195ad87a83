"""What the programs that `gpu/softmax.py` starts on a GPU are made of. Equations and costs: docs/gpu.md.

Every matrix comes as a pointer and its strides (batch, row, column), so that transposed views need no copy.
A program works on one block of rows of one batch entry and on one group of result columns. Programs are
numbered along one axis, the only one of a CUDA grid that goes beyond 65,535. No two of them add to the same
memory, so the same inputs give the same bits.

Products of half-precision numbers are exact in float32 and summed there. What has to be rounded before it can
go into a product is scaled first, by a power of two into the normal range of float16: FLOAT16_SCALE for
probabilities (they are at most 1), `gradient_scale` for the gradients of logits.

Without Triton the module can still be imported; its functions are no programs then.
"""

from __future__ import annotations

from typing import Any, no_type_check

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = ["dot", "jit", "load_tile", "own_place", "products", "store_tile", "tl"]


def jit(function: Any) -> Any:
    """A program, or a part of one; where there is no Triton, the function as it is."""
    return function if triton is None else triton.jit(function)


@jit
@no_type_check  # annotations here are Triton's, not jaxtyping's
def tile(matrix, strides, rows_left, first, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ROWS x COLUMNS numbers of a matrix from column `first` on: where they lie, and which are inside."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    places = matrix + tl.cast(first, tl.int64) * strides[2]
    places = places + row[:, None] * strides[1] + column[None, :] * strides[2]
    return places, (row < rows_left)[:, None] & (column < columns - first)[None, :]


@jit
@no_type_check
def load_tile(matrix, strides, rows_left, first, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    places, inside = tile(matrix, strides, rows_left, first, columns, ROWS, COLUMNS)
    return tl.load(places, mask=inside, other=0.0)


@jit
@no_type_check
def store_tile(matrix, strides, rows_left, first, columns, values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    places, inside = tile(matrix, strides, rows_left, first, columns, ROWS, COLUMNS)
    tl.store(places, values.to(matrix.dtype.element_ty), mask=inside)


@jit
@no_type_check
def dot(a, b, sums, PRECISION: tl.constexpr):
    """Adds the product a b to float32 sums."""
    if PRECISION == "interpreted":  # Triton's interpreter would multiply bfloat16's bit patterns
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    else:  # noqa: RET505  (Triton needs both branches to return)
        return tl.dot(a, b, sums, input_precision=PRECISION)


@jit
@no_type_check
def products(
    a,
    a_strides,
    a_left,
    b,
    b_strides,
    b_left,
    COLUMNS: tl.constexpr,
    ROWS_A: tl.constexpr,
    ROWS_B: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products a_i . b_j, DEPTH columns at a time: any number of columns needs the same few registers."""
    sums = tl.zeros([ROWS_A, ROWS_B], tl.float32)
    for first in range(0, COLUMNS, DEPTH):
        a_tile = load_tile(a, a_strides, a_left, first, COLUMNS, ROWS_A, DEPTH)
        b_tile = load_tile(b, b_strides, b_left, first, COLUMNS, ROWS_B, DEPTH)
        sums = dot(a_tile, tl.trans(b_tile), sums, PRECISION)
    return sums


@jit
@no_type_check
def own_place(rows, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's first row, batch entry and group of columns. Neighbours read the same other rows."""
    blocks = tl.cdiv(rows, BLOCK)
    program = tl.program_id(0)
    others = program // blocks
    # Both are multiplied with strides: 32 bits might not hold that.
    return tl.cast((program % blocks) * BLOCK, tl.int64), tl.cast(others // GROUPS, tl.int64), others % GROUPS
