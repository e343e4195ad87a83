"""The paper's classifier of self-attention on CIFAR-10, by its released settings: `image_attention.PAPER`.

SGD, 0.1, momentum 0.9, decay 1e-4 on all but centres and spreads, 300 epochs of batches of 100; the rate
rises over the first twentieth and falls along a cosine, by the step. One step is 2 TFLOP: for a GPU. A run
keeps its state after every epoch and goes on from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nonlocal_nn._files import write_whole
from nonlocal_nn.experiments.cifar_result import CifarRun
from nonlocal_nn.experiments.image_attention import PAPER, ImageAttention, Shape, heads_of
from nonlocal_nn.experiments.image_training import Images, accuracy, batches, mirror, pixels

_BATCH = 100
_LR, _MOMENTUM, _DECAY, _WARMUP = 0.1, 0.9, 1e-4, 0.05
_UNDECAYED = ("centres", "spreads")

Labels = npt.NDArray[np.int64]


def train_paper(
    train: tuple[Images, Labels],
    test: tuple[Images, Labels],
    seed: int,
    epochs: int,
    state_file: Path,
    *,
    shape: Shape = PAPER,
    batch: int = _BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> CifarRun:
    """One training and its test, on a GPU where there is one.

    Args:
        train, test: images (number, side, side, 3) and labels.
        seed: of the first weights, the batches and dropout.
        epochs: 300 in the paper.
        state_file: what is kept after every epoch; a run that finds one goes on from it.
        shape: of the network.
        batch: images of a step.
        progress: called with (steps done, all).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model = ImageAttention(shape).to(device)
    x, y = pixels(train[0], shape.side).to(device), torch.from_numpy(train[1]).to(device)
    optimizer = _optimizer(model)
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, epochs * steps))
    kept: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "heads": [heads_of(model)]}
    if state_file.exists():
        kept = torch.load(state_file, map_location=device, weights_only=True)
        for part, name in ((model, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(kept[name])
    for epoch in range(kept["epoch"], epochs):
        started = time.perf_counter()
        torch.manual_seed(_seed_of(seed, epoch))  # dropout: the same whether the run was cut off or not
        for number, (some, mirrored) in enumerate(batches(len(x), batch, steps, _seed_of(seed, epoch))):
            logits = model(mirror(x[some.to(device)], mirrored.to(device)))
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(logits, y[some.to(device)]))
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(epoch * steps + number + 1, epochs * steps)
        kept = {
            "epoch": epoch + 1,
            "seconds": kept["seconds"] + time.perf_counter() - started,
            "heads": [*kept["heads"], heads_of(model)],
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        write_whole(state_file, lambda partial, state=kept: torch.save(state, partial))  # type: ignore[misc]
    model.eval()
    right = accuracy(
        lambda part: model(part.to(device)).cpu(), pixels(test[0], shape.side), torch.from_numpy(test[1])
    )
    centres, spreads = ([heads[kind] for heads in kept["heads"]] for kind in (0, 1))
    return CifarRun(seed, epochs, right, kept["seconds"], centres, spreads)


def rate_at(step: int, steps: int) -> float:
    """The learning rate as a share of the highest: a linear rise, then half a cosine.

    >>> [round(rate_at(step, 100), 3) for step in (0, 4, 5, 100)]
    [0.2, 1.0, 1.0, 0.0]
    """
    warmup = _WARMUP * steps
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _seed_of(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def _optimizer(model: nn.Module) -> torch.optim.SGD:
    named = list(model.named_parameters())
    decayed = [p for name, p in named if name.rpartition(".")[2] not in _UNDECAYED]
    others = [p for name, p in named if name.rpartition(".")[2] in _UNDECAYED]
    groups = [{"params": decayed, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=_LR, momentum=_MOMENTUM)
