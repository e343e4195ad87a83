"""Squeeze-and-excitation (Hu, Shen and Sun, CVPR 2018): channels are scaled by what the whole map says.

>>> import torch
>>> block = SqueezeExcitation(64, gate="twice_sigmoid")
>>> u = torch.randn(2, 64, 7, 5)
>>> torch.equal(block(u), u)  # starts as the identity, and learns
True
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nonlocal_nn._typing import Float
from nonlocal_nn.blocks.options import check_choice
from nonlocal_nn.ops.context import as_written, pooled, recalibrated

Gate = Literal["sigmoid", "hard_sigmoid", "twice_sigmoid"]
Pool = Literal["average", "max"]

_REDUCTION = 16  # the paper's


class SqueezeExcitation(nn.Module):
    """Channels scaled by gates: y = s u [+ shortcut], s = gate(W_2 relu(W_1 z)), z the mean of u (Eqs. 2-4).

    >>> SqueezeExcitation(64).hidden, SqueezeExcitation(64, reduction=4).hidden, SqueezeExcitation(8).hidden
    (4, 16, 1)

    Any number of position axes: 1-D, images, video.

    Args:
        channels: of u.
        reduction: the hidden layer has max(1, channels // reduction) numbers; None: 16.
        hidden: so many instead, exactly.
        gate: "sigmoid", as in the paper; "hard_sigmoid", relu6(v + 3) / 6; "twice_sigmoid", 2 sigmoid(v) with
            the last layer at zero, which starts as the identity, exactly and in every dtype, and learns.
        bias: of both layers.
        pool: z is the "average" of every channel, or its "max".

    Raises:
        ValueError: a number below 1, `reduction` with `hidden`, a gate or pool of another name.
    """

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        hidden: int | None = None,
        gate: Gate = "sigmoid",
        bias: bool = True,
        pool: Pool = "average",
    ) -> None:
        super().__init__()
        self.channels, self.hidden = channels, hidden_of(channels, reduction, hidden)
        check_choice("gate", gate, get_args(Gate))
        check_choice("pool", pool, get_args(Pool))
        self.gate, self.pool = gate, pool
        self.W_1 = nn.Linear(channels, self.hidden, bias=bias)
        self.W_2 = nn.Linear(self.hidden, channels, bias=bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The initial weights (He et al. 2015); the last layer is zero where the gate is twice_sigmoid."""
        nn.init.kaiming_normal_(self.W_1.weight, nonlinearity="relu", generator=generator)
        nn.init.normal_(self.W_2.weight, std=self.hidden**-0.5, generator=generator)
        if self.gate == "twice_sigmoid":
            nn.init.zeros_(self.W_2.weight)
        for layer in (self.W_1, self.W_2):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        u: Float[Tensor, "batch channel *positions"],
        shortcut: Float[Tensor, "batch channel *positions"] | None = None,
    ) -> Float[Tensor, "batch channel *positions"]:
        """S u, or s u + shortcut in one pass, of u's shape.

        Raises:
            ValueError: another number of channels, no positions, a shortcut of another shape.
        """
        check_map(u, self.channels)
        if shortcut is not None and shortcut.shape != u.shape:
            raise ValueError(f"the shortcut has the shape {tuple(shortcut.shape)}, the map {tuple(u.shape)}")
        if self.pool == "max":  # where the largest value is, its gradient goes: nothing to gain by hand
            z = u.flatten(2).amax(dim=2)
            return as_written(u, lambda _: (self._gates_of(z), None), None, shortcut)
        return recalibrated(u, lambda z: (self._gates_of(z), None), tuple(self.parameters()), None, shortcut)

    @torch.no_grad()
    def gates(self, u: Float[Tensor, "batch channel *positions"]) -> Float[Tensor, "batch channel"]:
        """The scales s that `forward` gives the channels.

        >>> SqueezeExcitation(4, gate="twice_sigmoid").gates(torch.randn(1, 4, 3))
        tensor([[1., 1., 1., 1.]])
        """
        check_map(u, self.channels)
        return self._gates_of(u.flatten(2).amax(dim=2) if self.pool == "max" else pooled(u, None)[0])

    def _gates_of(self, z: Tensor) -> Tensor:
        return apply_gate(self.gate, self.W_2(torch.relu(self.W_1(z))))

    def extra_repr(self) -> str:
        """The block in the paper's symbols."""
        sizes = f"{self.channels} -> {self.hidden} -> {self.channels}"
        return f"{sizes}: y = s u, s = {self.gate}(W_2 relu(W_1 z)), z = {self.pool} of u"


def hidden_of(channels: int, reduction: int | None, hidden: int | None) -> int:
    """How many numbers the hidden layer has."""
    if reduction is not None and hidden is not None:
        raise ValueError(f"reduction = {reduction} and hidden = {hidden}: give one of them")
    for name, value in (("channels", channels), ("reduction", reduction), ("hidden", hidden)):
        if value is not None and value < 1:
            raise ValueError(f"{name} = {value}: it must be 1 or more")
    return hidden or max(1, channels // (reduction or _REDUCTION))


def apply_gate(gate: Gate, values: Tensor) -> Tensor:
    """The gate's function."""
    if gate == "hard_sigmoid":
        return (values + 3).clamp(0, 6) / 6  # torch's own has no second derivative
    return 2 * values.sigmoid() if gate == "twice_sigmoid" else values.sigmoid()


def check_map(x: Tensor, channels: int) -> None:
    """Raises ValueError for what is no (batch, channels, positions ...)."""
    if x.dim() < 3 or x.shape[1] != channels:
        raise ValueError(f"expected (batch, {channels}, positions ...), got {tuple(x.shape)}")
    if 0 in x.shape[2:]:
        raise ValueError(f"a map of {tuple(x.shape)} has no positions to average over")
