"""The softmax average as one operator of torch, for torch.compile and torch.export.

They take `nonlocal_nn::softmax_average` and its backward pass as they are, without following what happens
inside: sizes may be dynamic, and memory stays linear. In eager mode `softmax.SoftmaxAverage` does the same
with less ado. A program saved by torch.export needs this module imported to run.

>>> theta, phi = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
>>> y, _, _ = torch.ops.nonlocal_nn.softmax_average(theta, phi, torch.ones(1, 4, 2), 1.0, "linear", None)
>>> torch.allclose(y, torch.ones(1, 5, 2))
True
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nonlocal_nn.ops import softmax
from nonlocal_nn.ops.checks import without_autocast, working_dtype


@torch.library.custom_op(
    "nonlocal_nn::softmax_average",
    mutates_args=(),
    schema="(Tensor theta, Tensor phi, Tensor g, float scale, str way, int? memory_budget)"
    " -> (Tensor, Tensor, Tensor)",
)
def _softmax_average_op(
    theta: Tensor, phi: Tensor, g: Tensor, scale: float, way: str, memory_budget: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    with without_autocast(theta.device):
        y, kept, statistics = softmax.forward(theta, phi, g, scale, way, memory_budget)
    return y.contiguous(), kept, statistics  # laid out as a compiled program was told


@_softmax_average_op.register_fake
def _(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    scale: float,  # noqa: ARG001
    way: str,
    memory_budget: int | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, keys = theta.shape[0], theta.shape[1], phi.shape[1]
    none = theta.new_empty(0)
    y = theta.new_empty(batch, queries, g.shape[2])
    if way == "keep":
        return y, theta.new_empty(batch, queries, keys), none
    return y, none, theta.new_empty(batch, queries, 2, dtype=working_dtype(theta.dtype))


@torch.library.custom_op(
    "nonlocal_nn::softmax_gradients",
    mutates_args=(),
    schema="(Tensor dy, Tensor theta, Tensor phi, Tensor g, Tensor y, Tensor kept, Tensor statistics, "
    "float scale, str way, bool[] wanted, int? memory_budget) -> (Tensor, Tensor, Tensor)",
)
def _softmax_gradients_op(
    dy: Tensor,
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    y: Tensor,
    kept: Tensor,
    statistics: Tensor,
    scale: float,
    way: str,
    wanted: list[bool],
    memory_budget: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = wanted
    wants = (first, second, third)
    grads = softmax.backward(dy, theta, phi, g, y, kept, statistics, scale, way, wants, memory_budget)
    a, b, c = (dy.new_empty(0) if grad is None else grad.contiguous() for grad in grads)
    return a, b, c


@_softmax_gradients_op.register_fake
def _(
    dy: Tensor,
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    y: Tensor,  # noqa: ARG001
    kept: Tensor,  # noqa: ARG001
    statistics: Tensor,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    way: str,  # noqa: ARG001
    wanted: list[bool],
    memory_budget: int | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = zip(wanted, (theta, phi, g), strict=True)
    a, b, c = (x.new_empty(x.shape) if want else dy.new_empty(0) for want, x in inputs)
    return a, b, c


def _op_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    theta, phi, g, ctx.scale, ctx.way, ctx.memory_budget = inputs
    ctx.save_for_backward(theta, phi, g, *output)


def _op_backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.nonlocal_nn.softmax_gradients
    grads = gradients(dy, *ctx.saved_tensors, ctx.scale, ctx.way, wanted, ctx.memory_budget)
    return (*(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None, None)


_softmax_average_op.register_autograd(_op_backward, setup_context=_op_context)
