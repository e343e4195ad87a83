"""Where Triton's programs run.

>>> available(torch.device("meta"))
False
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

OLDEST = (8, 0)  # compute capability: what Triton supports


def available(device: torch.device) -> bool:
    """Whether programs run on tensors of this device.

    That is: Triton is installed, and the device is an NVIDIA GPU of compute capability 8.0 or higher, or the
    CPU while Triton interprets its programs (TRITON_INTERPRET=1: slow, for tests).
    """
    if not _triton_is_installed():
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability(device) >= OLDEST
    )


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton starts programs on the current GPU: make that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None
