"""Batch norm whose statistics are those of the clips of all processes: the same training on any number.

On a GPU that is torch's SyncBatchNorm. It refuses CPUs, for which `SharedBatchNorm` computes the same with
two sums over the processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nonlocal_nn.training.processes import is_distributed


def synchronise_norms(model: nn.Module, *, on_gpu: bool) -> nn.Module:
    """The model with every batch norm over space and time replaced, in place; its state's names stay.

    >>> model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    >>> type(synchronise_norms(model, on_gpu=False)[1]).__name__
    'SharedBatchNorm'
    """
    if on_gpu:
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):  # those of blocks, which start at zero, too
            module.__class__ = SharedBatchNorm  # the same parameters and buffers, another forward pass
    return model


class SharedBatchNorm(nn.BatchNorm3d):
    """Batch norm over the batches of all processes while it trains; with one process, nn.BatchNorm3d.

    The variance is the mean of squared deviations from the common mean; sums are float64, so that their
    rounding does not depend on the number of processes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The normalised map."""
        if not (self.training and is_distributed()):
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        shape = (1, -1, *[1] * (input.dim() - 2))
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        local = torch.tensor([x.numel() / x.shape[1]], dtype=torch.float64, device=x.device)
        count = _sum_over_processes(local)
        mean = _sum_over_processes(x.sum(dim=axes, dtype=torch.float64)) / count
        centred = x - mean.to(x.dtype).view(shape)
        variance = _sum_over_processes(centred.square().sum(dim=axes, dtype=torch.float64)) / count
        if self.track_running_stats:
            self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        y = centred * (variance + self.eps).rsqrt().to(x.dtype).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


class _Sum(torch.autograd.Function):
    """A sum over processes; each gradient is the sum of those that the processes have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        total = grad.clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total
