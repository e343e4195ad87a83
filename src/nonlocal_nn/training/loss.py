"""The two losses: one class a video (cross-entropy), or any number of classes a video (a sigmoid for each).

>>> import torch
>>> loss = make_loss("cross_entropy", label_smoothing=0.0)
>>> round(loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)                  # log 4
1.3863
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from nonlocal_nn.training.config import LossName

Loss = Callable[[Tensor, Tensor], Tensor]


def resolve_loss(name: Literal["auto", LossName], multi_label: bool) -> LossName:
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
