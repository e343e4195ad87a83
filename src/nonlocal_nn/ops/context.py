"""What a whole map says of each of its channels, given back to every position: y = s x + t.

    c = sum_j p_j x_j        p_j = 1/N, or softmax_j(w . x_j)        (s, t) = transform(c)
    y_i = s x_i + t [+ shortcut_i]

Squeeze-and-excitation (Hu, Shen and Sun, CVPR 2018) is p = 1/N with s alone; global context (Cao et al., ICCV
Workshops 2019) the softmax with t, s or both. `as_written` is this, line by line. `recalibrated` gives the
same with a backward pass by hand, which reads the map twice instead of six times:

    ds = sum_i dy_i x_i,   dt = sum_i dy_i        dc and the transform's gradients: autograd, on tiny tensors
    dp_j = dc . x_j        dl_j = p_j (dp_j - sum_k p_k dp_k)        dw = sum_j dl_j x_j
    dx_j = s dy_j + p_j dc + dl_j w

>>> import torch
>>> x = torch.randn(2, 3, 4, 5)
>>> double = recalibrated(x, lambda c: (torch.full_like(c, 2.0), None), ())
>>> torch.equal(double, 2 * x)
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nonlocal_nn._typing import Float
from nonlocal_nn.ops.checks import wants_gradient, working_dtype
from nonlocal_nn.ops.cpu.workspace import KEPT_BYTES, buffer, keep_freed_memory
from nonlocal_nn.ops.dispatch import plain_operations

Change = tuple[Tensor | None, Tensor | None]  # s and t, (batch, channel)
Transform = Callable[[Tensor], Change]


def recalibrated(
    x: Float[Tensor, "batch channel *positions"],
    transform: Transform,
    parameters: Sequence[Tensor],
    w: Float[Tensor, channel] | None = None,
    shortcut: Float[Tensor, "batch channel *positions"] | None = None,
) -> Float[Tensor, "batch channel *positions"]:
    """Y, of x's shape and layout.

    Args:
        transform: s and t, (batch, channel) or None, from c, (batch, channel).
        parameters: all tensors with gradients that `transform` uses.
        w: what softmax's logits are made with; None: the mean over positions.
    """
    if (
        plain_operations()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    ):
        return as_written(x, transform, w, shortcut)
    if wants_gradient(x, shortcut, w, *parameters):
        y: Tensor = _Recalibrated.apply(x, shortcut, w, transform, *parameters)
        return y
    return _changed(x, *transform(pooled(x, w)[0]), shortcut)


def as_written(x: Tensor, transform: Transform, w: Tensor | None, shortcut: Tensor | None) -> Tensor:
    """By operations that torch differentiates, traces and exports."""
    s, t = (part if part is None else _over(part, x) for part in transform(pooled(x, w)[0]))
    y = x if s is None else s.to(x.dtype) * x
    y = y if t is None else y + t.to(x.dtype)
    return y if shortcut is None else y + shortcut


def pooled(x: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """C (batch, channel), and p (batch, positions) where it is a softmax."""
    flat = x.flatten(2)
    if w is None:
        return flat.mean(dim=2), None
    rows = w.to(x.dtype).expand(len(x), 1, -1)  # bmm, where matmul would copy the map
    logits = torch.bmm(rows, flat).squeeze(1).to(working_dtype(x.dtype))
    p = logits.softmax(dim=1).to(x.dtype)
    # p times the map's transpose: the other way round takes four times as long.
    return torch.bmm(p.unsqueeze(1), flat.mT).squeeze(1), p


def _over(part: Tensor, x: Tensor) -> Tensor:
    """(batch, channel) as it meets a map."""
    return part.reshape(*part.shape, *(1,) * (x.dim() - 2))


def _changed(x: Tensor, s: Tensor | None, t: Tensor | None, shortcut: Tensor | None) -> Tensor:
    """Y, in memory that is used again: new pages would take four fifths of the time.

    Step by step: torch's addcmul takes longer than a product and a sum where one of them is a single number.
    """
    s, t = (None if part is None else _over(part, x).to(x.dtype) for part in (s, t))
    added = [part for part in (shortcut, t) if part is not None]
    y = _empty_like(x)
    if s is None:
        torch.add(x, added.pop(), out=y)
    else:
        torch.mul(x, s, out=y)
    for part in added:
        y.add_(part)
    return y


def _empty_like(x: Tensor) -> Tensor:
    if x.numel() * x.element_size() <= KEPT_BYTES:
        keep_freed_memory()
        return torch.empty_like(x)
    if x.is_contiguous():
        return buffer(tuple(x.shape), x)
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda axis: (-strides[axis], axis))
    if not x.permute(order).is_contiguous():
        return torch.empty_like(x)
    back = sorted(range(x.dim()), key=order.__getitem__)
    return buffer(tuple(x.shape[axis] for axis in order), x).permute(back)


class _Recalibrated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shortcut: Tensor | None,
        w: Tensor | None,
        transform: Transform,
        *parameters: Tensor,
    ) -> Tensor:
        c, p = pooled(x, w)
        with torch.enable_grad():
            ctx.c = c.detach().requires_grad_()
            ctx.s, ctx.t = transform(ctx.c)
        ctx.transform, ctx.has_shortcut = transform, shortcut is not None
        ctx.save_for_backward(x, w, p, *parameters)
        s, t = (None if part is None else part.detach() for part in (ctx.s, ctx.t))
        return _changed(x, s, t, shortcut)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, p, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return _differentiable(ctx, dy, x, w, parameters)
        dx = _empty_like(x)
        ds = None if ctx.s is None else _dots(dy, x, dx)
        dt = None if ctx.t is None else dy.flatten(2).sum(dim=2)
        outputs = [(part, d) for part, d in ((ctx.s, ds), (ctx.t, dt)) if part is not None]
        wanted = [ctx.c, *(tensor for tensor in parameters if tensor.requires_grad)]
        dc, *found = torch.autograd.grad(
            [part for part, _ in outputs],
            wanted,
            [d.to(part.dtype) for part, d in outputs if d is not None],
            retain_graph=True,
            allow_unused=True,
        )
        gradients = iter(found)
        of_parameters = [next(gradients) if tensor.requires_grad else None for tensor in parameters]
        s = None if ctx.s is None else _over(ctx.s.detach(), x).to(dy.dtype)
        dw = _map_gradients(dy, x, s, torch.zeros_like(ctx.c) if dc is None else dc, w, p, dx)
        return dx, dy if ctx.has_shortcut else None, dw, None, *of_parameters


def _dots(dy: Tensor, x: Tensor, scratch: Tensor) -> Tensor:
    """sum_i dy_i x_i, (batch, channel)."""
    if dy.dtype != working_dtype(dy.dtype) and x.numel():  # summed in float32, without rounding each product
        rows = dy.shape[0] * dy.shape[1]
        return torch.bmm(dy.reshape(rows, 1, -1), x.reshape(rows, -1, 1)).reshape(dy.shape[:2])
    return torch.mul(dy, x, out=scratch).flatten(2).sum(dim=2)


def _map_gradients(
    dy: Tensor, x: Tensor, s: Tensor | None, dc: Tensor, w: Tensor | None, p: Tensor | None, dx: Tensor
) -> Tensor | None:
    """Fills `dx`, and returns dw."""
    if w is None or p is None:
        mean = _over(dc / (x[0, 0].numel() if x.numel() else 1), x).to(dy.dtype)
        if s is None:
            torch.add(dy, mean, out=dx)
        else:
            torch.mul(dy, s, out=dx).add_(mean)
        return None
    flat = x.flatten(2)
    wide = p.to(working_dtype(x.dtype))
    dp = torch.bmm(dc.to(x.dtype).unsqueeze(1), flat).squeeze(1).to(wide.dtype)
    dl = (wide * (dp - (wide * dp).sum(dim=1, keepdim=True))).to(x.dtype)
    left = torch.stack((dc.to(dy.dtype), w.to(dy.dtype).expand_as(dc)), dim=2)
    right = torch.stack((p, dl), dim=1).to(dy.dtype)
    base = (dy if s is None else torch.mul(dy, s, out=dx)).flatten(2)
    if dx.is_contiguous():
        torch.baddbmm(base, left, right, out=dx.flatten(2))
    else:
        dx.copy_(torch.baddbmm(base, left, right).reshape(x.shape))
    return torch.bmm(dl.unsqueeze(1), flat.mT).sum(dim=(0, 1)).to(w.dtype)


def _differentiable(
    ctx: Any, dy: Tensor, x: Tensor, w: Tensor | None, parameters: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    inputs = [tensor for tensor in (x, w, *parameters) if tensor is not None and tensor.requires_grad]
    y = as_written(x, ctx.transform, w, None)
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True, allow_unused=True))

    def gradient(tensor: Tensor | None) -> Tensor | None:
        return next(found) if tensor is not None and tensor.requires_grad else None

    dx, dw = gradient(x), gradient(w)
    return dx, dy if ctx.has_shortcut else None, dw, None, *(gradient(tensor) for tensor in parameters)
