"""Matrix products on the CPU by the faster of the two libraries that torch holds.

>>> left, right = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
>>> torch.allclose(product(left, right), left @ right.transpose(1, 2), atol=1e-6)
True

torch multiplies float32 matrices with MKL, which uses half the width of an AMD processor's AVX-512 units:
512 x 256 by 256 x 3136 on two cores of an EPYC ran at 201 GFLOP/s. oneDNN, which torch uses for convolutions,
ran at 437 on the same matrices. Which one is used depends on the processor and on shapes alone, so that
results are the same bits from run to run.

oneDNN rearranges the right matrix at every call. Where one meets many left ones, `Right` does it once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LARGEST_RESULT_BYTES = 31 * 2**20  # glibc's own bound is 32 MiB
SMALL = 2**21  # multiplications from which a call of oneDNN for each matrix pays
# Left matrices from which rearranging the right one pays: it costs what it saves in 2 to 4 products, or in 13
# where it lies transposed in memory and is wide (784 x 512: 0.4 ms, for 0.06 less in each of 1.2).
SOME_USES, MANY_USES = 4, 16


@cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    """OneDNN's x w^T, where it is the faster library."""
    if not torch.backends.mkldnn.is_available() or not _is_amd_avx512():  # type: ignore[no-untyped-call]
        return None
    try:
        linear: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        linear(torch.ones(2, 3), torch.ones(4, 3), None, "none", [], "")
    except (AttributeError, RuntimeError):  # a build of torch without it
        return None
    # It makes its results in new memory. glibc takes memory of a size from the system, and gives it back,
    # page faults and all, until a larger piece has been freed once; an untouched one costs nothing.
    torch.empty(LARGEST_RESULT_BYTES, dtype=torch.uint8)
    return linear


def _is_amd_avx512() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    processor = text.partition("\n\n")[0]
    return "AuthenticAMD" in processor and " avx512f " in processor


def uses_onednn(like: Tensor, rows: int, columns: int, k: int) -> bool:
    """Whether products of this size and kind go to oneDNN, one matrix of a batch at a time.

    >>> uses_onednn(torch.zeros(1, dtype=torch.float64), 1000, 1000, 1000)
    False
    """
    return (
        rows * columns * k >= SMALL
        and type(like) is Tensor
        and like.dtype == torch.float32
        and like.device.type == "cpu"
        and bool(torch.backends.mkldnn.enabled)
        and _onednn_linear() is not None
    )


def product(left: Tensor, right: Tensor, out: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
    """Left (batch, rows, k) times right (batch, columns, k) transposed: (batch, rows, columns).

    The result may lie in `out` or in memory of its own. Right may be transposed in memory at no cost; left
    is copied for oneDNN, which is slow there. bias (columns,) is added to each row.
    """
    if _goes_to_onednn(left, right):
        return _linear(left[0], _dense(right[0]), bias).unsqueeze(0)
    if bias is not None:
        return torch.baddbmm(bias, left, right.transpose(1, 2), out=out)
    if out is None:
        return torch.bmm(left, right.transpose(1, 2))
    return torch.bmm(left, right.transpose(1, 2), out=out)


def add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Target (batch, rows, columns) += left (batch, rows, k) right (batch, columns, k)^T."""
    if _goes_to_onednn(left, right):
        target[0].add_(_linear(left[0], _dense(right[0])))
    else:
        target.baddbmm_(left, right.transpose(1, 2))


class Right:
    """A right matrix (batch, columns, k) that is multiplied with `uses` left ones of about `rows` rows.

    >>> left, right = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    >>> torch.allclose(Right(right, rows=5, uses=2).product(slice(0, 1), left), product(left, right))
    True

    It is rearranged where it meets enough left ones for that to pay.

    longest_sum: where oneDNN multiplies, products over more than so many numbers are made in parts, which are
    added. It adds up one product after the other, and its rounding errors grow with the length; MKL cuts
    sums by itself.
    """

    def __init__(self, right: Tensor, rows: int, uses: int, longest_sum: int | None = None) -> None:
        self._right, self._rows = right, rows
        columns, k = right.shape[1:]
        self._rearranges = uses >= (MANY_USES if right.mT.is_contiguous() and k < columns else SOME_USES)
        self._step = -(-k // -(-k // longest_sum)) if longest_sum and k else max(1, k)
        self._packed: list[Tensor] = []
        self._packed_item = -1

    def product(
        self, some: slice, left: Tensor, out: Tensor | None = None, *, bias: Tensor | None = None
    ) -> Tensor:
        """Left (some of the batch, rows, k) times these transposed, as the function `product`."""
        right = self._right[some]
        if not _goes_to_onednn(left, right):
            return product(left, right, out, bias=bias)
        if self._packed_item != some.start:
            self._packed = [self._prepared(_dense(part)) for part in self._parts(right[0])]
            self._packed_item = some.start
        lefts = self._parts(left[0])
        made = _linear(lefts[0], self._packed[0], bias)
        for part, packed in zip(lefts[1:], self._packed[1:], strict=True):
            made.add_(_linear(part, packed))
        return made.unsqueeze(0)

    def _prepared(self, right: Tensor) -> Tensor:
        if not self._rearranges:
            return right
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(right, self._rows)
        return packed

    def _parts(self, matrix: Tensor) -> list[Tensor]:
        return [matrix[:, first : first + self._step] for first in range(0, matrix.shape[1], self._step)]


def _goes_to_onednn(left: Tensor, right: Tensor) -> bool:
    batch, rows, k = left.shape
    return batch == 1 and uses_onednn(left, rows, right.shape[1], k)


def _linear(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    linear = _onednn_linear()
    assert linear is not None, "uses_onednn says so"
    return linear(left.contiguous(), right, bias, "none", [], "")


def _dense(right: Tensor) -> Tensor:
    """Without gaps between rows, or columns: with them oneDNN takes a path that is a hundred times slower."""
    return right if right.is_contiguous() or right.T.is_contiguous() else right.contiguous()
