"""Does one layer of self-attention find a 3x3 convolution by itself? (Cordonnier et al. 2020, Theorem 1)

Nine heads with quadratic relative positions, whose centres start at random, learn a random convolution from
noise. They need not end on the nine pixels: nine independent bumps span the same kernels. So what is measured
is the error, the kernel (`SelfAttention2d.to_conv`), and how much of each head's weight lies in the window.

A head that drifts away grows broad, averages noise to nothing and gets no gradient any more. `resets` gives
such idle heads new first weights while there is time: those whose part of the kernel is a tenth of the median
head's or less, and `degenerate_heads`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nonlocal_nn.blocks.self_attention import SelfAttention2d
from nonlocal_nn.experiments.imitation_result import Imitation

_CHANNELS = 8
_SIDE = 12
_BATCH = 16
_LR = 0.1
_MARGIN = 4  # zeros around the map, so that softmaxes see no border where the convolution has none
_RESET_EVERY = 100
_LAST_RESET = 0.6  # of all steps
_IDLE = 0.1  # of the median


def imitate(
    seed: int, steps: int = 2000, *, resets: bool = True, progress: Callable[[int, int], None] | None = None
) -> Imitation:
    """One run.

    >>> imitate(0, steps=2).resets
    0
    """
    torch.manual_seed(seed)
    conv = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1).requires_grad_(False)
    layer = SelfAttention2d(_CHANNELS, _CHANNELS, heads=9, padding=_MARGIN)
    assert layer.centres is not None
    assert layer.spreads is not None
    first = layer.centres.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    count = 0
    for step in range(steps):
        x = torch.randn(_BATCH, _CHANNELS, _SIDE, _SIDE)
        loss = _error(layer, conv, x)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if resets and (step + 1) % _RESET_EVERY == 0 and step < _LAST_RESET * steps:
            idle = sorted({*layer.degenerate_heads(), *_idle(layer)})
            layer.reset_heads(idle, optimizer)
            count += len(idle)
        if progress is not None:
            progress(step + 1, steps)
    with torch.no_grad():
        error = float(_error(layer, conv, torch.randn(64, _CHANNELS, 2 * _SIDE, 2 * _SIDE)))
        kernel, window = _kernel(layer)
        away = (kernel - conv.weight).square().sum() / conv.weight.square().sum()
        last = layer.centres.detach()
        near = ((last - last.round()).abs() <= 0.25).all(dim=1)
        return Imitation(
            seed,
            steps,
            error,
            float(away),
            float(window.min()),
            int(near.sum()),
            float((last - first).norm(dim=1).mean()),
            count,
            first.tolist(),
            last.tolist(),
            layer.spreads.detach().abs().tolist(),
        )


def _error(layer: SelfAttention2d, conv: nn.Conv2d, x: Tensor) -> Tensor:
    y = layer(x)[:, :, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    wanted = conv(x)
    error: Tensor = (y - wanted).square().mean() / wanted.square().mean()
    return error


@torch.no_grad()
def _idle(layer: SelfAttention2d) -> list[int]:
    """Heads whose part of the kernel is next to nothing: broad, or with small values."""
    weights, _ = layer.weights_of_offsets()
    size = weights.square().sum(dim=(1, 2)).sqrt() * layer.value.double().flatten(1).norm(dim=1)
    idle = size < _IDLE * size.median()
    return [head for head, is_idle in enumerate(idle.tolist()) if is_idle]


def _kernel(layer: SelfAttention2d) -> tuple[Tensor, Tensor]:
    """The layer's 3x3 taps around the query, and how much of each head's weight lies there."""
    weights, (top, left) = layer.weights_of_offsets()
    window = weights[:, -1 - top : 2 - top, -1 - left : 2 - left]
    kernel = torch.einsum("hrc,hoi->oirc", window, layer.value.double())
    return kernel, window.sum(dim=(1, 2))
