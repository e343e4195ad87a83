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
from torch.nn.utils import parametrize, prune
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


class FrozenBatchNorm(nn.Module):
    """y = weight (x - running_mean) / sqrt(running_var + eps) + bias, with nothing to learn or to update.

    >>> FrozenBatchNorm(2)(torch.ones(1, 2, 1)).flatten().tolist()  # mean 0, variance 1, eps 1e-5
    [0.9999949932098389, 0.9999949932098389]

    x is (batch, channels, ...) of any rank. The four vectors are buffers under batch norm's own names, so
    that the state dict of a trained batch norm loads into it (its num_batches_tracked is left out).

    Args:
        channels: of x.
        eps: added to the variance.
        gamma: what `reset_parameters` sets the weight to.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, *, gamma: float = 1.0) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.gamma = gamma
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gamma as given, and what changes nothing else: bias and mean 0, variance 1."""
        self.weight.fill_(self.gamma)
        self.bias.zero_()
        self.running_mean.zero_()
        self.running_var.fill_(1)

    @torch.no_grad()
    def fold(self) -> None:
        """Put mean and variance into weight and bias, in place: then y = weight x + bias, with eps 0.

        >>> norm, x = FrozenBatchNorm(2, gamma=3.0), torch.randn(1, 2, 5)
        >>> before = norm(x)
        >>> norm.fold()
        >>> torch.allclose(norm(x), before), norm.running_mean.tolist(), norm.eps
        (True, [0.0, 0.0], 0.0)

        In float64: weight / sqrt(variance + eps) and bias - that times the mean.
        """
        factor = self.weight.double() / (self.running_var.double() + self.eps).sqrt()
        self.bias.copy_(self.bias.double() - factor * self.running_mean.double())
        self.weight.copy_(factor)
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.eps = 0.0

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


class _ZeroStart(nn.Module):
    """Starts at zero also when `reset_parameters` is called module by module, as after `to_empty`."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the class beside this one does, then weight (and a convolution's bias) 0."""
        super().reset_parameters()  # type: ignore[misc]
        for parameter in self.parameters(recurse=False):
            parameter.zero_()


class ZeroBatchNorm1d(_ZeroStart, nn.BatchNorm1d):
    """Batch norm whose gamma starts at zero: the block in front of it is the identity.

    >>> ZeroBatchNorm1d(2).weight.tolist()
    [0.0, 0.0]
    """


class ZeroBatchNorm2d(_ZeroStart, nn.BatchNorm2d):
    """As `ZeroBatchNorm1d`, for images."""


class ZeroBatchNorm3d(_ZeroStart, nn.BatchNorm3d):
    """As `ZeroBatchNorm1d`, for clips."""


class ZeroConv1d(_ZeroStart, nn.Conv1d):
    """A convolution that starts at zero: W_z of a block without a norm.

    >>> ZeroConv1d(2, 1, 1).weight.flatten().tolist()
    [0.0, 0.0]
    """


class ZeroConv2d(_ZeroStart, nn.Conv2d):
    """As `ZeroConv1d`, for images."""


class ZeroConv3d(_ZeroStart, nn.Conv3d):
    """As `ZeroConv1d`, for clips."""


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

    A weight that something of torch's computes (spectral norm, weight norm, pruning) becomes a plain one.

    Raises:
        ValueError: for another kind of norm, a batch norm that keeps no statistics, or a weight that
            something else computes.
    """
    assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if not isinstance(norm, _BatchNorm | FrozenBatchNorm):
        raise ValueError(f"only a batch norm can be taken into a convolution, not a {type(norm).__name__}")
    _make_plain(conv)
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("the norm keeps no running statistics (track_running_stats=False): none to fold")
    factor = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    bias = torch.zeros_like(factor) if conv.bias is None else conv.bias
    shift = (bias - norm.running_mean) * factor
    conv.bias = nn.Parameter(shift if norm.bias is None else shift + norm.bias)
    conv.weight.mul_(factor.view(-1, *(1,) * (conv.weight.dim() - 1)))


def _make_plain(conv: nn.Module) -> None:
    """Let the weight and bias be parameters of their own, equal to what computes them now."""
    if parametrize.is_parametrized(conv):
        parametrizations = conv.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        for name in list(parametrizations):
            with torch.enable_grad():  # else torch leaves a tensor that is no parameter
                parametrize.remove_parametrizations(conv, name, leave_parametrized=True)
    for hook in list(conv._forward_pre_hooks.values()):  # as torch did it before parametrizations
        if isinstance(hook, BasePruningMethod):
            prune.remove(conv, hook._tensor_name)  # type: ignore[no-untyped-call]
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(conv, hook.name)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(conv, hook.name)
    if conv._parameters.get("weight") is None:
        raise ValueError(
            "the weight of the convolution is computed by something that is not torch's; make it a plain "
            "parameter before the norm is taken into it"
        )


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
