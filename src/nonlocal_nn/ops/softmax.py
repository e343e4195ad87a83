"""The softmax average of the gaussian and the embedded gaussian (Eqs. 1 to 3), in memory linear in N.

    y_i = sum_j p_ij g_j,      p_i = softmax_j(scale theta_i . phi_j)

`dispatch` says which form computes it. In eager mode it is an autograd function; to torch.compile and
torch.export it is one operator, `nonlocal_nn::softmax_average`, whose inside they need not follow, so that
sizes may be dynamic and memory stays linear. A program saved by torch.export needs this module imported.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nonlocal_nn._typing import Float
from nonlocal_nn.ops import equation, softmax_rows
from nonlocal_nn.ops.checks import check_embeddings, wants_gradient, without_autocast, working_dtype
from nonlocal_nn.ops.cpu.gemm import has_onednn
from nonlocal_nn.ops.cpu.workspace import check_budget, fits
from nonlocal_nn.ops.dispatch import Form, plain_operations, softmax_form
from nonlocal_nn.ops.gpu import half_rows
from nonlocal_nn.ops.rows import chunk_bytes
from nonlocal_nn.ops.softmax_rows import Gradients, Wanted
from nonlocal_nn.ops.vmap import fold_vmapped

# keep: rows, and p kept for the backward pass. linear: rows. inference: rows, and no backward pass follows.
# half: rows in half precision, on a GPU. The operators' schemas call it `way`.
Mode = Literal["keep", "linear", "inference", "half"]


def gaussian(
    theta: Float[Tensor, "batch query d"],
    phi: Float[Tensor, "batch key d"],
    g: Float[Tensor, "batch key channel"],
    scale: float = 1.0,
    *,
    memory_budget: int | None = None,
) -> Float[Tensor, "batch query channel"]:
    """y_i = sum_j softmax_j(scale theta_i . phi_j) g_j (Eqs. 1 to 3), a few query rows at a time.

    >>> import torch
    >>> theta, phi = torch.randn(1, 5, 3), torch.randn(1, 4, 3)
    >>> gaussian(theta, phi, torch.ones(1, 4, 2)).allclose(torch.ones(1, 5, 2))  # weights sum to one
    True

    The backward pass is faster with the weights of the forward pass kept, queries x keys of them. They are
    kept where they fit `memory_budget`, and made again, some at a time, where they do not: memory is then
    linear in the positions.

    memory_budget: bytes to be taken beside inputs, results and gradients; buffers follow from it, down to one
        row. None: 32 MiB or a 32nd of the memory of the machine (or container, or GPU), whichever is more:
        what is free at the moment has no say, so that a forward pass made again saves the same. 0: keep
        nothing, with buffers as large as is fast.

    Half precisions are summed in float32, also under autocast. Derivatives of derivatives are slower.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, with the offending values.
    """
    check_embeddings(theta, phi, g)
    check_budget(memory_budget)
    dtype = theta.dtype
    with without_autocast(theta.device):
        if plain_operations():
            return equation.gaussian(*_in_working_dtype(theta, phi, g), scale).to(dtype)
        for_backward = wants_gradient(theta, phi, g)
        form = _form(theta, phi, g, for_backward)
        if form in ("flash", "efficient") and _attention_fits(theta, phi, g, memory_budget):
            return _attention(theta, phi, g, scale, form)
        mode: Mode = "half"
        if form != "half":
            theta, phi, g = _in_working_dtype(theta, phi, g)
            mode = "inference"
            if for_backward:
                mode = "keep" if _keeps(theta, phi, memory_budget) else "linear"
        if torch.compiler.is_compiling():
            y: Tensor = torch.ops.nonlocal_nn.softmax_average(theta, phi, g, scale, mode, memory_budget)[0]
        elif mode == "inference" and not torch._C._are_functorch_transforms_active():
            y = forward(theta, phi, g, scale, mode, memory_budget)[0]  # without the cost of a function
        else:
            y = SoftmaxAverage.apply(theta, phi, g, scale, mode, memory_budget)[0]
        return y.to(dtype)


def _in_working_dtype(theta: Tensor, phi: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where theta is phi it stays so: gradients of the two are then added before they are rounded."""
    dtype = working_dtype(theta.dtype)
    wide = theta.to(dtype)
    return wide, wide if phi is theta else phi.to(dtype), g.to(dtype)


def _form(theta: Tensor, phi: Tensor, g: Tensor, for_backward: bool) -> Form:
    on_gpu = theta.device.type == "cuda"
    if torch.compiler.is_exporting() or (not on_gpu and torch.compiler.is_compiling()):
        return "rows"  # a program for many sizes must not depend on one
    if not on_gpu and torch._C._are_functorch_transforms_active():
        return "rows"
    return softmax_form(
        theta.device.type,
        torch.cuda.get_device_capability(theta.device) if on_gpu else None,
        theta.dtype,
        theta.shape[2],
        g.shape[2],
        theta.shape[1],
        phi.shape[1],
        batch=theta.shape[0],
        gradients=for_backward,
        same_bits=not torch.are_deterministic_algorithms_enabled(),
        tf32=on_gpu and torch.backends.cuda.matmul.fp32_precision == "tf32",
        onednn=not on_gpu and has_onednn(theta),
    )


