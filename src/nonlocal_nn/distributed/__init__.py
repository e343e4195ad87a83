"""The pairwise operations where positions are split over the processes of a `torch.distributed` group.

>>> import torch, nonlocal_nn as nl
>>> theta, phi, g = torch.randn(2, 70, 8), torch.randn(2, 60, 8), torch.randn(2, 60, 5)
>>> y = nl.functional.sharded.gaussian(theta, phi, g, group=None)  # one process
>>> torch.equal(y, nl.functional.gaussian(theta, phi, g))
True

For clips too long for one device. Rank r passes its contiguous part of the queries and of the keys (parts may
differ in size, and some may be empty) and gets y for its own queries over the keys of all ranks: what
`nonlocal_nn.functional` gives for the whole, up to rounding. So are the gradients of the sum of all ranks'
losses, each with respect to the rank's own part. No rank holds more than a few shards at a time.

`group` is a process group (`torch.distributed.group.WORLD` for all processes, `mesh.get_group()` for one axis
of a device mesh), or None for positions that are not split. A call on one rank must be made on all of them,
in the same order, and so must every backward pass, for the same inputs. What is wrong on one rank is a
ValueError on all of them.
"""

from __future__ import annotations

from nonlocal_nn.distributed.agreement import sum_gradients
from nonlocal_nn.distributed.concatenation import concatenation
from nonlocal_nn.distributed.dot_product import dot_product
from nonlocal_nn.distributed.softmax import gaussian

__all__ = ["concatenation", "dot_product", "gaussian", "sum_gradients"]
