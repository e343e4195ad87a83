"""The matrix products that a softmax average cannot do without, and nothing else: the machine's own rate.

Forward theta phi^T and p g; backward p^T u, u g^T, l phi and l^T theta. All into buffers that are there
already. In one piece the queries x keys buffer goes through memory; in chunks of rows it stays in the cache.

`whole` and `chunked` are torch.mm. Some processors are driven harder by another library that torch holds, and
our operators use it there (`nonlocal_nn.ops.cpu.gemm`): `fastest` is the same by way of that, so that the
limit is the machine's and not a library's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from _operands import Operands
from nonlocal_nn.ops.cpu.gemm import Right, SumOfProducts

CHUNK_BYTES = 4 * 2**20
FASTEST_CHUNK_BYTES = 16 * 2**20
SQUARE = 2048


def whole(operands: Operands) -> Callable[[], tuple[Tensor, ...]]:
    """The products in one piece."""
    return _products(operands, operands.case.queries)


def chunked(operands: Operands) -> Callable[[], tuple[Tensor, ...]]:
    """The products a few rows at a time."""
    leaves, case = operands.leaves, operands.case
    rows = CHUNK_BYTES // (case.keys * leaves["g"].element_size())
    return _products(operands, min(case.queries, max(64, rows)))


def fastest(operands: Operands) -> Callable[[], tuple[Tensor, ...]]:
    """The products a few rows at a time, each by the faster library."""
    leaves = {name: value.detach() for name, value in operands.leaves.items()}
    theta, g = leaves["theta"], leaves["g"]
    phi, u = leaves.get("phi", theta), operands.dy
    y_shape = (1, operands.case.queries, operands.case.inner)
    size = g.element_size()
    rows = max(64, FASTEST_CHUNK_BYTES // (operands.case.keys * size))
    uses = -(-operands.case.queries // rows)
    backward = operands.case.backward
    one_item = slice(0, 1)
    phi_rows, g_columns = phi.transpose(1, 2), g.transpose(1, 2)

    @torch.no_grad()
    def call() -> tuple[Tensor, ...]:
        y, dtheta = g.new_empty(y_shape), torch.empty_like(theta)
        dphi, dg = SumOfProducts(phi), SumOfProducts(g)
        keys, values, columns, phis = (Right(one, rows, uses) for one in (phi, g_columns, g, phi_rows))
        for first in range(0, theta.shape[1], rows):
            some = slice(first, first + rows)
            logits = keys.product(one_item, theta[:, some])
            y[:, some] = values.product(one_item, logits)
            if backward:
                dg.add(one_item, logits, u[:, some])
                dl = columns.product(one_item, u[:, some])
                dtheta[:, some] = phis.product(one_item, dl)
                dphi.add(one_item, dl, theta[:, some])
        return (y,)

    return call


def _products(operands: Operands, rows: int) -> Callable[[], tuple[Tensor, ...]]:
    leaves = {name: value.detach()[0] for name, value in operands.leaves.items()}
    theta, g = leaves["theta"], leaves["g"]
    phi = leaves.get("phi", theta)
    p, y = theta.new_empty(rows, phi.shape[0]), g.new_empty(theta.shape[0], g.shape[1])
    u = operands.dy[0] if operands.case.backward else y
    gradients = [torch.zeros_like(value) for value in (theta, phi, g)] if operands.case.backward else []
    second = torch.empty_like(p) if gradients else p

    @torch.no_grad()
    def call() -> tuple[Tensor, ...]:
        for first in range(0, theta.shape[0], rows):
            some = slice(first, first + rows)
            count = theta[some].shape[0]
            logits = torch.mm(theta[some], phi.T, out=p[:count])
            torch.mm(logits, g, out=y[some])
            if not gradients:
                continue
            dtheta, dphi, dg = gradients
            dg.addmm_(logits.T, u[some], beta=float(first > 0))
            dl = torch.mm(u[some], g.T, out=second[:count])
            torch.mm(dl, phi, out=dtheta[some])
            dphi.addmm_(dl.T, theta[some], beta=float(first > 0))
        return (y,)

    return call


def square_rate_gflops(
    dtype: torch.dtype, device: str, seconds_of: Callable[[Callable[[], object]], float]
) -> float:
    """GFLOP/s of one square product, for comparison with what is printed elsewhere about the machine."""
    a, b = (torch.randn(SQUARE, SQUARE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * SQUARE**3 / seconds_of(lambda: torch.mm(a, b, out=out)) / 1e9
