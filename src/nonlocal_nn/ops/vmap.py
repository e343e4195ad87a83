"""torch.func.vmap for operators on (batch, ...): a mapped axis is one more batch axis.

>>> import torch
>>> outputs, dims = fold_vmapped(lambda x, k: (x * k,), 3, (1, None), (torch.ones(2, 3, 4), 2.0))
>>> outputs[0].shape, dims
(torch.Size([3, 2, 4]), (0,))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def fold_vmapped(
    function: Callable[..., tuple[Tensor | None, ...]],
    mapped: int,
    in_dims: tuple[Any, ...],
    arguments: tuple[Any, ...],
) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """What an autograd function's `vmap` returns: outputs whose axis 0 has `mapped` entries, and those axes.

    Tensors are (batch, ...) once their mapped axis, `in_dims`, is taken away; what is no tensor is handed on.
    """

    def folded(value: Any, dim: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        x = value.expand(mapped, *value.shape) if dim is None else value.movedim(dim, 0)
        return x.flatten(0, 1)

    outputs = function(*(folded(value, dim) for value, dim in zip(arguments, in_dims, strict=True)))
    parts = tuple(
        None if out is None else out.reshape(mapped, out.shape[0] // max(1, mapped), *out.shape[1:])
        for out in outputs
    )
    return parts, tuple(None if part is None else 0 for part in parts)


def fold_vmapped_one(
    function: Callable[..., Tensor],
    mapped: int,
    in_dims: tuple[Any, ...],
    arguments: tuple[Any, ...],
) -> tuple[Tensor | None, int | None]:
    """`fold_vmapped` for a function that gives one tensor.

    >>> import torch
    >>> fold_vmapped_one(lambda x: x + 1, 3, (0,), (torch.zeros(3, 2),))[0].shape
    torch.Size([3, 2])
    """
    (output,), (dim,) = fold_vmapped(lambda *x: (function(*x),), mapped, in_dims, arguments)
    return output, dim
