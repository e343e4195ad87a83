"""Small maps: the sums as they are written, which torch differentiates by itself, and when they are faster.

What makes large maps fast, chunks, prepared matrices, sorting and backward passes of our own, costs a fixed
part of a millisecond. With few positions that is more than all the arithmetic. Forward and backward on two
cores of an EPYC 9004:

    7x7 positions, 512 channels                  0.59 ms, as written 0.38
    14x14, 128 channels                          1.16                0.62
    14x14 over pooled ones, 512 channels, of 32  32.0                16.9

The queries x keys matrix that is made here is bounded by the constants of this module (for concatenation: by
them and the number of inputs), so that memory stays linear in the number of positions.

>>> theta, phi, g = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
>>> torch.allclose(softmax(theta, phi, g, 1.0), (theta @ phi.mT).softmax(dim=2) @ g, atol=1e-6)
True
"""

from __future__ import annotations

import torch
from torch import Tensor

from nonlocal_nn.ops.cpu.gemm import has_whole_width, is_transposed, uses_onednn
from nonlocal_nn.ops.cpu.softmax_rows import TOO_SMALL

# Of weights, in a whole batch. At 1225 x 1225 positions, 6 MB, both ways take the same time.
SOFTMAX_BYTES = 5 * 2**20
SOFTMAX_COPIES = 4  # of the weights, which a backward pass holds at most
# Multiplications of a product, from which oneDNN at twice the speed makes up for what calling it costs.
SOFTMAX_WHOLE_WIDTH = 2**23
# Multiplications of theta S and phi^T g: 2 x 784 x 128 x 128 take 0.98 ms in both passes, not 1.10.
DOT_PRODUCT = 2**25
# Costs in concatenation, in units of 10 ps: of a pair, for each channel and without; and of sorting, for each
# number of g and y and without. They were measured from 49 x 49 to 1568 x 1568 positions.
PAIR_CHANNEL, PAIR = 1, 25
SORTED_NUMBER, SORTED = 130, 45_000_000


def softmax_suits(theta: Tensor, phi: Tensor, memory_budget: int | None) -> bool:
    """Whether the weights are few enough, on the CPU in eager mode.

    >>> few, many = torch.zeros(1, 50, 8), torch.zeros(1, 5000, 8)
    >>> softmax_suits(few, few, None), softmax_suits(few, few, 100), softmax_suits(few, many, None)
    (True, False, True)
    """
    if theta.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():  # a mapped axis may hold many such matrices
        return False
    queries, keys, d = theta.shape[1], phi.shape[1], theta.shape[2]
    size = theta.shape[0] * queries * keys * theta.element_size()
    if size > SOFTMAX_BYTES or (memory_budget is not None and memory_budget < SOFTMAX_COPIES * size):
        return False
    multiplications = queries * keys * d
    return not (
        multiplications >= SOFTMAX_WHOLE_WIDTH and has_whole_width() and uses_onednn(theta, queries, keys, d)
    )


def softmax(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    """y_i = sum_j softmax_j(scale theta_i . phi_j) g_j, in the inputs' own dtype."""
    logits = torch.bmm(theta if scale == 1 else theta * scale, phi.mT)
    if not logits.requires_grad:
        return weighted(torch.softmax(logits, dim=2, out=logits), g)
    p = torch.softmax(logits, dim=2)
    # Not seen by autograd, which would keep a second p: a weight of zero has no gradient in either way.
    torch.threshold_(p.data, TOO_SMALL[p.dtype], 0.0)
    return weighted(p, g)


def weighted(weights: Tensor, g: Tensor) -> Tensor:
    """Weights (batch, queries, keys) times g (batch, keys, channels), laid out in memory as g is.

    >>> weighted(torch.ones(1, 2, 3), torch.ones(1, 5, 3).mT).stride()
    (10, 1, 2)

    As maps lie, the layers that follow find what they expect: 8 x 1024 x 14x14 in another order took batch
    norm's backward pass 17 ms, and 1.
    """
    if not is_transposed(g):
        return torch.bmm(weights, g)
    if weights.requires_grad and g.shape[1] > g.shape[2]:  # then y is less to turn than the weights' gradient
        return torch.bmm(weights, g).mT.contiguous().mT
    return torch.bmm(g.mT, weights.mT).mT


def dot_product_suits(theta: Tensor, phi: Tensor, g: Tensor) -> bool:
    """Whether theta (phi^T g) is so little work that torch's own backward pass is the faster one."""
    batch, queries, d = theta.shape
    channels = g.shape[2]
    if batch * (queries + phi.shape[1]) * d * channels > DOT_PRODUCT:
        return False
    return not (has_whole_width() and uses_onednn(theta, queries, channels, d))


def dot_product(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Y = theta S with S = phi^T g / N, laid out in memory as g is.

    >>> dot_product(torch.ones(1, 1, 3), torch.ones(1, 2, 3), torch.tensor([[[1.0], [3.0]]]))
    tensor([[[6.]]])
    """
    if is_transposed(g):
        return torch.bmm(torch.bmm(g.mT, phi) / phi.shape[1], theta.mT).mT
    return torch.bmm(theta, torch.bmm(phi.mT, g) / phi.shape[1])


def concatenation_suits(batch: int, queries: int, keys: int, channels: int) -> bool:
    """Whether all pairs cost less than sorting.

    >>> [concatenation_suits(1, n, n, 256) for n in (49, 196, 784)]
    [True, True, False]
    """
    pairs = batch * queries * keys * (PAIR + PAIR_CHANNEL * channels)
    return pairs <= SORTED + SORTED_NUMBER * batch * (queries + keys) * channels
