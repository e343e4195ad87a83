"""The non-local operation as functions on (batch, positions, channels) tensors.

>>> import torch, nonlocal_nn as nl
>>> theta, phi, g = torch.randn(2, 10, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 4)
>>> nl.functional.gaussian(theta, phi, g).shape
torch.Size([2, 10, 4])

`sharded` has the same functions where positions are split over the processes of a `torch.distributed` group.
"""

from __future__ import annotations

from nonlocal_nn import distributed as sharded
from nonlocal_nn.ops.concatenation import concatenation
from nonlocal_nn.ops.dot_product import dot_product
from nonlocal_nn.ops.softmax import gaussian

__all__ = ["concatenation", "dot_product", "gaussian", "sharded"]
