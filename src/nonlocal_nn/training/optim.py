"""What a step minimises and how: the loss and the optimizer of the config's section `optim`.

>>> loss = make_loss("cross_entropy", label_smoothing=0.0)
>>> round(loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)                  # log 4
1.3863

The paper decays all weights and biases by 1e-4 and the parameters of batch norm not at all (section 4.1); so
do we, biases included.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from nonlocal_nn.training.config import LossChoice, LossName, OptimConfig

Loss = Callable[[Tensor, Tensor], Tensor]

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def resolve_loss(name: LossChoice, multi_label: bool) -> LossName:
    """The loss that `auto` stands for.

    >>> resolve_loss("auto", multi_label=True)
    'sigmoid'

    Raises:
        ValueError: cross-entropy for videos that have several labels.
    """
    if name == "auto":
        return "sigmoid" if multi_label else "cross_entropy"
    if name == "cross_entropy" and multi_label:
        raise ValueError(
            "optim.loss is cross_entropy, which needs exactly one label a video, but this data has videos "
            "with several labels or none: use sigmoid (or auto)"
        )
    return name


def make_loss(name: LossName, label_smoothing: float) -> Loss:
    """A function of logits (batch, classes) and targets: classes (batch,) or 0/1 (batch, classes); a mean
    over the batch.

    The sigmoid loss is the mean over clips and classes of the binary cross-entropy.

    Raises:
        ValueError: label smoothing outside [0, 1), or with the sigmoid.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"optim.label_smoothing is {label_smoothing:g}; it is a share, 0 up to 1")
    if name == "cross_entropy":
        return lambda logits, targets: F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if label_smoothing:
        raise ValueError("optim.label_smoothing belongs to cross_entropy; the loss here is sigmoid")
    return F.binary_cross_entropy_with_logits


def as_targets(labels: Tensor, classes: int, loss_name: LossName) -> Tensor:
    """Labels (batch,) or (batch, classes) as the loss takes them.

    >>> as_targets(torch.tensor([2, 0]), 3, "sigmoid").tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    >>> as_targets(torch.tensor([2, 0]), 3, "cross_entropy").tolist()
    [2, 0]
    """
    if loss_name == "sigmoid" and labels.ndim == 1:
        return F.one_hot(labels, classes).float()
    return labels


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
    """SGD (Nesterov) or AdamW as configured; the learning rate is set before every step.

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
