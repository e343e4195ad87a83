"""What the data package gives, as the loss and the model take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nonlocal_nn.data.dataset import Skipped, ViewSample
from nonlocal_nn.data.errors import Problem


class CentreClips(NamedTuple):
    """Validation: one view (batch, 3, frames, height, width), uint8, of each video that could be read, and
    the others.
    """

    video: Tensor | None
    labels: Tensor | None
    skipped: tuple[Problem, ...]


def collate_centre_clips(items: Sequence[ViewSample | Skipped]) -> CentreClips:
    """Stack videos of one view each; both tensors are None where none could be read."""
    samples = [item for item in items if isinstance(item, ViewSample)]
    skipped = tuple(item.problem for item in items if isinstance(item, Skipped))
    if not samples:
        return CentreClips(None, None, skipped)
    return CentreClips(
        torch.cat([sample.views for sample in samples]),
        torch.stack([sample.labels for sample in samples]),
        skipped,
    )


def as_targets(labels: Tensor, classes: int, loss_name: str) -> Tensor:
    """Labels (batch,) or (batch, classes) as the loss takes them.

    >>> as_targets(torch.tensor([2, 0]), 3, "sigmoid").tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    >>> as_targets(torch.tensor([2, 0]), 3, "cross_entropy").tolist()
    [2, 0]
    """
    if loss_name == "sigmoid" and labels.ndim == 1:
        return F.one_hot(labels, classes).float()
    return labels
