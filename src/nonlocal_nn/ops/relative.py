"""Averages over a map with weights made from relative positions: y_q = sum_h sum_k A_h[q, k] W_h x_k.

A_h[q, k] = softmax_k(score_h(k - q)), the offset k - q in rows and columns, W_h the value weights of head h
(Cordonnier, Loukas and Jaggi, ICLR 2020). `dense` is this as written, with heads x N x N weights.

Where a score is a sum of one over rows and one over columns, its exponential is a product, and so is the
softmax over the map, borders included: A_h = R_h C_h, two small matrices a head. `separable` multiplies
by the one, then the other, in O(N (H + W)) instead of O(N^2), and adds head to head. Other scores are made
for a few rows of queries at a time (`by_rows`), and with content the row and column scores become more
dimensions of theta and phi (`with_content`), in memory linear in N.

Scores come from differences of positions, in float32 or better: (k - q - Delta)^2 multiplied out loses four
digits at 112 x 112.

>>> import torch
>>> x, value = torch.randn(1, 2, 4, 5), torch.randn(3, 6, 2)
>>> rows, columns = (axis_scores(offsets(n, n, 1), torch.zeros(3), torch.ones(3)) for n in (4, 5))
>>> y = separable(x, rows, columns, value)
>>> scores = rows[:, :, None, :, None] + columns[:, None, :, None, :]
>>> torch.allclose(y, dense(x, scores.reshape(3, 20, 20), value, (4, 5)), atol=1e-5)
True
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nonlocal_nn._typing import Float
from nonlocal_nn.ops.checks import working_dtype
from nonlocal_nn.ops.rows import made_again
from nonlocal_nn.ops.softmax import gaussian

ScoresOf = Callable[[int, int], Tensor]
Value = Float[Tensor, "head out each"]
Rows = Float[Tensor, "head query_row row"]
Columns = Float[Tensor, "head query_column column"]


def offsets(queries: int, keys: int, stride: int, device: torch.device | None = None) -> Tensor:
    """K - q along one axis, (queries, keys), where query number i stands at i x stride.

    >>> offsets(2, 4, 2)
    tensor([[ 0,  1,  2,  3],
            [-2, -1,  0,  1]])
    """
    key, query = (torch.arange(count, device=device) for count in (keys, queries))
    return key - stride * query.unsqueeze(1)


def axis_scores(
    offset: Tensor, centre: Float[Tensor, head], spread: Float[Tensor, head]
) -> Float[Tensor, "head query key"]:
    """-spread^2/2 (offset - centre)^2."""
    dtype = working_dtype(centre.dtype)
    away = offset.to(dtype) - centre.to(dtype).view(-1, 1, 1)
    return -0.5 * (spread.to(dtype).view(-1, 1, 1) * away).square()


def table_scores(offset: Tensor, table: Float[Tensor, "head entry"]) -> Float[Tensor, "head query key"]:
    """The entry of each offset, of a table whose middle is offset 0."""
    return table.to(working_dtype(table.dtype))[:, offset + table.shape[1] // 2]


def joint_scores(
    row: Tensor, column: Tensor, centre: Float[Tensor, "head 2"], spread: Float[Tensor, "head 2 2"]
) -> Float[Tensor, "head query key"]:
    """-1/2 (S (delta - centre))^2 for offsets (query rows, rows) and (query columns, columns), flat."""
    dtype = working_dtype(centre.dtype)
    heads = len(centre)
    s = spread.to(dtype)
    y = row.to(dtype) - centre[:, 0].to(dtype).view(-1, 1, 1)  # (head, query row, row)
    x = column.to(dtype) - centre[:, 1].to(dtype).view(-1, 1, 1)

    scores = torch.zeros((), dtype=dtype, device=row.device)
    for number in (0, 1):
        first = (s[:, number, 0].view(-1, 1, 1) * y)[:, :, None, :, None]
        second = (s[:, number, 1].view(-1, 1, 1) * x)[:, None, :, None, :]
        scores = scores - 0.5 * (first + second).square()
    return scores.reshape(heads, row.shape[0] * column.shape[0], row.shape[1] * column.shape[1])


def _values(x: Tensor, of_head: Tensor, groups: int) -> Tensor:
    """W_h x, (batch, out, height, width)."""
    return F.conv2d(x, of_head.to(x.dtype)[:, :, None, None], groups=groups)


def dense(
    x: Float[Tensor, "batch in height width"],
    scores: Tensor,
    value: Value,
    shape: tuple[int, int],
    groups: int = 1,
) -> Float[Tensor, "batch out rows columns"]:
    """As written: scores (head, queries, keys) or (batch, head, queries, keys), all weights in memory."""
    weights = scores.softmax(dim=-1).to(x.dtype)
    if weights.dim() == 3:
        weights = weights.expand(len(x), *weights.shape)
    y = [
        torch.einsum("bok,bqk->boq", _values(x, of_head, groups).flatten(2), weights[:, head])
        for head, of_head in enumerate(value)
    ]
    return torch.stack(y).sum(dim=0).reshape(len(x), -1, *shape)


def separable(
    x: Float[Tensor, "batch in height width"], rows: Rows, columns: Columns, value: Value, groups: int = 1
) -> Float[Tensor, "batch out rows columns"]:
    """Where score_h = rows_h + columns_h: (head, query rows, rows) and (head, query columns, columns)."""
    left, right = (scores.softmax(dim=2).to(x.dtype) for scores in (rows, columns))
    y = None
    for head, of_head in enumerate(value):
        v = _values(x, of_head, groups)
        moved = torch.matmul(left[head], torch.matmul(v, right[head].mT))
        y = moved if y is None else y + moved
    assert y is not None, "there is a head"
    return y


def by_rows(
    x: Float[Tensor, "batch in height width"],
    scores_of: ScoresOf,
    value: Value,
    shape: tuple[int, int],
    most_bytes: int,
    groups: int = 1,
) -> Float[Tensor, "batch out rows columns"]:
    """Any scores, some rows of queries at a time; the backward pass makes them again.

    scores_of(first, last): of the query rows from first to before last, (head, queries, keys), or so for each
    entry of the batch.
    """
    heads, keys = len(value), x.shape[2] * x.shape[3]
    each = heads * shape[1] * keys * x.element_size()
    step = max(1, most_bytes // max(1, each))
    values = torch.cat([_values(x, of_head, groups).flatten(2) for of_head in value], dim=1)
    values = values.reshape(len(x), heads, -1, keys)  # (batch, head, out, keys)
    parts = [
        made_again(_some_rows, values, scores_of, first, min(shape[0], first + step))
        for first in range(0, shape[0], step)
    ]
    y = torch.cat([part for part in parts if isinstance(part, Tensor)], dim=2)
    return y.reshape(len(x), -1, *shape)


def _some_rows(values: Tensor, scores_of: ScoresOf, first: int, last: int) -> Tensor:
    weights = scores_of(first, last).softmax(dim=-1).to(values.dtype)
    if weights.dim() == 3:
        return torch.einsum("bhok,hqk->boq", values, weights)
    return torch.einsum("bhok,bhqk->boq", values, weights)


def with_content(
    x: Float[Tensor, "batch in height width"],
    query: Float[Tensor, "batch head d queries"],
    key: Float[Tensor, "batch head d keys"],
    rows: Rows | None,
    columns: Columns | None,
    value: Value,
    shape: tuple[int, int],
    groups: int = 1,
    memory_budget: int | None = None,
) -> Float[Tensor, "batch out rows columns"]:
    """Scores query . key + rows + columns, by the gaussian operation: linear memory, exact.

    theta = [query, the row scores, the column scores], phi = [key, which row, which column], both one-hot.
    """
    height, width = x.shape[2:]
    batch = len(x)
    one_hot = torch.cat(
        (
            torch.eye(height, dtype=key.dtype, device=x.device).repeat_interleave(width, dim=0),
            torch.eye(width, dtype=key.dtype, device=x.device).repeat(height, 1),
        ),
        dim=1,
    )
    y = None
    for head, of_head in enumerate(value):
        theta, phi = query[:, head].mT, key[:, head].mT
        if rows is not None and columns is not None:
            of_row = rows[head].repeat_interleave(shape[1], dim=0)  # (queries, rows)
            of_column = columns[head].repeat(shape[0], 1)
            position = torch.cat((of_row, of_column), dim=1).to(theta.dtype)
            theta = torch.cat((theta, position.expand(batch, -1, -1)), dim=2)
            phi = torch.cat((phi, one_hot.expand(batch, -1, -1)), dim=2)
        g = _values(x, of_head, groups).flatten(2).mT.to(theta.dtype)
        moved = gaussian(theta, phi, g, memory_budget=memory_budget)
        y = moved if y is None else y + moved
    assert y is not None, "there is a head"
    return y.mT.reshape(batch, -1, *shape).to(x.dtype)
