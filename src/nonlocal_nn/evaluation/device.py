"""Where a model runs and in which number format."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from nonlocal_nn._launch import launched
from nonlocal_nn.evaluation.config import Precision

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name, after checking that this machine has it.

    >>> choose_device("cpu")
    device(type='cpu')

    `auto` is the first CUDA GPU, or else the CPU; of several processes on a machine each gets a GPU in turn.
    Apple's GPU (`mps`) is used when named, never by itself: not every 3-D pooling exists there.
    Raises ValueError for a device that torch does not know or this machine does not have.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        share = launched()
        if share.local_processes > 1:  # each has a GPU of its own
            return torch.device("cuda", share.local_rank % torch.cuda.device_count())
        return torch.device("cuda")
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device is called {name!r}; use auto, cpu, cuda, cuda:1, ... or mps") from None
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise ValueError(f"device {name!r} is not there: torch finds {found} CUDA GPUs; use --device cpu")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not there: this machine has no Apple GPU; use --device cpu")
    return device


def autocast(device: torch.device, precision: Precision = "32") -> AbstractContextManager[object]:
    """A context in which matrix products and convolutions run in the chosen format; weights stay as they are.

    >>> with autocast(torch.device("cpu"), "bf16-mixed"):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16

    Raises ValueError for a format that is none of 32, bf16-mixed and 16-mixed.
    """
    if precision == "32":
        return nullcontext()
    if precision not in _HALF:
        raise ValueError(f"precision {precision!r}: use 32, bf16-mixed or 16-mixed")
    return torch.autocast(device.type, dtype=_HALF[precision])
