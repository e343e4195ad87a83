"""What every form of the operation asks of its inputs, said once.

>>> import torch
>>> working_dtype(torch.bfloat16)
torch.float32
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type sums are held in: float32 for the half precisions, else the type of the data itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _shapes(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())


def _check_kind(tensors: dict[str, Tensor]) -> None:
    first, *others = tensors.values()
    dtype, device = first.dtype, first.device
    if not dtype.is_floating_point or any(other.dtype != dtype for other in others):
        listed = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise ValueError(f"the inputs must share one floating-point dtype, got {listed}; cast them first")
    if any(other.device != device for other in others):
        listed = ", ".join(f"{name} {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"the inputs must be on one device, got {listed}")


def check_embeddings(
    theta: Tensor, phi: Tensor, g: Tensor | None = None, *, keys_elsewhere: bool = False
) -> None:
    """Theta (batch, queries, d), phi (batch, keys, d) and g (batch, keys, channels) fit together.

    `keys_elsewhere`: other processes hold more of the keys, so there may be none here.

    Raises:
        ValueError: with all the shapes, when they do not, or when there is no key to look at.
    """
    tensors = {"theta": theta, "phi": phi}
    if g is not None:
        tensors["g"] = g
    if theta.dim() != 3 or phi.dim() != 3 or (g is not None and g.dim() != 3):
        raise ValueError(f"expected (batch, positions, channels) tensors of rank 3, got {_shapes(tensors)}")
    if theta.shape[0] != phi.shape[0] or theta.shape[2] != phi.shape[2]:
        raise ValueError(f"theta and phi must agree in batch and channels, got {_shapes(tensors)}")
    if g is not None and g.shape[:2] != phi.shape[:2]:
        raise ValueError(f"g needs one row for each key of phi, got {_shapes(tensors)}")
    if phi.shape[1] == 0 and not keys_elsewhere:
        raise ValueError(f"at least one key is needed to average over, got {_shapes(tensors)}")
    _check_kind(tensors)


def check_scores(a: Tensor, b: Tensor, g: Tensor | None = None, *, keys_elsewhere: bool = False) -> None:
    """Scores a (batch, queries), b (batch, keys) and g (batch, keys, channels) fit together.

    `keys_elsewhere`: other processes hold more of the keys, so there may be none here.

    Raises:
        ValueError: with all the shapes, when they do not, or when there is no key to look at.
    """
    tensors = {"a": a, "b": b}
    if g is not None:
        tensors["g"] = g
    if a.dim() != 2 or b.dim() != 2 or (g is not None and g.dim() != 3):
        raise ValueError(
            f"expected a (batch, queries), b (batch, keys), g (batch, keys, channels), got {_shapes(tensors)}"
        )
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"a and b must agree in batch, got {_shapes(tensors)}")
    if g is not None and g.shape[:2] != b.shape:
        raise ValueError(f"g needs one row for each key of b, got {_shapes(tensors)}")
    if b.shape[1] == 0 and not keys_elsewhere:
        raise ValueError(f"at least one key is needed to average over, got {_shapes(tensors)}")
    _check_kind(tensors)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off on the device, if it is on; "meta", which has shapes alone, knows no autocast."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
