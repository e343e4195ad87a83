"""The pool in front of phi and g: keys at a quarter of the places of every frame (section 3.3 of the paper).

>>> import torch
>>> SpacePool(dims=3)(torch.randn(1, 8, 4, 7, 6)).shape
torch.Size([1, 8, 4, 3, 3])
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW = 2**16  # numbers in a map, below which torch's own pool is faster forward and backward


class SpacePool(nn.Module):
    """The largest of 2x2 in space, never across time; dims=1 has one axis, which is halved.

    >>> SpacePool(dims=1)(torch.tensor([[[1.0, 3.0, 2.0, 0.0, 9.0]]]))  # the last has no partner
    tensor([[[3., 2.]]])

    The same numbers and gradients as torch's max pooling, which on the CPU goes from place to place: a map of
    512 x 4x14x14 took it 1.25 ms on two cores, and the larger of two halves, once along each axis, 0.16.
    Small maps are left to torch.

    Args:
        dims: position axes of x, 1 to 3: (batch, channels, *positions).
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """The pooled map, with every spatial axis halved and rounded down."""
        if self._may_take_halves(x):
            # columns first: so the gradient of equal numbers goes where torch's goes
            for axis in range(x.dim() - 1, x.dim() - 1 - min(self.dims, 2), -1):
                x = _Larger.apply(x, axis) if _is_differentiated(x) else torch.maximum(*_pairs(x, axis))
            return x
        if self.dims == 1:
            return F.max_pool1d(x, 2)
        return F.max_pool2d(x, 2) if self.dims == 2 else F.max_pool3d(x, (1, 2, 2))

    def _may_take_halves(self, x: Tensor) -> bool:
        """On the CPU, of large maps whose channels come first, in eager mode without torch.func."""
        return (
            x.numel() >= FEW
            and x.device.type == "cpu"
            and x.is_contiguous()
            and min(x.shape[-min(self.dims, 2) :]) > 1
            and not (torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export())
            and not torch._C._are_functorch_transforms_active()
        )

    def extra_repr(self) -> str:
        """For print(block)."""
        return f"dims={self.dims}"


def _is_differentiated(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _pairs(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The even and the odd places along the axis; a last one without a partner is left out."""
    even, odd = x.unfold(axis, 2, 2).unbind(-1)
    return even, odd


class _Larger(torch.autograd.Function):
    """apply(x, axis): the larger of each pair, whose gradient goes to it, or to the first of equals."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int) -> Tensor:
        """Of each pair of neighbours along the axis."""
        ctx.save_for_backward(x)
        ctx.axis = axis
        return torch.maximum(*_pairs(x, axis))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        """Which of a pair is the larger is told again: cheaper than to keep it."""
        (x,), axis = ctx.saved_tensors, ctx.axis
        even, odd = _pairs(x, axis)
        is_odd = (odd > even).to(dy.dtype)  # numbers: `where` with strided results is slow
        if torch.is_grad_enabled():  # to be differentiated again
            both = torch.stack([dy * (1 - is_odd), dy * is_odd], dim=axis + 1)
            rest = torch.zeros_like(x.narrow(axis, 2 * dy.shape[axis], x.shape[axis] % 2))
            return torch.cat([both.flatten(axis, axis + 1), rest], dim=axis), None
        dx = torch.zeros_like(x) if x.shape[axis] % 2 else torch.empty_like(x)
        to_even, to_odd = _pairs(dx, axis)
        torch.mul(dy, is_odd, out=to_odd)
        torch.sub(dy, to_odd, out=to_even)
        return dx, None
