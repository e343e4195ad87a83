"""The softmax average as one differentiable operation: which way it is computed, and its derivatives.

    y_i = sum_j p_ij g_j,      p_i = softmax_j(scale theta_i . phi_j)

- `softmax_rows`: whole rows of p, a few at a time. p is kept for the backward pass where it fits the budget.
- `softmax_tiles`: where rows are long and p is not kept.

`softmax_average` is what the rest of the library calls. In eager mode it is an autograd function; to
torch.compile and torch.export it is one operator, `nonlocal_nn::softmax_average`, whose inside they need not
follow, so that sizes may be dynamic and memory stays linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nonlocal_nn.ops import softmax_rows, softmax_second, softmax_tiles
from nonlocal_nn.ops.checks import without_autocast
from nonlocal_nn.ops.folding import fold_vmapped
from nonlocal_nn.ops.memory import fits
from nonlocal_nn.ops.softmax_rows import Gradients, Wanted


def softmax_average(
    theta: Tensor, phi: Tensor, g: Tensor, scale: float, memory_budget: int | None = None
) -> Tensor:
    """Y (batch, queries, channels) of (batch, queries, d), (batch, keys, d), (batch, keys, channels).

    >>> theta, phi = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    >>> torch.allclose(softmax_average(theta, phi, torch.ones(1, 4, 2), 1.0), torch.ones(1, 5, 2))
    True
    """
    for_backward = torch.is_grad_enabled() and any(x.requires_grad for x in (theta, phi, g))
    keep = for_backward and _keeps(theta, phi, memory_budget)
    if torch.compiler.is_compiling():
        budget = -1 if memory_budget is None else memory_budget
        y: Tensor = torch.ops.nonlocal_nn.softmax_average(theta, phi, g, scale, keep, budget)[0]
        return y
    result: Tensor = SoftmaxAverage.apply(theta, phi, g, scale, keep, memory_budget)[0]
    return result


def _keeps(theta: Tensor, phi: Tensor, memory_budget: int | None) -> bool:
    """Whether p is kept for the backward pass: it fits the budget, together with one buffer."""
    if torch.compiler.is_exporting():  # a program for many sizes must not depend on one
        return False
    keys = phi.shape[1]
    size = theta.shape[0] * theta.shape[1] * keys * theta.element_size()
    chunk = softmax_rows.chunk_bytes(keys, theta, memory_budget)
    return fits(size + min(size, chunk), theta.device, memory_budget)


def _forward(
    theta: Tensor, phi: Tensor, g: Tensor, scale: float, keep: bool, memory_budget: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Y; p if it is kept, else empty; room for the rows' log-sum-exp, filled if tiles are used.

    Shapes depend on `keep` alone, so that they are known while sizes are not.
    """
    none = theta.new_empty(0)
    if keep:
        y, kept = softmax_rows.forward(theta, phi, g, scale, keep=True, memory_budget=memory_budget)
        return y, kept, none
    if softmax_tiles.suits(theta, phi, g):
        y, lse = softmax_tiles.forward(theta, phi, g, scale)
        return y, none, lse
    y, _ = softmax_rows.forward(theta, phi, g, scale, keep=False, memory_budget=memory_budget)
    return y, none, theta.new_zeros(theta.shape[0], theta.shape[1], 1)


def _backward(
    dy: Tensor,
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    y: Tensor,
    kept: Tensor,
    lse: Tensor,
    scale: float,
    wanted: Wanted,
    memory_budget: int | None,
) -> Gradients:
    with torch.no_grad(), without_autocast(dy.device):
        p = kept if kept.dim() == 3 else None
        if p is None and softmax_tiles.suits(theta, phi, g):
            return softmax_tiles.backward(dy, theta, phi, g, y, lse, scale, wanted)
        return softmax_rows.backward(dy, theta, phi, g, scale, p, wanted, memory_budget=memory_budget)


