"""The average over positions from an affinity alone, some rows at a time: memory linear in the positions.

    y_i = sum_j w_ij g_j        w = affinity(theta, phi), the rows f(x_i, x_j) / C(x)

Rows do not depend on each other, so a function that makes all of them makes some. The backward pass makes
them once more, chunk by chunk.

>>> theta, phi, g = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
>>> y = average_by_rows(lambda theta, phi: (theta @ phi.mT).softmax(dim=2), theta, phi, g)
>>> torch.allclose(y, (theta @ phi.mT).softmax(dim=2) @ g, atol=1e-6)
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nonlocal_nn.ops import dispatch
from nonlocal_nn.ops.checks import without_autocast, working_dtype
from nonlocal_nn.ops.cpu.workspace import check_budget

Affinity = Callable[[Tensor, Tensor], Tensor]


def chunk_bytes(keys: int, like: Tensor, memory_budget: int | None, buffers: int) -> int:
    """What one chunk of weights (rows x keys) may take, where a form has so many `buffers` of that size.

    A budget of 0 means no more than is needed to be fast.
    """
    limits = dispatch.THRESHOLDS
    if like.device.type == "cuda":
        usual = limits.gpu_chunk_bytes
    else:
        rows = limits.chunk_rows * keys * like.element_size()
        usual = max(limits.cpu_chunk_bytes, min(2 * limits.cpu_chunk_bytes, rows))
    return min(usual, memory_budget // buffers) if memory_budget else usual


def chunks(
    batch: int, queries: int, row_bytes: int, most_bytes: int, *, single: bool = False
) -> Iterator[tuple[slice, slice]]:
    """Batch and query slices that cover everything, each with at most `most_bytes` of weights (or one row).

    >>> [(b.start, b.stop, q.start, q.stop) for b, q in chunks(2, 5, row_bytes=10, most_bytes=30)]
    [(0, 1, 0, 3), (0, 1, 3, 5), (1, 2, 0, 3), (1, 2, 3, 5)]

    single: one entry of the batch at a time.
    """
    rows = max(1, most_bytes // max(1, row_bytes))
    # Small matrices (one frame, one position across frames) go many at a time, large ones in equal parts.
    batch_step = 1 if single else max(1, rows // max(1, queries))
    rows = -(-queries // -(-queries // rows)) if queries else 1
    for first in range(0, batch, batch_step):
        for row in range(0, queries, rows):
            yield slice(first, min(first + batch_step, batch)), slice(row, min(row + rows, queries))


def made_again(function: Callable[..., object], *arguments: object) -> object:
    """What `function` gives; the backward pass makes its intermediate results again instead of keeping them.

    Under torch.func, which does not know how, they are kept.
    """
    if torch._C._are_functorch_transforms_active() or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)


def average_by_rows(
    affinity: Affinity, theta: Tensor, phi: Tensor, g: Tensor, memory_budget: int | None = None
) -> Tensor:
    """Y (batch, queries, channels) for theta (batch, queries, ...), phi (batch, keys, ...) and g.

    Half precisions are computed in float32. In a compiled or exported program, which is one for many sizes,
    all rows are made at once.

    Raises:
        ValueError: for an affinity whose result is not (batch, queries, keys).
    """
    check_budget(memory_budget)
    dtype, work = g.dtype, working_dtype(g.dtype)
    theta, phi, g = theta.to(work), phi.to(work), g.to(work)
    (batch, keys), queries = phi.shape[:2], theta.shape[1]

    with without_autocast(g.device):
        if torch.compiler.is_compiling() or dispatch.plain_operations():
            return _average(affinity, theta, phi, g).to(dtype)
        # A function of its own may need several matrices of this size.
        rows = max(1, chunk_bytes(keys, g, memory_budget, 4) // max(1, batch * keys * g.element_size()))
        if rows >= queries:
            return _average(affinity, theta, phi, g).to(dtype)
        parts = [made_again(_average, affinity, part, phi, g) for part in torch.split(theta, rows, dim=1)]
        return torch.cat(parts, dim=1).to(dtype)  # type: ignore[arg-type]


def _average(affinity: Affinity, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    weights = affinity(theta, phi)
    expected = (theta.shape[0], theta.shape[1], phi.shape[1])
    if tuple(weights.shape) != expected:
        raise ValueError(
            f"the affinity must be (batch, queries, keys) = {expected}, got {tuple(weights.shape)}"
        )
    return weights @ g
