"""Global context (Cao et al., ICCV Workshops 2019): one context of the whole map, given to every position.

>>> import torch
>>> block = GlobalContext(64)
>>> x = torch.randn(2, 64, 7, 5)
>>> torch.equal(block(x), x)  # starts as the identity, and learns
True
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nonlocal_nn._typing import Float, Int
from nonlocal_nn.blocks.grid import flat_positions
from nonlocal_nn.blocks.options import check_choice
from nonlocal_nn.blocks.squeeze_excitation import Gate, apply_gate, check_map, hidden_of
from nonlocal_nn.ops.checks import working_dtype
from nonlocal_nn.ops.context import Change, recalibrated
from nonlocal_nn.ops.equation import gaussian_affinity
from nonlocal_nn.pairwise import PairwiseFunction

Pooling = Literal["softmax", "average"]
Fuse = Literal["add", "scale"]

_FUNCTION = PairwiseFunction(
    "global_context",
    gaussian_affinity,
    equation="sum_j softmax_j(w_k . x_j) x_j",
    label="global context",
    product=True,
    signed=False,
    sums_to_one=True,
)


class GlobalContext(nn.Module):
    """A non-local block whose logits look at the key alone, so that all positions share one row of weights.

        c = sum_j softmax_j(w_k . x_j) x_j        z_i = s x_i + t
        t = W_v2 relu(LN(W_v1 c)),   s = gate(the same with weights of its own)

    (Eq. 4 of the paper, whose block has t alone.)

    >>> GlobalContext(64).hidden, GlobalContext(64, fuse=("scale", "add"))
    (4, GlobalContext(
      64 -> 4 -> 64: z_i = s x_i + t, c = sum_j softmax_j(w_k . x_j) x_j
      (add): ContextTransform(
        (W_v1): Linear(in_features=64, out_features=4, bias=True)
        (norm): LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
        (W_v2): Linear(in_features=4, out_features=64, bias=True)
      )
      (scale): ContextTransform(
        (W_v1): Linear(in_features=64, out_features=4, bias=True)
        (norm): LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
        (W_v2): Linear(in_features=4, out_features=64, bias=True)
      )
    ))

    Any number of position axes. The last layers start at zero, biases too: a new block is the identity.

    Args:
        channels: of x.
        reduction: the hidden layer has max(2, channels // reduction) numbers (1 without a norm: that of one
            number is zero); None: 16.
        hidden: so many instead, exactly.
        pooling: "softmax" as above; "average": c is the mean.
        fuse: "add" for t, "scale" for s, or both.
        norm: "layer" for LN; None: none.
        gate: of s: "twice_sigmoid", 1 at the start; "sigmoid", as GCNet has it, which starts at x / 2;
            "hard_sigmoid".

    Raises:
        ValueError: a number below 1, `reduction` with `hidden`, one hidden number with a norm, names that do
            not exist, nothing to fuse.
    """

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        hidden: int | None = None,
        pooling: Pooling = "softmax",
        fuse: Sequence[Fuse] = ("add",),
        norm: Literal["layer"] | None = "layer",
        gate: Gate = "twice_sigmoid",
    ) -> None:
        super().__init__()
        self.channels, self.hidden = channels, hidden_of(channels, reduction, hidden)
        if norm is not None and self.hidden == 1:
            if hidden is not None:
                raise ValueError(
                    "hidden = 1 with norm='layer': the norm of one number is zero; 2, or norm=None"
                )
            self.hidden = 2
        check_choice("pooling", pooling, get_args(Pooling))
        check_choice("gate", gate, get_args(Gate))
        check_choice("norm", norm, ("layer", None))
        ways = (fuse,) if isinstance(fuse, str) else tuple(fuse)
        for way in ways:
            check_choice("fuse", way, get_args(Fuse))
        if not ways or len(set(ways)) < len(ways):
            raise ValueError(f"fuse = {ways}: ('add',), ('scale',) or both")
        self.pooling, self.gate = pooling, gate
        self.w_k = nn.Parameter(torch.empty(channels)) if pooling == "softmax" else None
        layer_norm = norm == "layer"
        self.add = ContextTransform(channels, self.hidden, layer_norm) if "add" in ways else None
        self.scale = ContextTransform(channels, self.hidden, layer_norm) if "scale" in ways else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The initial weights, with which the block is the identity (but for gate="sigmoid")."""
        if self.w_k is not None:
            nn.init.normal_(self.w_k, std=(2 / self.channels) ** 0.5)
        for transform in (self.add, self.scale):
            if transform is not None:
                transform.reset_parameters()

    def forward(
        self, x: Float[Tensor, "batch channel *positions"]
    ) -> Float[Tensor, "batch channel *positions"]:
        """Z, of x's shape.

        Raises:
            ValueError: another number of channels, no positions.
        """
        check_map(x, self.channels)
        transforms = [part for part in (self.add, self.scale) if part is not None]
        parameters = tuple(tensor for part in transforms for tensor in part.parameters())
        return recalibrated(x, self._change, parameters, self.w_k)

    def _change(self, c: Tensor) -> Change:
        s = None if self.scale is None else apply_gate(self.gate, self.scale(c))
        return s, None if self.add is None else self.add(c)

    def key_shape(self, position_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of keys: all positions."""
        return tuple(position_shape)

    span = "spacetime"
    temporal_groups = 1

    @property
    def function(self) -> PairwiseFunction:
        """F and C of Eq. 1: a softmax whose logits look at the key alone."""
        return _FUNCTION

    @torch.no_grad()
    def embeddings(
        self, x: Float[Tensor, "batch channel *positions"]
    ) -> tuple[Float[Tensor, "batch channel *positions"], Float[Tensor, "batch channel *positions"]]:
        """theta, which is w_k at every position (zeros for the mean), and phi, which is x."""
        check_map(x, self.channels)
        w_k = torch.zeros_like(x[0].flatten(1)[:, 0]) if self.w_k is None else self.w_k.to(x.dtype)
        return w_k.view(1, -1, *(1,) * (x.dim() - 2)).expand(x.shape), x

    @torch.no_grad()
    def affinity_of(
        self,
        theta: Float[Tensor, "batch channel *positions"],
        phi: Float[Tensor, "batch channel *keys"],
        queries: Int[Tensor, "query ..."],
    ) -> Float[Tensor, "batch query key"]:
        """The rows that `affinity` gives, from kept `embeddings`.

        Raises:
            ValueError: for a query that is not a position of theta's grid.
        """
        places = flat_positions(queries.to(theta.device), tuple(theta.shape[2:]))
        dtype = working_dtype(theta.dtype)
        left = theta.flatten(2)[:, :, places].mT.to(dtype)
        return self.function.rows(left, phi.flatten(2).mT.to(dtype))

    @torch.no_grad()
    def affinity(
        self, x: Float[Tensor, "batch channel *positions"], queries: Int[Tensor, "query ..."]
    ) -> Float[Tensor, "batch query key"]:
        """The weights p_j, the same row for every query.

        >>> rows = GlobalContext(4).affinity(torch.randn(1, 4, 3, 5), torch.tensor([0, 7]))
        >>> rows.shape, torch.equal(rows[:, 0], rows[:, 1])
        (torch.Size([1, 2, 15]), True)

        queries: flat positions (queries,) or coordinates (queries, axes).

        Raises:
            ValueError: for an x that `forward` would refuse, a query that is not a position of its grid.
        """
        return self.affinity_of(*self.embeddings(x), queries)

    def extra_repr(self) -> str:
        """The block in the paper's symbols."""
        z = " ".join(
            word for word, part in (("s", self.scale), ("x_i", self), ("+ t", self.add)) if part is not None
        )
        p = "softmax_j(w_k . x_j)" if self.w_k is not None else "1/N"
        return f"{self.channels} -> {self.hidden} -> {self.channels}: z_i = {z}, c = sum_j {p} x_j"


class ContextTransform(nn.Module):
    """W_v2 relu(LN(W_v1 c)), zero at the start."""

    def __init__(self, channels: int, hidden: int, layer_norm: bool) -> None:
        super().__init__()
        self.W_v1 = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden) if layer_norm else nn.Identity()
        self.W_v2 = nn.Linear(hidden, channels)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The initial weights (He et al. 2015); the last layer is zero."""
        nn.init.kaiming_normal_(self.W_v1.weight, nonlinearity="relu")
        nn.init.zeros_(self.W_v1.bias)
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.reset_parameters()
        nn.init.zeros_(self.W_v2.weight)
        nn.init.zeros_(self.W_v2.bias)

    def forward(self, c: Float[Tensor, "batch channel"]) -> Float[Tensor, "batch channel"]:
        """Of one context, or one for each entry of the batch."""
        y: Tensor = self.W_v2(torch.relu(self.norm(self.W_v1(c))))
        return y
