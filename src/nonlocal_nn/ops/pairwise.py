"""Eq. 1 of the paper, exact, without the queries x keys matrix: memory linear in N, forward and backward.

>>> import torch
>>> from nonlocal_nn.ops import equation
>>> theta, phi, g = torch.randn(2, 70, 8), torch.randn(2, 60, 8), torch.randn(2, 60, 5)
>>> torch.allclose(gaussian(theta, phi, g), equation.gaussian(theta, phi, g), atol=1e-6)
True

Same names, arguments and results as `nonlocal_nn.ops.equation`. Half precisions are summed in float32, also
under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nonlocal_nn._typing import Float
from nonlocal_nn.ops import equation as reference
from nonlocal_nn.ops import softmax_operator  # noqa: F401 - the import registers the operator
from nonlocal_nn.ops.checks import check_embeddings, check_scores, without_autocast, working_dtype
from nonlocal_nn.ops.concatenation import HingeSum
from nonlocal_nn.ops.cpu import small
from nonlocal_nn.ops.cpu.gemm import has_whole_width, is_transposed, uses_onednn
from nonlocal_nn.ops.cpu.workspace import check_budget
from nonlocal_nn.ops.dot_product import DotProductSum
from nonlocal_nn.ops.softmax import softmax_average


def _matrix_is_small(queries: int, keys: int, width: float) -> bool:
    """The queries x keys matrix has fewer elements than queries and keys of that width: it may be made."""
    return queries * keys < (queries + keys) * width


def _bracket_width(theta: Tensor, g: Tensor) -> float:
    """The width at which theta phi^T g costs as much as theta (phi^T g), which may have a faster library."""
    queries, d, channels = theta.shape[1], theta.shape[2], g.shape[2]
    speed = 0.5 if has_whole_width() and uses_onednn(theta, queries, channels, d) else 1.0
    return speed * d * channels / max(1, d + channels)


def gaussian(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
    scale: float = 1.0,
    *,
    memory_budget: int | None = None,
) -> Float[Tensor, "batch query channel"]:
    """y_i = sum_j softmax_j(scale theta_i . phi_j) g_j (Eqs. 1 to 3), a few query rows at a time.

    >>> import torch
    >>> theta, phi = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    >>> gaussian(theta, phi, torch.ones(1, 4, 2)).allclose(torch.ones(1, 5, 2))  # weights sum to one
    True

    The backward pass is faster with the weights of the forward pass kept, queries x keys of them. They are
    kept where they fit `memory_budget`, and made again, some at a time, where they do not: memory is then
    linear in the positions.

    memory_budget: bytes to be taken beside inputs, results and gradients; buffers follow from it, down to one
        row. None: 32 MiB or an eighth of the memory that is free, whichever is more. 0: keep nothing, with
        buffers as large as is fast.

    Second derivatives work and are slow; third ones raise an error, but for few positions
    (`nonlocal_nn.ops.cpu.small`).

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, with the offending values.
    """
    check_embeddings(theta, phi, g)
    check_budget(memory_budget)
    with without_autocast(theta.device):
        if torch.onnx.is_in_onnx_export():  # which needs the operation in ONNX's own operators
            dtype, work = theta.dtype, working_dtype(theta.dtype)
            return reference.gaussian(theta.to(work), phi.to(work), g.to(work), scale).to(dtype)
        return softmax_average(theta, phi, g, scale, memory_budget)


def dot_product(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
) -> Float[Tensor, "batch query channel"]:
    """y_i = 1/N sum_j (theta_i . phi_j) g_j (Eqs. 1 and 4), the products in the cheaper order.

    >>> import torch
    >>> dot_product(torch.ones(1, 1, 3), torch.ones(1, 2, 3), torch.tensor([[[1.0], [3.0]]]))
    tensor([[[6.]]])

    theta (phi^T g) / N has no queries x keys matrix, see `nonlocal_nn.ops.dot_product`. (theta phi^T) g / N
    is used where it is less work, that is queries keys (d + channels) < (queries + keys) d channels; its
    matrix is then smaller than the inputs.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, with the offending values.
    """
    check_embeddings(theta, phi, g)
    queries, keys = theta.shape[1], phi.shape[1]
    dtype, work = theta.dtype, working_dtype(theta.dtype)
    with without_autocast(theta.device):
        if work != dtype:
            theta, phi, g = theta.to(work), phi.to(work), g.to(work)
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():  # a program for many sizes
            y = theta @ ((phi.transpose(1, 2) @ g) / keys)
        elif _matrix_is_small(queries, keys, _bracket_width(theta, g)):
            y = small.weighted(torch.bmm(theta, phi.transpose(1, 2)) / keys, g)
        elif small.dot_product_suits(theta, phi, g):
            y = small.dot_product(theta, phi, g)
        else:
            y = DotProductSum.apply(theta, phi, g)[0]
        return y if work == dtype else y.to(dtype)


def concatenation(
    a: Float[Tensor, "batch query"],
    b: Float[Tensor, "batch key"],
    g: Float[Tensor, "batch key channel"],
) -> Float[Tensor, "batch query channel"]:
    """y_i = 1/N sum_j ReLU(a_i + b_j) g_j (Eqs. 1 and 5), sorted: O(N log N + N channels).

    >>> import torch
    >>> concatenation(torch.tensor([[1.0]]), torch.tensor([[3.0, -2.0]]), torch.tensor([[[1.0], [5.0]]]))
    tensor([[[2.]]])

    w_f . [theta_i, phi_j] of the paper is a_i + b_j with a_i = theta_i . w_f[:d] and b_j = phi_j . w_f[d:].
    See `nonlocal_nn.ops.concatenation` for the equations. For few positions all pairs are less work than
    sorting, and are what is computed: see `nonlocal_nn.ops.cpu.small`.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, with the offending values.
    """
    check_scores(a, b, g)
    queries, keys, channels = a.shape[1], b.shape[1], g.shape[2]
    dtype, work = g.dtype, working_dtype(g.dtype)
    with without_autocast(g.device):
        a, b, g = a.to(work), b.to(work), g.to(work)
        if torch.onnx.is_in_onnx_export():  # ONNX has no search in sorted numbers
            return (((a[:, :, None] + b[:, None, :]).relu() / keys) @ g).to(dtype)
        if torch.compiler.is_compiling():
            total: Tensor = torch.ops.nonlocal_nn.hinge_sums(a, b, g)
            return (total / keys).to(dtype)
        if small.concatenation_suits(g.shape[0], queries, keys, channels):
            return small.weighted((a[:, :, None] + b[:, None, :]).relu() / keys, g).to(dtype)
        y: Tensor = HingeSum.apply(a, b, g, 1 / keys)
        if is_transposed(g):  # as maps lie, so that the layers that follow need not turn them
            y = y.mT.contiguous().mT
        return y.to(dtype)
