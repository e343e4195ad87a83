"""Accuracy while training: the centre crop of one clip in the middle of each validation video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nonlocal_nn._modes import evaluating
from nonlocal_nn.data.dataset import Skipped, ViewSample
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.evaluation.metrics import mean_average_precision, topk_accuracy
from nonlocal_nn.training.config import LossName
from nonlocal_nn.training.optim import as_targets, make_loss
from nonlocal_nn.training.processes import gather


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


class ValidationStoppedError(Exception):
    """Validation was interrupted because training is to stop."""


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Iterable[CentreClips],
    loss_name: LossName,
    prepare: Callable[[Tensor], Tensor],
    *,
    context: Callable[[], AbstractContextManager[object]],
    should_stop: Callable[[], bool],
) -> tuple[dict[str, float], list[Problem]]:
    """Score every clip; returns metrics (over all processes' clips) and the videos left out.

    Metrics are `val_loss` with `val_top1` and, from 6 classes on, `val_top5` in percent; or `val_map` for the
    sigmoid loss. The model is in testing mode meanwhile (running batch norm statistics, no dropout).
    `prepare` takes uint8 clips to the model's device and normalises them; `context` is what a forward pass
    runs in (autocast).

    Raises:
        ValidationStoppedError: `should_stop` said so.
    """
    logits_parts: list[Tensor] = []
    labels_parts: list[Tensor] = []
    problems: list[Problem] = []
    with evaluating(model):
        for batch in batches:
            if should_stop():
                raise ValidationStoppedError
            problems += batch.skipped
            if batch.video is None or batch.labels is None:
                continue
            with context():
                logits_parts.append(model(prepare(batch.video)).float().cpu())
            labels_parts.append(batch.labels)
    logits_parts, labels_parts, problems = gather(logits_parts), gather(labels_parts), gather(problems)
    if not logits_parts:
        raise ValueError("not one of the validation videos could be read; `nonlocal scan` tells why")
    logits, labels = torch.cat(logits_parts), torch.cat(labels_parts)
    classes = logits.shape[1]
    targets = as_targets(labels, classes, loss_name)
    metrics = {"val_loss": make_loss(loss_name, 0.0)(logits, targets).item()}
    scores = logits.double().numpy()
    if loss_name == "sigmoid":
        found = mean_average_precision(scores, targets.numpy() > 0).percent
        if found is not None:
            metrics["val_map"] = found
    else:
        metrics["val_top1"] = topk_accuracy(scores, targets.numpy(), k=1)
        if classes > 5:
            metrics["val_top5"] = topk_accuracy(scores, targets.numpy(), k=5)
    return metrics, problems
