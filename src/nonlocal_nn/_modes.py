"""Modes that a network is run or built in for a while: evaluation, and tensors without data.

>>> with meta_init():
...     layer = nn.Linear(10, 3)
>>> layer.weight.device, layer.training
(device(type='meta'), True)
>>> with evaluating(layer):
...     layer.training
False
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def evaluating(model: Callable[..., object]) -> Iterator[None]:
    """Dropout off, batch norm on its stored statistics; afterwards every module is in its own mode again.

    >>> net = nn.Sequential(nn.BatchNorm1d(3).eval(), nn.Dropout())
    >>> with evaluating(net):
    ...     [module.training for module in net]
    [False, False]
    >>> [module.training for module in net]
    [False, True]

    A function that is no module has no mode, and nothing is done.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class Skipping(TorchFunctionMode):
    """Calls of the functions given return their first argument as it is.

    >>> from torch.nn import functional as F
    >>> with Skipping({F.relu}):
    ...     F.relu(torch.tensor(-2.0))
    tensor(-2.)
    """

    def __init__(self, skipped: Container[object]) -> None:
        super().__init__()
        self.skipped = skipped

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.skipped:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_INITIALISERS = {
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.fill_,
    Tensor.zero_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.constant_,
}


@contextmanager
def meta_init() -> Iterator[None]:
    """New tensors are on device "meta", which has shapes alone, and initialisation does nothing.

    >>> with meta_init():
    ...     nn.Conv2d(3, 8, 3).weight.shape
    torch.Size([8, 3, 3, 3])

    `torch.device("meta")` alone would run every fill, at a cost that equals reading the weights from disk.
    """
    with torch.device("meta"), Skipping(_INITIALISERS):
        yield
