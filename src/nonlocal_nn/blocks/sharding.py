"""A block's map split over processes: which ones, and what each part must be.

>>> from nonlocal_nn.pairwise import get_pairwise
>>> Sharding.of(None, "spacetime", 1, get_pairwise("gaussian")) is None
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nonlocal_nn.distributed.agreement import agree, is_split
from nonlocal_nn.pairwise import PairwiseFunction


class Sharding:
    """The processes that a map is split over. A copy is split over the same ones; a pickle over none."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    @classmethod
    def of(
        cls, group: dist.ProcessGroup | None, span: str, temporal_groups: int, function: PairwiseFunction
    ) -> Sharding | None:
        """None where nothing has to be sent: no group, one process, or frames that see only themselves.

        Raises:
            ValueError: for temporal groups, a pairwise function without a form for several processes, or when
                this process is not in the group.
        """
        if not is_split(group) or span == "space":
            return None
        assert group is not None
        if temporal_groups != 1:
            raise ValueError(
                f"temporal_groups={temporal_groups} cannot be split over {dist.get_world_size(group)} "
                "processes, a run of frames could lie on two; give each process whole runs, unsharded"
            )
        function.check_sharded()
        return cls(group)

    def check(self, x: Tensor, check: Callable[[Tensor], None], *, pooled: bool, dims: int) -> None:
        """Whether every process's x passes `check` and is a part of one map.

        Raises:
            ValueError: on every process, when one of them has something else.
        """

        def describe() -> dict[str, Any]:
            if x.dim() > 2 and x.shape[2] == 0:
                raise ValueError(
                    f"each process needs a part of the map, got {tuple(x.shape)}; use fewer processes"
                )
            check(x)
            last = dist.get_rank(self.group) == dist.get_world_size(self.group) - 1
            if pooled and dims < 3 and x.shape[2] % 2 and not last:
                raise ValueError(
                    "a part that is pooled by 2 must be of even size along the first position axis, unless "
                    f"it is the last, got {tuple(x.shape)}"
                )
            return {
                "batch": x.shape[0],
                "other position axes": tuple(x.shape[3:]),
                "dtype": str(x.dtype).removeprefix("torch."),
                "gradients of x": torch.is_grad_enabled() and x.requires_grad,
            }

        agree(self.group, describe)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sharding:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _not_split, ()


def _not_split() -> None:
    """What a pickled `Sharding` is read as: processes cannot be written down."""
