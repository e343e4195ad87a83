"""What a network costs: parameters, and multiply-adds for one clip, from the shapes of its layers alone.

>>> from torch import nn
>>> net = nn.Sequential(nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(8))
>>> measure(net, (3, 4, 16, 16))
Cost(parameters=232, macs=221184)

The convention, that of the literature's "FLOPs": one multiply-add counts once; convolutions, linear layers
and the pairwise products of non-local blocks count; biases, norms, activations, pooling and the softmax do
not. The pairwise products are counted as Eq. 1 is written, each query with each key, however the operator
computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from nonlocal_nn._modes import Skipping, evaluating
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock

# What neither counts nor changes a shape, but is slow on shapes alone.
_UNCOUNTED = {F.batch_norm, F.relu}


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters, and multiply-adds for one clip."""

    parameters: int
    macs: int


def count_parameters(model: nn.Module) -> int:
    """Numbers a network learns; the fixed vectors of frozen norms are not among them.

    >>> count_parameters(nn.Linear(10, 3))
    33
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, clip_shape: tuple[int, ...]) -> int:
    """Multiply-adds for one input of `clip_shape`, no batch axis: (3, frames, height, width) for a video.

    >>> count_macs(nn.Linear(10, 3), (10,)), count_macs(nn.ConvTranspose2d(4, 2, 3), (4, 5, 5))
    (30, 1800)

    Nothing is computed and nothing is changed: layers run on tensors that are shapes alone (device "meta").
    """
    counted: list[int] = []

    def count_layer(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counted.append(_layer_macs(layer, inputs[0], output))

    def count_block(block: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(block, NonLocalBlock)
        counted.append(pairwise_macs(block, tuple(inputs[0].shape)))

    hooks = []
    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            hooks.append(module.register_forward_hook(count_layer))
        elif isinstance(module, NonLocalBlock):
            hooks.append(module.register_forward_hook(count_block))
    state = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    try:
        with evaluating(model), torch.no_grad(), Skipping(_UNCOUNTED):
            functional_call(model, state, (torch.empty(1, *clip_shape, device="meta"),))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


def measure(model: nn.Module, clip_shape: tuple[int, ...]) -> Cost:
    """`count_parameters` and `count_macs` together."""
    return Cost(count_parameters(model), count_macs(model, clip_shape))


def _layer_macs(layer: nn.Module, given: Tensor, output: Tensor) -> int:
    """Each output number is the product of one row of the weight (one kernel) with the input.

    Of a transposed convolution, each input number is multiplied with all of one kernel.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    transposed = isinstance(layer, _ConvNd) and layer.transposed
    return (given if transposed else output).numel() * weight[0].numel()


def pairwise_macs(block: NonLocalBlock, shape: tuple[int, ...]) -> int:
    """Multiply-adds of f(x_i, x_j) and of sum_j f g_j over all pairs that see each other; x is of `shape`.

    >>> block = NonLocalBlock(8, subsample=False)  # 12 positions, 4 inner channels
    >>> pairwise_macs(block, (1, 8, 3, 2, 2)) == 12 * 12 * (4 + 4)
    True

    A product theta_i . phi_j is d multiply-adds. Concatenation's w_f . [theta_i, phi_j] is a number for each
    query plus one for each key, so d multiply-adds for each position and none for a pair.
    """
    batch, _, *grid = shape
    queries, keys = prod(grid), prod(block.key_shape(tuple(grid)))
    groups = block.temporal_groups if block.dims == 3 else 1
    if block.span == "space":
        groups = grid[0]
    elif block.span == "time":
        groups *= prod(grid[1:])
    d = block.inner_channels if block.function.embeds else block.channels
    for_positions, for_pairs = block.function.multiply_adds(queries, keys, d, block.inner_channels)
    return batch * (for_positions + for_pairs // groups)
