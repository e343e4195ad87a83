"""Small videos in memory, as `ViewDataset` gives them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nonlocal_nn.data.dataset import ViewSample
from nonlocal_nn.data.sampling import CropBox

MakeSample = Callable[..., ViewSample]


@pytest.fixture
def make_sample() -> MakeSample:
    """Random frames of 8 x 12 pixels, `clips` clips of 4 of them, 1 or 3 crops of 8 x 8."""

    def make(
        index: int = 0, label: int | tuple[int, ...] | torch.Tensor = 0, clips: int = 2, crops: int = 3
    ) -> ViewSample:
        generator = torch.Generator().manual_seed(index)
        frames = torch.randint(256, (3, 4 + clips, 8, 12), dtype=torch.uint8, generator=generator)
        positions = torch.arange(4)[None, :] + torch.arange(clips)[:, None]
        boxes = tuple(CropBox(0, left, 8, 8) for left in ([2] if crops == 1 else [0, 2, 4]))
        labels = label if isinstance(label, torch.Tensor) else torch.tensor(label)
        return ViewSample(frames, positions, boxes, index, labels)

    return make
