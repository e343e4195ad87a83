"""Batch norms made the fixed affine maps that they are in evaluation: y = a x + b for each channel."""

from __future__ import annotations

import torch

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

    Norms that are frozen already are folded, too (`FrozenBatchNorm.fold`).
    Raises ValueError for a network that was put together by hand and has no spec.
    """
    if model.spec is None:
        raise ValueError("a network without a spec cannot be built anew with its norms folded")
    folded = build_model(model.spec.replace(norm="frozen"))
    folded.load_state_dict(model.state_dict())
    for module in folded.modules():
        if isinstance(module, FrozenBatchNorm):
            module.fold()
    folded.spec = model.spec.replace(norm="frozen", norm_eps=0.0)
    folded.classes, folded.metadata = model.classes, dict(model.metadata)
    return folded.train(model.training)
