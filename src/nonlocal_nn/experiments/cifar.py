"""Do trained heads find the pixel grid? The paper's question, on small images and two cores.

`image_attention.SHORT`, trained by Adam from 0.003 to 0 along a cosine; centres learn ten times and spreads
three times as fast, since they are of the order of pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nonlocal_nn.experiments.cifar_result import CifarRun
from nonlocal_nn.experiments.image_attention import SHORT, ImageAttention, heads_of
from nonlocal_nn.experiments.image_training import Images, accuracy, pixels

_BATCH = 50
_LR = 0.003
_FASTER = {"centres": 10.0, "spreads": 3.0}

Labels = npt.NDArray[np.int64]


def train_short(
    train: tuple[Images, Labels],
    test: tuple[Images, Labels],
    seed: int,
    epochs: int,
    progress: Callable[[int, int], None] | None = None,
) -> CifarRun:
    """One training and its test.

    >>> images, labels = np.zeros((50, 32, 32, 3), dtype=np.uint8), np.zeros(50, dtype=np.int64)
    >>> len(train_short((images, labels), (images, labels), seed=0, epochs=1).centres)
    2
    """
    torch.manual_seed(seed)
    shape = SHORT
    x, y = pixels(train[0], shape.side), torch.from_numpy(train[1])
    model = ImageAttention(shape)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(_FASTER.get(name.rpartition(".")[2], 1.0), []).append(parameter)
    optimizer = torch.optim.Adam(
        [{"params": parameters, "lr": factor * _LR} for factor, parameters in groups.items()]
    )
    steps = len(x) // _BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    heads = [heads_of(model)]
    started = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for step in range(steps):
            some = order[step * _BATCH : (step + 1) * _BATCH]
            loss = nn.functional.cross_entropy(model(x[some]), y[some])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(epoch * steps + step + 1, epochs * steps)
        heads.append(heads_of(model))
    seconds = time.perf_counter() - started
    right = accuracy(model.eval(), pixels(test[0], shape.side), torch.from_numpy(test[1]))
    return CifarRun(seed, epochs, right, seconds, [one[0] for one in heads], [one[1] for one in heads])
