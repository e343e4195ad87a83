"""Activation checkpointing: what a stage computed is dropped after the forward pass and computed again.

>>> from nonlocal_nn.models.catalog import create_model
>>> model = create_model("c2d_tiny_nl1", num_classes=2)
>>> recompute_stages(model, ("res2", "res3"))
>>> model(torch.randn(2, 3, 4, 24, 24)).shape
torch.Size([2, 2])

torch's checkpoint alone would count every batch twice in the running statistics of batch norm, since the
second pass is one of training, too. Here they are put back after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from nonlocal_nn._names import nearest_names
from nonlocal_nn.models.video_resnet import VideoResNet


def recompute_stages(model: VideoResNet, stages: Sequence[str]) -> None:
    """Let these stages be computed again in the backward pass; outputs and gradients stay the same.

    What is held after the forward pass is their inputs; while one is gone back through, its inside, too.

    Raises:
        ValueError: a stage that the network does not have.
    """
    for name in stages:
        if name not in model.stage_names:
            near = ", ".join(nearest_names(name, model.stage_names, otherwise=4))
            raise ValueError(f"recompute names {name!r}; the network has the stages {near}")
        stage = model.get_submodule(name)
        stage.forward = partial(_again, stage, stage.forward)


def _again(stage: nn.Module, forward: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        plain: Tensor = forward(x)
        return plain
    y: Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=lambda: _contexts(stage))
    return y


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first pass, and around the second."""
    return nullcontext(), _statistics_kept(stage)


@contextmanager
def _statistics_kept(stage: nn.Module) -> Iterator[None]:
    norms = [module for module in stage.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:  # the second pass may be cut off once it has made what is needed
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