class SoftmaxAverage(torch.autograd.Function):
    """apply(theta, phi, g, scale, keep, memory_budget) -> y, p or empty, lse or empty."""

    @staticmethod
    def forward(
        theta: Tensor, phi: Tensor, g: Tensor, scale: float, keep: bool, memory_budget: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `_forward`."""
        return _forward(theta, phi, g, scale, keep, memory_budget)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs."""
        theta, phi, g, ctx.scale, _, ctx.memory_budget = inputs
        y, kept, lse = output
        ctx.mark_non_differentiable(kept, lse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(theta, phi, g, y, kept, lse)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """The gradients that are asked for, which can be differentiated once more."""
        if dy is None:
            return (None,) * 6
        theta, phi, g, y, kept, lse = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            grads = SoftmaxGradients.apply(
                dy, theta, phi, g, y, kept, lse, ctx.scale, wanted, ctx.memory_budget
            )
        else:
            grads = _backward(dy, theta, phi, g, y, kept, lse, ctx.scale, wanted, ctx.memory_budget)
        return (*grads, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        """A mapped axis is one more batch axis."""
        return fold_vmapped(SoftmaxAverage.apply, info.batch_size, in_dims, arguments)


class SoftmaxGradients(torch.autograd.Function):
    """The backward pass of `SoftmaxAverage` as a function of its own, for second derivatives."""

    @staticmethod
    def forward(
        dy: Tensor,
        theta: Tensor,
        phi: Tensor,
        g: Tensor,
        y: Tensor,
        kept: Tensor,
        lse: Tensor,
        scale: float,
        wanted: Wanted,
        memory_budget: int | None,
    ) -> Gradients:
        """See `_backward`."""
        return _backward(dy, theta, phi, g, y, kept, lse, scale, wanted, memory_budget)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        """Keep the inputs."""
        dy, theta, phi, g, _, _, _, ctx.scale, ctx.wanted, _ = inputs
        ctx.save_for_backward(dy, theta, phi, g)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *second: Tensor | None) -> tuple[Tensor | None, ...]:
        """See `softmax_second`."""
        dy, *inputs = ctx.saved_tensors
        given = [
            torch.zeros_like(x) if grad is None or not want else grad
            for grad, x, want in zip(second, inputs, ctx.wanted, strict=True)
        ]
        grads = SoftmaxSecondGradients.apply(*given, dy, *inputs, ctx.scale)
        return (*grads, *(None,) * 6)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        """A mapped axis is one more batch axis."""
        return fold_vmapped(SoftmaxGradients.apply, info.batch_size, in_dims, arguments)


class SoftmaxSecondGradients(torch.autograd.Function):
    """The backward pass of `SoftmaxGradients`; the last one."""

    @staticmethod
    def forward(
        a: Tensor, b: Tensor, c: Tensor, dy: Tensor, theta: Tensor, phi: Tensor, g: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `softmax_second`."""
        return softmax_second.backward((a, b, c), dy, theta, phi, g, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(_: Any, *_third: Tensor) -> Any:
        """Raises NotImplementedError."""
        raise NotImplementedError(
            "gaussian in linear memory has first and second derivatives; for third ones use "
            "nonlocal_nn.ops.reference.gaussian, which holds the queries x keys matrix"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        """A mapped axis is one more batch axis."""
        return fold_vmapped(SoftmaxSecondGradients.apply, info.batch_size, in_dims, arguments)


# --- one operator for torch.compile and torch.export ---


def _budget(memory_budget: int) -> int | None:
    return None if memory_budget < 0 else memory_budget  # an operator's schema knows no "None or int" here


@torch.library.custom_op("nonlocal_nn::softmax_average", mutates_args=())
def _softmax_average_op(
    theta: Tensor, phi: Tensor, g: Tensor, scale: float, keep: bool, memory_budget: int
) -> tuple[Tensor, Tensor, Tensor]:
    with without_autocast(theta.device):
        return _forward(theta, phi, g, scale, keep, _budget(memory_budget))


@_softmax_average_op.register_fake
def _(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    scale: float,  # noqa: ARG001
    keep: bool,
    memory_budget: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, keys = theta.shape[0], theta.shape[1], phi.shape[1]
    none = theta.new_empty(0)
    y = theta.new_empty(batch, queries, g.shape[2])
    return (
        (y, theta.new_empty(batch, queries, keys), none)
        if keep
        else (y, none, y.new_empty(batch, queries, 1))
    )


@torch.library.custom_op("nonlocal_nn::softmax_gradients", mutates_args=())
def _softmax_gradients_op(
    dy: Tensor,
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    y: Tensor,
    kept: Tensor,
    lse: Tensor,
    scale: float,
    wanted: list[bool],
    memory_budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = wanted
    grads = _backward(dy, theta, phi, g, y, kept, lse, scale, (first, second, third), _budget(memory_budget))
    a, b, c = (
        x.new_empty(0) if grad is None else grad.contiguous()
        for grad, x in zip(grads, (theta, phi, g), strict=True)
    )
    return a, b, c


@_softmax_gradients_op.register_fake
def _(
    dy: Tensor,  # noqa: ARG001
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    y: Tensor,  # noqa: ARG001
    kept: Tensor,  # noqa: ARG001
    lse: Tensor,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    wanted: list[bool],
    memory_budget: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = (x.new_empty(x.shape if want else 0) for want, x in zip(wanted, (theta, phi, g), strict=True))
    return a, b, c


def _op_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    theta, phi, g, ctx.scale, _, ctx.memory_budget = inputs
    ctx.save_for_backward(theta, phi, g, *output)


def _op_backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    grads = torch.ops.nonlocal_nn.softmax_gradients(
        dy, *ctx.saved_tensors, ctx.scale, wanted, ctx.memory_budget
    )
    return (*(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None, None)


_softmax_average_op.register_autograd(_op_backward, setup_context=_op_context)
