"""What experiments on small images share: pixels as a network takes them, a training, an accuracy.

>>> images = np.zeros((4, 32, 32, 3), dtype=np.uint8)
>>> pixels(images, side=16).shape
torch.Size([4, 3, 16, 16])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Images = npt.NDArray[np.uint8]


def pixels(images: Images, side: int) -> Tensor:
    """(number, 3, side, side), from -1 to 1; larger images are averaged down.

    Raises:
        ValueError: images that are no square of a multiple of the side.
    """
    height, width = images.shape[1:3]
    if height != width or height % side:
        raise ValueError(f"images of {height} x {width} pixels: a square of a multiple of {side}")
    x = torch.from_numpy(images).movedim(3, 1).float() / 127.5 - 1
    return nn.functional.avg_pool2d(x, height // side)


@torch.no_grad()
def accuracy(logits_of: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Percent of the images x whose largest logit is the label's."""
    right = 0
    for some, wanted in zip(torch.split(x, 500), torch.split(y, 500), strict=True):
        right += int((logits_of(some).argmax(dim=1) == wanted).sum())
    return 100 * right / len(x)


def batches(count: int, batch: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For every step: which of `count` images, and which of those are mirrored; by the seed alone.

    >>> [(some.tolist(), mirrored.shape) for some, mirrored in batches(2, batch=2, steps=1, seed=0)]
    [([0, 1], torch.Size([2]))]

    Raises:
        ValueError: fewer images than a batch.
    """
    if count < batch:
        raise ValueError(f"{count} images: a batch has {batch}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:  # the rest of a pass is left out
            order = torch.randperm(count, generator=generator)
        some, order = order[:batch], order[batch:]
        yield some, torch.rand(batch, generator=generator) < 0.5


def mirror(x: Tensor, mirrored: Tensor) -> Tensor:
    """Images (number, channels, rows, columns), some with left and right exchanged."""
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)
