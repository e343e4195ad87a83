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

import re
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
WHOLE_WIDTH = 26  # AMD processors from this family on have AVX-512 units of the whole width


@cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    """OneDNN's x w^T, where it is the faster library."""
    if not torch.backends.mkldnn.is_available() or _amd_avx512_family() is None:  # type: ignore[no-untyped-call]
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


@cache
def _amd_avx512_family() -> int | None:
    """The family of an AMD processor with AVX-512, else None.

    Family 25 (Zen 4) has units of half the width, so that MKL comes near oneDNN; later ones have whole ones.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    processor = text.partition("\n\n")[0]
    family = re.search(r"^cpu family\s*: (\d+)$", processor, re.MULTILINE)
    if family is None or "AuthenticAMD" not in processor or " avx512f " not in processor:
        return None
    return int(family[1])


def has_whole_width() -> bool:
    """Whether oneDNN, where it is used, is about twice as fast as MKL."""
    family = _amd_avx512_family()
    return family is not None and family >= WHOLE_WIDTH


def has_half_width() -> bool:
    """Whether oneDNN, where it is used, is a little faster than MKL."""
    return _amd_avx512_family() is not None and not has_whole_width()


def uses_onednn(like: Tensor, rows: int, columns: int, k: int) -> bool:
    """Whether products of this size and kind go to oneDNN, one matrix of a batch at a time.

    >>> uses_onednn(torch.zeros(1, dtype=torch.float64), 1000, 1000, 1000)
    False
    """
    return rows * columns * k >= SMALL and _onednn_takes(like)


def _onednn_takes(like: Tensor) -> bool:
    return (
        type(like) is Tensor
        and like.dtype == torch.float32
        and like.device.type == "cpu"
        and bool(torch.backends.mkldnn.enabled)
        and _onednn_linear() is not None
    )


def is_transposed(x: Tensor) -> bool:
    """Whether (batch, positions, channels) lies in memory as maps do, channels before positions.

    >>> is_transposed(torch.zeros(1, 4, 3).mT), is_transposed(torch.zeros(1, 3, 4))
    (True, False)
    """
    return x.mT.is_contiguous() and not x.is_contiguous()


def product(left: Tensor, right: Tensor, out: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
    """Left (batch, rows, k) times right (batch, columns, k) transposed: (batch, rows, columns).

    The result may lie in `out` or in memory of its own. Right may be transposed in memory at no cost; left
    is copied for oneDNN, which is slow there. bias (columns,) is added to each row.
    """
    if _goes_to_onednn(left, right):
        return _linear(left[0], _dense(right[0]), bias).unsqueeze(0)
    return _torch_product(left, right, out, bias)


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
        self.rearranges = uses >= (MANY_USES if right.mT.is_contiguous() and k < columns else SOME_USES)
        self._cut = longest_sum is not None and k > longest_sum
        self._step = -(-k // -(-k // longest_sum)) if longest_sum and k else max(1, k)
        self._packed: list[Tensor] = []
        self._packed_item = -1

    def product(
        self, some: slice, left: Tensor, out: Tensor | None = None, *, bias: Tensor | None = None
    ) -> Tensor:
        """Left (some of the batch, rows, k) times these transposed, as the function `product`."""
        right = self._right[some]
        if self._is_left_to_torch(left) or not _goes_to_onednn(left, right):
            return _torch_product(left, right, out, bias)
        if self._packed_item != some.start:
            self._packed = [self._prepared(_dense(part)) for part in self._parts(right[0])]
            self._packed_item = some.start
        lefts = self._parts(left[0])
        made = _linear(lefts[0], self._packed[0], bias)
        for part, packed in zip(lefts[1:], self._packed[1:], strict=True):
            made.add_(_linear(part, packed))
        return made.unsqueeze(0)

    def _is_left_to_torch(self, left: Tensor) -> bool:
        """Where oneDNN gains little, copies for it and sums in parts cost more, unless many calls follow."""
        return not (self.rearranges or has_whole_width()) and (self._cut or not left.is_contiguous())

    def transposed_product(self, some: slice, left: Tensor) -> Tensor:
        """As `product`, laid out (some of the batch, columns, rows) in memory."""
        return product(self._right[some], left).transpose(1, 2)

    def _prepared(self, right: Tensor) -> Tensor:
        if not self.rearranges:
            return right
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(right, self._rows)
        return packed

    def _parts(self, matrix: Tensor) -> list[Tensor]:
        return [matrix[:, first : first + self._step] for first in range(0, matrix.shape[1], self._step)]


class SumOfProducts:
    """Products left^T right of (batch, k, columns) and (batch, k, channels), added up over chunks of k.

    >>> left, right = torch.randn(1, 6, 4), torch.randn(1, 6, 3)
    >>> made = SumOfProducts(torch.empty(1, 4, 3))
    >>> made.add(slice(0, 1), left[:, :5], right[:, :5])
    >>> made.add(slice(0, 1), left[:, 5:], right[:, 5:])
    >>> torch.allclose(made.result(), left.mT @ right, atol=1e-6)
    True

    like: of the shape (batch, columns, channels) and kind of the sum. All chunks of an entry of the batch
    come before those of the next.
    """

    def __init__(self, like: Tensor) -> None:
        batch, columns, channels = like.shape
        # As maps lie in memory; and as oneDNN reads left, the large one, without a copy.
        self._transposed = is_transposed(like) or (_onednn_takes(like) and has_whole_width())
        shape = (batch, channels, columns) if self._transposed else like.shape
        self._sum = like.new_empty(shape)
        self._begun = 0  # entries of the batch

    def add(self, some: slice, left: Tensor, right: Tensor) -> None:
        """One chunk more, for these entries of the batch."""
        target, first = self._sum[some], some.stop > self._begun
        self._begun = some.stop
        if not self._transposed:
            target.baddbmm_(left.transpose(1, 2), right, beta=0 if first else 1)
            return
        if first:
            target.copy_(product(right.transpose(1, 2), left.transpose(1, 2)))
        else:
            add_product(target, right.transpose(1, 2), left.transpose(1, 2))

    def result(self) -> Tensor:
        """The sum (batch, columns, channels); zeros where nothing was added."""
        if self._begun == 0:
            self._sum.zero_()
        return self._sum.transpose(1, 2) if self._transposed else self._sum


def _goes_to_onednn(left: Tensor, right: Tensor) -> bool:
    batch, rows, k = left.shape
    return batch == 1 and uses_onednn(left, rows, right.shape[1], k)


def _torch_product(left: Tensor, right: Tensor, out: Tensor | None, bias: Tensor | None) -> Tensor:
    if bias is not None:
        return torch.baddbmm(bias, left, right.transpose(1, 2), out=out)
    if out is None:
        return torch.bmm(left, right.transpose(1, 2))
    return torch.bmm(left, right.transpose(1, 2), out=out)


def _linear(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    linear = _onednn_linear()
    assert linear is not None, "uses_onednn says so"
    return linear(left.contiguous(), right, bias, "none", [], "")


def _dense(right: Tensor) -> Tensor:
    """Without gaps between rows, or columns: with them oneDNN takes a path that is a hundred times slower."""
    return right if right.is_contiguous() or right.T.is_contiguous() else right.contiguous()
