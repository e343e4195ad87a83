"""Batch normalisation with everything fixed: how the paper fine-tunes on long clips and on Charades.

>>> import torch
>>> bn = torch.nn.BatchNorm3d(4).eval()
>>> x = torch.randn(2, 4, 3, 5, 5)
>>> torch.equal(freeze_batch_norm(bn)(x), bn(x))
True
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBatchNorm(nn.Module):
    """y = weight (x - running_mean) / sqrt(running_var + eps) + bias, with nothing to learn or to update.

    >>> FrozenBatchNorm(2)(torch.ones(1, 2, 1)).flatten().tolist()  # mean 0, variance 1, eps 1e-5
    [0.9999949932098389, 0.9999949932098389]

    x is (batch, channels, ...) of any rank. The four vectors are buffers under batch norm's own names, so
    that the state dict of a trained batch norm loads into it (its num_batches_tracked is left out).
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype as x."""
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Channels and eps, as batch norm prints them."""
        return f"{self.channels}, eps={self.eps}"


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm in `module`, in place, by an equal `FrozenBatchNorm`; returns the module.

    >>> net = freeze_batch_norm(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)))
    >>> type(net[1]).__name__, [name for name, _ in net.named_parameters()]
    ('FrozenBatchNorm', ['0.weight', '0.bias'])

    Outputs equal those of the module in eval mode. A batch norm given directly is not changed: its frozen
    equal is returned. One that is used at several places stays one.

    Raises:
        ValueError: for a batch norm without running statistics, naming it.
    """
    return _frozen(module, "", {})


@torch.no_grad()
def fold_norm(conv: nn.Module, norm: nn.Module) -> None:
    """Change `conv` in place so that it gives what `norm` in eval mode made of its output.

    >>> conv, bn = torch.nn.Conv1d(2, 3, 1), torch.nn.BatchNorm1d(3).eval()
    >>> x = torch.randn(1, 2, 4)
    >>> before = bn(conv(x))
    >>> fold_norm(conv, bn)
    >>> torch.allclose(conv(x), before, atol=1e-6)
    True

    Raises:
        ValueError: for a batch norm that keeps no statistics.
    """
    assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    assert isinstance(norm, _BatchNorm | FrozenBatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("the norm keeps no running statistics (track_running_stats=False): none to fold")
    factor = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    bias = torch.zeros_like(factor) if conv.bias is None else conv.bias
    shift = (bias - norm.running_mean) * factor
    conv.bias = nn.Parameter(shift if norm.bias is None else shift + norm.bias)
    conv.weight.mul_(factor.view(-1, *(1,) * (conv.weight.dim() - 1)))


def _frozen(module: nn.Module, name: str, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    done[module] = module
    if isinstance(module, _BatchNorm):
        done[module] = _equal(module, name)
        return done[module]
    for child_name, child in module._modules.items():
        if child is not None:
            module._modules[child_name] = _frozen(child, f"{name}.{child_name}" if name else child_name, done)
    return module


def _equal(norm: _BatchNorm, name: str) -> FrozenBatchNorm:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f"batch norm {name or type(norm).__name__!r} keeps no running statistics "
            "(track_running_stats=False), so there is nothing to freeze it to"
        )
    frozen = FrozenBatchNorm(norm.num_features, norm.eps).to(norm.running_mean)
    frozen.running_mean.copy_(norm.running_mean)
    frozen.running_var.copy_(norm.running_var)
    if norm.weight is not None:
        frozen.weight.copy_(norm.weight.detach())
        frozen.bias.copy_(norm.bias.detach())
    return frozen.train(norm.training)
