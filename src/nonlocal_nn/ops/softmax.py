"""The softmax average as one differentiable operation: which way it is computed, and its derivatives.

    y_i = sum_j p_ij g_j,      p_i = softmax_j(scale theta_i . phi_j)

- `small`: where p is small, the product of matrices as it is written.
- `softmax_rows`: whole rows of p, a few at a time. p is kept for the backward pass where it fits the budget.
- `softmax_tiles`: where rows are long and p is not kept.
- `softmax_symmetric`: where theta is phi and no backward pass follows.
- `triton_softmax`, and torch's own attention kernels: on a GPU, by the table in `choose`.

`softmax_average` is what the rest of the library calls. In eager mode it is an autograd function; to
torch.compile and torch.export it is one operator, `nonlocal_nn::softmax_average`, whose inside they need not
follow, so that sizes may be dynamic and memory stays linear.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nonlocal_nn.ops import softmax_second
from nonlocal_nn.ops.checks import without_autocast, working_dtype
from nonlocal_nn.ops.cpu import small, softmax_rows, softmax_symmetric, softmax_tiles
from nonlocal_nn.ops.cpu.softmax_rows import Gradients, Wanted
from nonlocal_nn.ops.cpu.workspace import fits
from nonlocal_nn.ops.dispatch import Backend, softmax_backend
from nonlocal_nn.ops.gpu import softmax as triton_softmax
from nonlocal_nn.ops.vmap import fold_vmapped

# keep: rows, and p for the backward pass. linear: rows or tiles. inference: the same, with no backward pass
# to follow. triton: our kernel for GPUs.
Way = Literal["keep", "linear", "inference", "triton"]


def softmax_average(
    theta: Tensor, phi: Tensor, g: Tensor, scale: float, memory_budget: int | None = None
) -> Tensor:
    """Y (batch, queries, channels) of (batch, queries, d), (batch, keys, d), (batch, keys, channels).

    >>> theta, phi = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    >>> torch.allclose(softmax_average(theta, phi, torch.ones(1, 4, 2), 1.0), torch.ones(1, 5, 2))
    True
    """
    dtype = theta.dtype
    if small.softmax_suits(theta, phi, memory_budget):
        return small.softmax(*_in_working_dtype(theta, phi, g), scale).to(dtype)
    for_backward = torch.is_grad_enabled() and any(x.requires_grad for x in (theta, phi, g))
    backend = _backend(theta, phi, g, for_backward)
    if backend in ("flash", "efficient"):
        return _attention(theta, phi, g, scale, backend)
    way: Way = "triton"
    if backend == "rows":
        theta, phi, g = _in_working_dtype(theta, phi, g)
        way = "inference"
        if for_backward:
            way = "keep" if _keeps(theta, phi, memory_budget) else "linear"
    if torch.compiler.is_compiling():  # registered in softmax_operator
        y: Tensor = torch.ops.nonlocal_nn.softmax_average(theta, phi, g, scale, way, memory_budget)[0]
    elif way == "inference" and not torch._C._are_functorch_transforms_active():
        y = forward(theta, phi, g, scale, way, memory_budget)[0]  # without what an autograd function costs
    else:
        y = SoftmaxAverage.apply(theta, phi, g, scale, way, memory_budget)[0]
    return y.to(dtype)


def _in_working_dtype(theta: Tensor, phi: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where theta is phi it stays so: gradients of the two are then added before they are rounded."""
    dtype = working_dtype(theta.dtype)
    wide = theta.to(dtype)
    return wide, wide if phi is theta else phi.to(dtype), g.to(dtype)


def _backend(theta: Tensor, phi: Tensor, g: Tensor, for_backward: bool) -> Backend:
    if theta.device.type != "cuda" or torch.compiler.is_exporting():
        return "rows"  # a program for many sizes must not depend on one
    return softmax_backend(
        "cuda",
        torch.cuda.get_device_capability(theta.device),
        theta.dtype,
        theta.shape[2],
        g.shape[2],
        theta.shape[1],
        phi.shape[1],
        batch=theta.shape[0],
        gradients=for_backward,
        same_bits=not torch.are_deterministic_algorithms_enabled(),
        tf32=torch.backends.cuda.matmul.fp32_precision == "tf32",
        triton=_triton_is_there(theta.device),
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _triton_is_there(device: torch.device) -> bool:
    return triton_softmax.available(device)


def _attention(theta: Tensor, phi: Tensor, g: Tensor, scale: float, backend: Backend) -> Tensor:
    """Torch's attention with one head."""
    kernel = SDPBackend.FLASH_ATTENTION if backend == "flash" else SDPBackend.EFFICIENT_ATTENTION
    query, key, value = (x.unsqueeze(1).contiguous() for x in (theta, phi, g))
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1)


