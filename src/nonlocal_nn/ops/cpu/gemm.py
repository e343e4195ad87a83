"""GEMM on the CPU by the faster of the two libraries that torch holds.

>>> left, right = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
>>> torch.allclose(product(left, right), left @ right.mT, atol=1e-6)
True

torch multiplies float32 matrices with MKL, which uses half the width of an AMD processor's AVX-512 units:
512 x 256 by 256 x 3136 on two cores of an EPYC ran at 201 GFLOP/s. oneDNN, which torch uses for convolutions,
ran at 437 on the same matrices; a block takes up to 1.84 times as long without it. Which one is used depends
on the processor and on shapes alone, so that results are the same bits from run to run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nonlocal_nn.ops import dispatch
from nonlocal_nn.ops.cpu.workspace import keep_freed_memory

# AMD processors from this family on have AVX-512 units of the whole width. Family 25 has them of half the
# width, where oneDNN gains 1.1x at most.
_WHOLE_WIDTH_FAMILY = 26


@cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    """OneDNN's x w^T, where it is the faster library."""
    if not torch.backends.mkldnn.is_available() or not _is_wide_amd():  # type: ignore[no-untyped-call]
        return None
    try:
        linear: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        linear(torch.ones(2, 3), torch.ones(4, 3), None, "none", [], "")
    except (AttributeError, RuntimeError):  # a build of torch without it
        return None
    keep_freed_memory()  # it makes its results in new memory
    return linear


def _is_wide_amd() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    processor = text.partition("\n\n")[0]
    family = re.search(r"^cpu family\s*: (\d+)$", processor, re.MULTILINE)
    is_amd = "AuthenticAMD" in processor and " avx512f " in processor
    return is_amd and family is not None and int(family[1]) >= _WHOLE_WIDTH_FAMILY


def uses_onednn(like: Tensor, rows: int, columns: int, k: int) -> bool:
    """Whether products of this size and kind go to oneDNN, one matrix of a batch at a time.

    >>> uses_onednn(torch.zeros(1, dtype=torch.float64), 1000, 1000, 1000)
    False
    """
    return rows * columns * k >= dispatch.THRESHOLDS.onednn_multiplications and has_onednn(like)


def has_onednn(like: Tensor) -> bool:
    """Whether oneDNN is the faster library for tensors of this kind on this processor."""
    return (
        type(like) is Tensor
        and like.dtype == torch.float32
        and like.device.type == "cpu"
        and bool(torch.backends.mkldnn.enabled)
        and _onednn_linear() is not None
    )


def product(left: Tensor, right: Tensor, out: Tensor | None = None, longest_sum: int | None = None) -> Tensor:
    """Left (batch, rows, k) times right (batch, columns, k) transposed: (batch, rows, columns).

    The result may lie in `out` or in memory of its own. Right may be transposed in memory at no cost; left
    is copied for oneDNN, which is slow there.

    longest_sum: oneDNN adds up one product after the other, and its rounding error grows with k. Sums over
    more than this many products are made in parts; MKL cuts sums by itself.
    """
    batch, rows, k = left.shape
    if batch != 1 or not uses_onednn(left, rows, right.shape[1], k):
        return torch.bmm(left, right.mT) if out is None else torch.bmm(left, right.mT, out=out)
    if longest_sum is None or k <= longest_sum:
        return _linear(left[0], right[0]).unsqueeze(0)
    step = -(-k // -(-k // longest_sum))
    first, *others = zip(torch.split(left[0], step, dim=1), torch.split(right[0], step, dim=1), strict=True)
    made = _linear(*first)
    for part in others:
        made.add_(_linear(*part))
    return made.unsqueeze(0)


def add_product(target: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Target (batch, rows, columns) += left (batch, rows, k) right (batch, columns, k)^T; = if `first`."""
    batch, rows, k = left.shape
    if batch != 1 or not uses_onednn(left, rows, right.shape[1], k):
        target.baddbmm_(left, right.mT, beta=0 if first else 1)
    elif first:
        target[0].copy_(_linear(left[0], right[0]))
    else:
        target[0].add_(_linear(left[0], right[0]))


def _linear(left: Tensor, right: Tensor) -> Tensor:
    linear = _onednn_linear()
    assert linear is not None, "uses_onednn says so"
    # With gaps between rows, or columns, oneDNN takes a path that is a hundred times slower.
    dense = right if right.is_contiguous() or right.T.is_contiguous() else right.contiguous()
    return linear(left.contiguous(), dense, None, "none", [], "")
