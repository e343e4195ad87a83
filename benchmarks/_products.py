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
from nonlocal_nn.ops.cpu.gemm import add_product, product
from nonlocal_nn.ops.layout import empty_as

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
    rows = max(64, FASTEST_CHUNK_BYTES // (operands.case.keys * g.element_size()))

    @torch.no_grad()
    def call() -> tuple[Tensor, ...]:
        y, dtheta = g.new_empty(1, theta.shape[1], g.shape[2]), torch.empty_like(theta)
        dphi, dg = empty_as(phi.mT.contiguous().mT, phi.shape[1]), empty_as(g.mT.contiguous().mT, g.shape[1])
        for first in range(0, theta.shape[1], rows):
            some = slice(first, first + rows)
            logits = product(theta[:, some], phi)
            y[:, some] = product(logits, g.mT)
            if operands.case.backward:
                add_product(dg.mT, u[:, some].mT, logits.mT, first=first == 0)
                dl = product(u[:, some], g)
                dtheta[:, some] = product(dl, phi.mT)
                add_product(dphi.mT, theta[:, some].mT, dl.mT, first=first == 0)
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
