"""Precise batch norm: after training, every batch norm's statistics are measured again over many batches.

While training, batch norm keeps a moving average of statistics, most of them of weights that have changed
since. The authors' released code therefore measures them over 200 batches; here that is done once, with the
final weights. As in the literature (Wu & Johnson 2021, "Rethinking Batch in BatchNorm"), the mean is the mean
of the batches' means, and the variance comes from combined moments: E[x^2] - E[x]^2, with E[x^2] the mean of
the batches' var + mean^2. For batches of equal size that is the variance of all their positions taken
together, which the mean of the batches' variances would underestimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nonlocal_nn._modes import evaluating


@torch.no_grad()
def update_statistics(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    reduce_mean: Callable[[Tensor], Tensor] | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> int:
    """Set the running mean and variance of every batch norm in `model` from `batches`; returns how many there
    were.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> update_statistics(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])])
    2
    >>> model[0].running_mean.item(), model[0].running_var.item()
    (3.0, 5.0)

    Each batch goes through the model with batch norm as in training (so that deeper layers see inputs
    normalised by batch statistics) and the rest as in testing: dropout would only add noise. All batches must
    be of one size. Modes are put back; frozen batch norm is left alone. `reduce_mean` averages a tensor over
    the processes of a distributed run; `context` is what a forward pass runs in (autocast).

    Raises:
        ValueError: the model has batch norm but there was no batch to measure.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    layers = [layer for layer in layers if layer.running_mean is not None]
    if not layers:
        return 0
    sums = {id(layer): _Moments(layer) for layer in layers}
    momenta = [layer.momentum for layer in layers]
    hooks = [layer.register_forward_pre_hook(sums[id(layer)].add) for layer in layers]
    count = 0
    try:
        with evaluating(model):
            for layer in layers:
                layer.train()
                layer.momentum = 0.0  # the forward pass itself must not move what is being measured
            for batch in batches:
                with context():
                    model(batch)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if count == 0:
        raise ValueError("no batches to measure the batch norm statistics on")
    for layer in layers:
        sums[id(layer)].store(layer, count, reduce_mean)
    return count


class _Moments:
    """Sums over batches of the mean and the mean square of each channel, in float64."""

    def __init__(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None
        device = layer.running_mean.device
        self.mean = torch.zeros(layer.num_features, dtype=torch.float64, device=device)
        self.square = torch.zeros_like(self.mean)

    def add(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002
        x: Tensor = inputs[0]
        dims = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x.float(), dims, correction=0)
        mean, variance = mean.double(), variance.double()
        self.mean += mean
        self.square += variance + mean.square()

    def store(self, layer: _BatchNorm, count: int, reduce_mean: Callable[[Tensor], Tensor] | None) -> None:
        moments = torch.stack([self.mean, self.square]) / count
        if reduce_mean is not None:
            moments = reduce_mean(moments)
        mean, square = moments
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((square - mean.square()).clamp_min(0))