def _attention(theta: Tensor, phi: Tensor, g: Tensor, scale: float, form: Form) -> Tensor:
    """Torch's attention with one head."""
    kernel = SDPBackend.FLASH_ATTENTION if form == "flash" else SDPBackend.EFFICIENT_ATTENTION
    query, key, value = (x.unsqueeze(1).contiguous() for x in (theta, phi, g))
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1)


def _attention_fits(theta: Tensor, phi: Tensor, g: Tensor, memory_budget: int | None) -> bool:
    """Whether the copies that torch's attention needs of transposed maps stay within a budget."""
    if not memory_budget:
        return True
    copies = sum(x.numel() * x.element_size() for x in (theta, phi, g) if not x.is_contiguous())
    return copies <= memory_budget


def _keeps(theta: Tensor, phi: Tensor, memory_budget: int | None) -> bool:
    """Whether p is kept for the backward pass: it fits the budget, together with one buffer.

    Without it a forward and a backward pass take up to 1.20 times as long (784 positions, d 512).
    """
    if torch.compiler.is_exporting():
        return False
    keys = phi.shape[1]
    size = theta.shape[0] * theta.shape[1] * keys * theta.element_size()
    chunk = chunk_bytes(keys, theta, memory_budget, 2)
    return fits(size + min(size, chunk), theta.device, memory_budget)


def forward(
    theta: Tensor, phi: Tensor, g: Tensor, scale: float, mode: str, memory_budget: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Y; p if it is kept, else empty; two numbers a row, if p is not kept, which `half` fills.

    Shapes depend on `mode` alone, so that they are known while sizes are not.
    """
    none = theta.new_empty(0)
    if mode == "keep":
        y, kept = softmax_rows.forward(theta, phi, g, scale, keep=True, memory_budget=memory_budget)
        return y, kept, none
    statistics = theta.new_zeros(theta.shape[0], theta.shape[1], 2, dtype=working_dtype(theta.dtype))
    if mode == "half":
        y, statistics = half_rows.forward(theta, phi, g, scale, memory_budget)
        return y, none, statistics
    follows = mode != "inference"
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
    mode: str,
    wanted: Wanted,
    memory_budget: int | None,
) -> Gradients:
    with torch.no_grad(), without_autocast(dy.device):
        if mode == "half":
            return half_rows.backward(dy, theta, phi, g, y, statistics, scale, wanted, memory_budget)
        p = kept if mode == "keep" else None
        return softmax_rows.backward(dy, theta, phi, g, scale, p, wanted, memory_budget=memory_budget)


class SoftmaxAverage(torch.autograd.Function):
    """apply(theta, phi, g, scale, mode, memory_budget) -> y, p or empty, statistics or empty."""

    @staticmethod
    def forward(
        theta: Tensor, phi: Tensor, g: Tensor, scale: float, mode: Mode, memory_budget: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `forward`."""
        return forward(theta, phi, g, scale, mode, memory_budget)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs."""
        theta, phi, g, ctx.scale, ctx.mode, ctx.memory_budget = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        y, kept, statistics = output
        # Rows of whole precision do without y, which the caller may then change in place.
        y = y if ctx.mode == "half" else y.new_empty(0)
        ctx.save_for_backward(theta, phi, g, y, kept, statistics)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """The gradients that are asked for."""
        if dy is None:
            return (None,) * 6
        theta, phi, g, y, kept, statistics = ctx.saved_tensors
        wanted: Wanted = tuple(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # to be differentiated again
            grads = softmax_rows.differentiable_gradients(dy, theta, phi, g, ctx.scale)
        else:
            budget = ctx.memory_budget
            grads = backward(dy, theta, phi, g, y, kept, statistics, ctx.scale, ctx.mode, wanted, budget)
        return (*(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        """A mapped axis is one more batch axis."""
        return fold_vmapped(SoftmaxAverage.apply, info.batch_size, in_dims, arguments)


# --- one operator for torch.compile and torch.export ---


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
        y, kept, statistics = forward(theta, phi, g, scale, way, memory_budget)
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
    grads = backward(dy, theta, phi, g, y, kept, statistics, scale, way, wants, memory_budget)
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


def _op_backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.nonlocal_nn.softmax_gradients
    grads = gradients(dy, *ctx.saved_tensors, ctx.scale, ctx.way, wanted, ctx.memory_budget)
    return (*(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None, None)


_softmax_average_op.register_autograd(_op_backward, setup_context=_op_context)
