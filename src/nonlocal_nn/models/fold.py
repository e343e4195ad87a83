"""Batch norms made the fixed affine maps that they are in evaluation: y = a x + b for each channel."""

from __future__ import annotations

import torch
from torch import nn

from nonlocal_nn.blocks.norm import FrozenBatchNorm
from nonlocal_nn.models.build import build_model
from nonlocal_nn.models.video_resnet import VideoResNet


@torch.no_grad()
def fold_norms(model: VideoResNet) -> VideoResNet:
    """A network of the same outputs in evaluation with frozen norms: weight a, bias b, mean 0, variance 1.

    >>> import nonlocal_nn as nl
    >>> model = nl.create_model("c2d_tiny_nl1", num_classes=3).eval()
    >>> folded, x = fold_norms(model), torch.randn(1, 3, 8, 48, 48)
    >>> folded.spec.norm, torch.allclose(folded(x), model(x), atol=1e-6)
    ('frozen', True)

    a = gamma / sqrt(variance + eps), b = beta - a mean, in float64. Norms that are frozen
    already are folded, too.
    Raises ValueError for a network that was put together by hand and has no spec.
    """
    if model.spec is None:
        raise ValueError("a network without a spec cannot be built anew with its norms folded")
    folded = build_model(model.spec.replace(norm="frozen", norm_eps=0.0))
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if not isinstance(module, nn.BatchNorm3d | FrozenBatchNorm):
            continue
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        a = state[f"{name}.weight"].double() / (variance.double() + module.eps).sqrt()
        b = state[f"{name}.bias"].double() - a * mean.double()
        state[f"{name}.weight"], state[f"{name}.bias"] = a.to(mean.dtype), b.to(mean.dtype)
        state[f"{name}.running_mean"] = torch.zeros_like(mean)
        state[f"{name}.running_var"] = torch.ones_like(variance)
        state.pop(f"{name}.num_batches_tracked", None)
    folded.load_state_dict(state)
    folded.classes, folded.metadata = model.classes, dict(model.metadata)
    return folded.train(model.training)
