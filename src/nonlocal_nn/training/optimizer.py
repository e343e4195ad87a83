"""The optimizer, with weight decay on everything but normalisation layers.

The paper decays all weights and biases by 1e-4 and the parameters of batch norm not at all (section 4.1); so
do we, biases included.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from nonlocal_nn.training.config import OptimConfig

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups, decayed and not; frozen parameters are in neither.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> [(len(group["params"]), group["weight_decay"]) for group in parameter_groups(model, 1e-4)]
    [(2, 0.0001), (2, 0.0)]
    """
    norm_parameters = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (plain if id(parameter) in norm_parameters else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD (Nesterov) or AdamW as configured; the learning rate is set anew before every step.

    >>> make_optimizer(nn.Linear(2, 2), OptimConfig()).defaults["nesterov"]
    True

    Raises:
        ValueError: a rate, decay or momentum outside its range.
    """
    if config.lr <= 0:
        raise ValueError(f"optim.lr is {config.lr:g}; it must be more than 0")
    if config.weight_decay < 0:
        raise ValueError(f"optim.weight_decay is {config.weight_decay:g}; it must not be negative")
    groups = parameter_groups(model, config.weight_decay)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    if not 0 <= config.momentum < 1:
        raise ValueError(f"optim.momentum is {config.momentum:g}, outside 0 to 1")
    nesterov = config.nesterov and config.momentum > 0  # torch refuses Nesterov's form of no momentum
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
