"""The pool in front of phi and g: keys at a quarter of the places of every frame (section 3.3 of the paper).

>>> import torch
>>> SpacePool(dims=3)(torch.randn(1, 8, 4, 7, 6)).shape
torch.Size([1, 8, 4, 3, 3])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonlocal_nn.ops.dispatch import plain_operations


class SpacePool(nn.Module):
    """The largest of 2x2 in space, never across time; dims=1 has one axis, which is halved.

    >>> SpacePool(dims=1)(torch.tensor([[[1.0, 3.0, 2.0, 0.0, 9.0]]]))  # the last has no partner
    tensor([[[3., 2.]]])

    torch's max pooling goes from place to place on the CPU. Where no gradient is needed, the larger of two
    halves, once along each axis, gives the same numbers faster: with torch's pool a dot-product block takes
    1.31 times as long on 4x28x28 positions of 512 channels, 1.49 on 64x64 of 256.

    Args:
        dims: position axes of x, 1 to 3: (batch, channels, *positions).
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """The pooled map, with every spatial axis halved and rounded down."""
        if self._may_take_halves(x):
            for axis in range(x.dim() - min(self.dims, 2), x.dim()):
                even, odd = x.unfold(axis, 2, 2).unbind(-1)
                x = torch.maximum(even, odd)
            return x
        if self.dims == 1:  # max_pool1d would bind an exported program to one size
            return F.max_pool2d(x.unsqueeze(2), (1, 2)).squeeze(2)
        return F.max_pool2d(x, 2) if self.dims == 2 else F.max_pool3d(x, (1, 2, 2))

    def _may_take_halves(self, x: Tensor) -> bool:
        """On the CPU, without gradients, in eager mode, where channels come first."""
        return (
            not (torch.compiler.is_compiling() or plain_operations())
            and not (torch.is_grad_enabled() and x.requires_grad)
            and x.device.type == "cpu"
            and x.is_contiguous()
            and min(x.shape[-min(self.dims, 2) :]) > 1
            and not torch._C._are_functorch_transforms_active()
        )

    def extra_repr(self) -> str:
        """For print(block)."""
        return f"dims={self.dims}"
