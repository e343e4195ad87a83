"""Concatenation (Eq. 5): sum_j ReLU(a_i + b_j) g_j for every i without the N x N matrix, by sorting.

As a function of a the sum is piecewise linear with corners at t = -b. Let t_1 <= t_2 <= ... be the sorted
corners, g in their order:

    step_k  = sum_{j<=k} g_j                    (the slope after corner k)
    hinge_k = sum_{j<=k} (t_k - t_j) g_j        (the value at corner k)
    y(a)    = hinge_k + (a - t_k) step_k        with k the last corner below a; 0 if there is none

Every weight here is a difference of corners and not negative, so nothing large is subtracted from anything
large, however far a and b lie apart (a step_k + sum b_j g_j, the obvious form, cancels). Inside blocks of
corners the sums over j are small triangular matrix products; from block to block they are carried in float64:

    S_next = S + sum_block g_j
    H_next = H + (T_next - T) S + sum_block (T_next - t_j) g_j        (T: a block's first corner)

The gradients have the same form with the roles of a and b exchanged, so they can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nonlocal_nn._typing import Float
from nonlocal_nn.ops import dispatch, equation
from nonlocal_nn.ops.checks import check_scores, without_autocast, working_dtype
from nonlocal_nn.ops.layout import is_transposed
from nonlocal_nn.ops.vmap import fold_vmapped_one


def concatenation(
    a: Float[Tensor, "batch query"],
    b: Float[Tensor, "batch key"],
    g: Float[Tensor, "batch key channel"],
) -> Float[Tensor, "batch query channel"]:
    """y_i = 1/N sum_j ReLU(a_i + b_j) g_j (Eqs. 1 and 5), sorted: O(N log N + N channels).

    >>> concatenation(torch.tensor([[1.0]]), torch.tensor([[3.0, -2.0]]), torch.tensor([[[1.0], [5.0]]]))
    tensor([[[2.]]])

    w_f . [theta_i, phi_j] of the paper is a_i + b_j with a_i = theta_i . w_f[:d] and b_j = phi_j . w_f[d:].
    Half precisions are summed in float32, also under autocast.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, with the offending values.
    """
    check_scores(a, b, g)
    dtype, work = g.dtype, working_dtype(g.dtype)
    with without_autocast(g.device):
        a, b, g = a.to(work), b.to(work), g.to(work)
        if dispatch.plain_operations():
            return equation.concatenation(a, b, g).to(dtype)
        if torch.compiler.is_compiling():
            total: Tensor = torch.ops.nonlocal_nn.hinge_sums(a, b, g)
            return (total / b.shape[1]).to(dtype)
        y: Tensor = HingeSum.apply(a, b, g, 1 / b.shape[1])
        if is_transposed(g):
            y = y.mT.contiguous().mT
        return y.to(dtype)


def hinge_sums(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """sum_j ReLU(a_i + b_j) g_j for a (batch, queries), b (batch, keys), g (batch, keys, channels).

    >>> a, b, g = torch.tensor([[1.0]]), torch.tensor([[3.0, -2.0]]), torch.tensor([[[1.0], [5.0]]])
    >>> hinge_sums(a, b, g)
    tensor([[[4.]]])
    """
    return _sums(a, b, g, hinge=True, step=False)[0]


def step_sums(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """sum_j [a_i + b_j > 0] g_j, the slope of `hinge_sums` in a_i."""
    return _sums(a, b, g, hinge=False, step=True)[1]


def _sums(
    a: Tensor, b: Tensor, g: Tensor, *, hinge: bool, step: bool, dot: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sums asked for, (batch, queries, channels); the others are empty tensors.

    dot (batch, queries, channels): of the steps, only their products with it, (batch, queries).
    """
    batch, keys, channels = g.shape
    shape = (batch, a.shape[1], channels)
    hinges = g.new_zeros(shape if hinge else 0)
    steps = g.new_zeros(0 if not step else shape if dot is None else shape[:2])
    if keys == 0:  # an empty sum; the public functions refuse it, but gradients have the queries for keys
        return hinges, steps
    corners, order = torch.sort(-b.to(working_dtype(b.dtype)).contiguous(), dim=1)
    a = a.to(corners.dtype).contiguous()
    below = torch.searchsorted(corners, a)  # how many corners lie below a_i: those keys have a_i + b_j > 0
    reached = (below > 0)[:, :, None]
    last = (below - 1).clamp_(min=0)
    # Where no corner is reached the first one stands in, with a rest of 0 (there hinge_1 = 0 as well).
    rest = (a - corners.gather(1, last))[:, :, None].where(reached, 0.0)
    # Sorting puts NaN last, where no query would notice it. Eq. 1 makes every y NaN then, and so do we.
    rest = rest.where(~corners[:, -1].isnan()[:, None, None], torch.nan)

    width = max(4, _chunk_bytes() // max(1, batch * keys * corners.element_size()))
    for first in range(0, channels, width):  # channels are independent of each other
        part = slice(first, first + width)
        with without_autocast(g.device):
            hinge_k, step_k = _sums_at_corners(corners, order, g[:, :, part], hinge=hinge)
        slope = _take_rows(step_k, last)
        if hinge:
            hinges[:, :, part] = _take_rows(hinge_k, last).addcmul_(slope, rest)
        if step:
            slope.masked_fill_(~reached, 0.0)
            if dot is None:
                steps[:, :, part] = slope
            else:
                steps += slope.mul_(dot[:, :, part]).sum(dim=2)
    return hinges, steps


def _chunk_bytes() -> int:
    return dispatch.THRESHOLDS.concatenation_chunk_bytes


def _take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[batch, rows[batch]]: whole rows are copied, several times faster than `gather` element by element."""
    offsets = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (rows + offsets).flatten()).view(*rows.shape, x.shape[2])


def _sums_at_corners(corners: Tensor, order: Tensor, g: Tensor, *, hinge: bool) -> tuple[Tensor, Tensor]:
    """hinge_k (empty if not asked for) and step_k, (batch, padded keys, channels) in the corners' dtype."""
    batch, keys, channels = g.shape
    block = min(dispatch.THRESHOLDS.concatenation_block, 1 << (keys - 1).bit_length())
    blocks = -(-keys // block)
    extra = blocks * block - keys
    sorted_g = _take_rows(g, order).to(corners.dtype)
    if extra:  # padding repeats the last corner, so that differences stay finite, with g = 0
        sorted_g = pad(sorted_g, (0, 0, 0, extra))
        corners = torch.cat([corners, corners[:, -1:].expand(-1, extra)], dim=1)
    t = corners.view(batch, blocks, block)
    sorted_g = sorted_g.view(batch, blocks, block, channels)
    here, following = t[:, :-1, 0], t[:, 1:, 0]

    steps = torch.matmul(t.new_ones(block, block).tril_(), sorted_g)
    carried_step = _carry(steps[:, :-1, -1].double())
    slope = carried_step.to(t.dtype)[:, :, None]
    if not hinge:
        return t.new_empty(0), steps.add_(slope).flatten(1, 2)

    hinges = torch.empty_like(steps)
    several = max(1, _chunk_bytes() // max(1, batch * block * block * t.element_size()))
    for first in range(0, blocks, several):
        some = t[:, first : first + several]
        weights = (some[..., :, None] - some[..., None, :]).relu_()  # 0 where corner j comes after corner k
        hinges[:, first : first + several] = torch.matmul(weights, sorted_g[:, first : first + several])
    # The sums over whole blocks, seen from the next block's first corner.
    to_following = (following[..., None] - t[:, :-1])[..., None, :]
    whole = torch.matmul(to_following, sorted_g[:, :-1])[:, :, 0].double()
    whole += (following - here).double()[..., None] * carried_step[:, :-1]
    hinges += _carry(whole).to(t.dtype)[:, :, None]
    hinges.addcmul_((t - t[..., :1])[..., None], slope)
    return hinges.flatten(1, 2), steps.add_(slope).flatten(1, 2)


def _carry(blocks: Tensor) -> Tensor:
    """What all blocks before each one add up to, one more than there are blocks given."""
    return pad(blocks.cumsum(dim=1), (0, 0, 1, 0))


class HingeSum(torch.autograd.Function):
    """apply(a, b, g, scale) -> scale hinge_sums; differentiable any number of times."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, g: Tensor, scale: float) -> Tensor:
        """The sums."""
        return hinge_sums(a, b, g).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        """Nothing is kept but the inputs."""
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dg_j = hinge_sums(b, a, dy), da_i = dy_i . step_sums(a, b, g), db_j = g_j . step_sums(b, a, dy)."""
        a, b, g = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            da = (StepSum.apply(a, b, g) * dy).sum(dim=2) * ctx.scale
            db = (StepSum.apply(b, a, dy) * g).sum(dim=2) * ctx.scale
            return da, db, HingeSum.apply(b, a, dy, ctx.scale), None
        want_a, want_b, want_g, _ = ctx.needs_input_grad
        grads = hinge_gradients(dy, a, b, g, (want_a, want_b, want_g))
        return (*(None if grad is None else grad.mul_(ctx.scale) for grad in grads), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        """A mapped axis is one more batch axis."""
        return fold_vmapped_one(HingeSum.apply, info.batch_size, in_dims, arguments)


class StepSum(torch.autograd.Function):
    """apply(a, b, g) -> step_sums; its slope in a and b is 0 almost everywhere."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
        """The sums."""
        return step_sums(a, b, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        """Nothing is kept but a and b."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, None, Tensor]:
        """dg_j = sum_i [a_i + b_j > 0] dy_i."""
        a, b = ctx.saved_tensors
        return None, None, StepSum.apply(b, a, dy)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        """A mapped axis is one more batch axis."""
        return fold_vmapped_one(StepSum.apply, info.batch_size, in_dims, arguments)


def hinge_gradients(
    dy: Tensor, a: Tensor, b: Tensor, g: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a, b and g that are wanted; sums over i share one sorting of a."""
    want_a, want_b, want_g = wanted
    da = db = dg = None
    if want_b or want_g:
        hinges, steps = _sums(b, a, dy, hinge=want_g, step=want_b, dot=g)
        db, dg = steps if want_b else None, hinges if want_g else None
    if want_a:
        da = _sums(a, b, g, hinge=False, step=True, dot=dy)[1]
    return da, db, dg


# --- one operator for torch.compile and torch.export, whose inside they need not follow ---


@torch.library.custom_op(
    "nonlocal_nn::hinge_sums", mutates_args=(), schema="(Tensor a, Tensor b, Tensor g) -> Tensor"
)
def hinge_sums_op(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """`hinge_sums` as an operator."""
    return hinge_sums(a, b, g)


@hinge_sums_op.register_fake
def _(a: Tensor, b: Tensor, g: Tensor) -> Tensor:  # noqa: ARG001
    return g.new_empty(g.shape[0], a.shape[1], g.shape[2])


@torch.library.custom_op(
    "nonlocal_nn::hinge_gradients",
    mutates_args=(),
    schema="(Tensor dy, Tensor a, Tensor b, Tensor g) -> (Tensor, Tensor, Tensor)",
)
def _hinge_gradients_op(dy: Tensor, a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    da, db, dg = hinge_gradients(dy, a, b, g, (True, True, True))
    assert da is not None
    assert db is not None
    assert dg is not None
    return da, db, dg


@_hinge_gradients_op.register_fake
def _(dy: Tensor, a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    return a.new_empty(a.shape), b.new_empty(b.shape), g.new_empty(g.shape)


def _op_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _op_backward(ctx: Any, dy: Tensor) -> Any:
    return torch.ops.nonlocal_nn.hinge_gradients(dy, *ctx.saved_tensors)


hinge_sums_op.register_autograd(_op_backward, setup_context=_op_context)