def _keeps(theta: Tensor, phi: Tensor, memory_budget: int | None) -> bool:
    """Whether p is kept for the backward pass: it fits the budget, together with one buffer."""
    if torch.compiler.is_exporting():
        return False
    keys = phi.shape[1]
    size = theta.shape[0] * theta.shape[1] * keys * theta.element_size()
    chunk = softmax_rows.chunk_bytes(keys, theta, memory_budget)
    return fits(size + min(size, chunk), theta.device, memory_budget)


def forward(
    theta: Tensor, phi: Tensor, g: Tensor, scale: float, way: str, memory_budget: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Y; p if it is kept, else empty; two numbers a row, if there are any, and p is not kept.

    Shapes depend on `way` alone, so that they are known while sizes are not.
    """
    none = theta.new_empty(0)
    if way == "keep":
        y, kept = softmax_rows.forward(theta, phi, g, scale, keep=True, memory_budget=memory_budget)
        return y, kept, none
    statistics = theta.new_zeros(theta.shape[0], theta.shape[1], 2, dtype=working_dtype(theta.dtype))
    if way == "triton":
        y, statistics[:, :, :1], statistics[:, :, 1:] = triton_softmax.forward(theta, phi, g, scale)
        y = y.contiguous()
    elif way == "inference" and softmax_symmetric.suits(theta, phi, g, scale, memory_budget):
        y = softmax_symmetric.forward(theta, g, scale)
    elif softmax_tiles.suits(theta, phi, g):
        y, statistics[:, :, :1] = softmax_tiles.forward(theta, phi, g, scale)
    else:
        follows = way != "inference"
        y, _ = softmax_rows.forward(
            theta, phi, g, scale, keep=False, memory_budget=memory_budget, for_backward=follows
        )
    return y, none, statistics


def backward(
    dy: Tensor,
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    y: Tensor,
    kept: Tensor,
    statistics: Tensor,
    scale: float,
    way: str,
    wanted: Wanted,
    memory_budget: int | None,
) -> Gradients:
    with torch.no_grad(), without_autocast(dy.device):
        if way == "triton":
            row_max, row_sum = (statistics[:, :, i : i + 1].contiguous() for i in (0, 1))
            return triton_softmax.backward(dy, theta, phi, g, y, row_max, row_sum, scale, wanted)
        if way != "keep" and softmax_tiles.suits(theta, phi, g):
            return softmax_tiles.backward(dy, theta, phi, g, y, statistics[:, :, :1], scale, wanted)
        p = kept if way == "keep" else None
        return softmax_rows.backward(dy, theta, phi, g, scale, p, wanted, memory_budget=memory_budget)


class SoftmaxAverage(torch.autograd.Function):
    """apply(theta, phi, g, scale, way, memory_budget) -> y, p or empty, statistics or empty."""

    @staticmethod
    def forward(
        theta: Tensor, phi: Tensor, g: Tensor, scale: float, way: Way, memory_budget: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `forward`."""
        return forward(theta, phi, g, scale, way, memory_budget)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs."""
        theta, phi, g, ctx.scale, ctx.way, ctx.memory_budget = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(theta, phi, g, *output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """The gradients that are asked for, which can be differentiated once more."""
        if dy is None:
            return (None,) * 6
        wanted = tuple(ctx.needs_input_grad[:3])
        arguments = (dy, *ctx.saved_tensors, ctx.scale, ctx.way, wanted, ctx.memory_budget)
        grads = SoftmaxGradients.apply(*arguments) if torch.is_grad_enabled() else backward(*arguments)
        return (*grads, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
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
        statistics: Tensor,
        scale: float,
        way: Way,
        wanted: Wanted,
        memory_budget: int | None,
    ) -> Gradients:
        """See `backward`."""
        return backward(dy, theta, phi, g, y, kept, statistics, scale, way, wanted, memory_budget)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        """Keep the inputs."""
        dy, theta, phi, g, _, _, _, ctx.scale, _, ctx.wanted, _ = inputs
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
        return (*grads, *(None,) * 7)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
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
            "nonlocal_nn.ops.equation.gaussian, which holds the queries x keys matrix"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        """A mapped axis is one more batch axis."""
        return fold_vmapped(SoftmaxSecondGradients.apply, info.batch_size, in_dims, arguments)
