"""An image classifier of self-attention by relative positions (Cordonnier, Loukas and Jaggi, ICLR 2020).

    image -> pixels of `patch` x `patch` in one position -> linear -> layers -> mean over positions -> classes

A layer is attention over all positions, a linear map, and two linear maps with a GELU between, each with
dropout, added to what came in, and normalised (as BERT's). `PAPER` is the paper's, 12,086,844 parameters;
`SHORT` one that two cores train in minutes on images of half the size.

>>> sum(parameter.numel() for parameter in ImageAttention(SHORT).parameters())
89947
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nonlocal_nn.blocks.self_attention import SelfAttention2d


@dataclass(frozen=True)
class Shape:
    """Of a network.

    Attributes:
        side: rows and columns of an image in pixels; larger ones are averaged down.
        patch: rows and columns of pixels in one position.
        layers, heads, width, inner: how many; numbers of a position, and between the two linear maps.
        centre_deviation: of the first centres, in positions.
    """

    side: int = 32
    patch: int = 2
    layers: int = 6
    heads: int = 9
    width: int = 400
    inner: int = 512
    dropout: float = 0.1
    centre_deviation: float = 2.0
    classes: int = 10


PAPER = Shape()
SHORT = Shape(side=16, layers=3, width=48, inner=64, dropout=0.0, centre_deviation=1.5)


class AttentionLayer(nn.Module):
    """One layer: (batch, width, rows, columns) to the same."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention = SelfAttention2d(shape.width, shape.width, shape.heads)
        self.linear = nn.Linear(shape.width, shape.width)
        self.norm1, self.norm2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.first = nn.Linear(shape.width, shape.inner)
        self.second = nn.Linear(shape.inner, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        assert self.attention.centres is not None
        with torch.no_grad():
            self.attention.centres.mul_(shape.centre_deviation / 2)  # drawn with a deviation of 2

    def forward(self, x: Tensor) -> Tensor:
        """What came in, changed twice."""
        positions = x.movedim(1, 3)
        seen = self.linear(self.attention(x).movedim(1, 3))
        positions = self.norm1(positions + self.dropout(seen))
        made = self.second(nn.functional.gelu(self.first(positions)))
        y: Tensor = self.norm2(positions + self.dropout(made)).movedim(3, 1)
        return y


class ImageAttention(nn.Module):
    """Logits (batch, classes) of images (batch, 3, side, side)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.stem = nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch)
        self.layers = nn.ModuleList(AttentionLayer(shape) for _ in range(shape.layers))
        self.head = nn.Linear(shape.width, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits

    def attentions(self) -> list[SelfAttention2d]:
        """Of every layer."""
        return [layer.attention for layer in self.layers if isinstance(layer, AttentionLayer)]


Heads = tuple[list[list[tuple[float, float]]], list[list[float]]]


def heads_of(model: ImageAttention) -> Heads:
    """By layer, the (row, column) of every head's centre, and their spreads."""
    centres = [
        [(float(row), float(column)) for row, column in layer.centres.detach()]
        for layer in model.attentions()
        if layer.centres is not None
    ]
    return centres, [
        layer.spreads.abs().tolist() for layer in model.attentions() if layer.spreads is not None
    ]


@dataclass(frozen=True)
class Flops:
    """Of one image, twice the multiplications.

    Attributes:
        linear: of the linear layers alone, which is what the paper counts.
        separable: with the sums over positions as they are computed here, rows and then columns.
        dense: with sums over all pairs of positions.
    """

    linear: int
    separable: int
    dense: int


def flops_of(shape: Shape) -> Flops:
    """What the network costs, stem and classifier left out.

    >>> [round(count / 1e9, 1) for count in (lambda f: (f.linear, f.separable, f.dense))(flops_of(PAPER))]
    [6.2, 6.5, 9.0]
    """
    across = shape.side // shape.patch
    positions = across**2
    layer = (shape.heads + 1) * shape.width**2 + 2 * shape.width * shape.inner
    sums = shape.layers * shape.heads * positions * shape.width  # for each row, or column, or position
    linear = shape.layers * positions * layer
    return Flops(2 * linear, 2 * (linear + sums * 2 * across), 2 * (linear + sums * positions))
