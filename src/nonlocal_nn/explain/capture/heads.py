"""The heads of self-attention by relative positions, each as a block of its own that can be asked.

>>> from nonlocal_nn.blocks.self_attention import SelfAttention2d
>>> layer = SelfAttention2d(3, 3, heads=2, padding=1)
>>> x, grid = torch.zeros(1, 3, 4, 5), GridGeometry((1, 4, 5), step=(1.0, 2.0, 2.0))
>>> first, second = affinities("layer", layer, x, layer(x), grid)
>>> first.name, first.keys.shape, first.keys.first
('layer head 0', (1, 6, 7), (0.0, -2.0, -2.0))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonlocal_nn.explain.capture.block import BlockAffinity, HeadShape
from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.pairwise import get_pairwise


@runtime_checkable
class Attending(Protocol):
    """A layer of heads on a map: `SelfAttention2d`, and what is of its kind."""

    heads: int
    content: bool
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    """Left, right, top, bottom."""

    def affinity(self, x: Tensor, queries: Tensor) -> Tensor:
        """Rows (batch, query, head, key) for flat positions of the output, over the padded map."""

    def head_shapes(self) -> list[tuple[Tensor, Tensor]] | None:
        """Of every head: centre (2,) and covariance (2, 2), in rows and columns; None: it has none."""


def affinities(name: str, layer: Attending, x: Tensor, z: Tensor, grid: GridGeometry) -> list[BlockAffinity]:
    """One for each head; `grid` says where x's positions lie, z is what the layer made of x."""
    frame, row, column = grid.axes()
    left, right, top, bottom = layer.padding
    around = (row.moved(-top, row.size + top + bottom), column.moved(-left, column.size + left + right))
    keys = GridGeometry.of_axes(frame, *around)
    queries = GridGeometry.of_axes(
        frame,
        around[0].moved(0, z.shape[2], layer.stride[0]),
        around[1].moved(0, z.shape[3], layer.stride[1]),
    )
    shapes = layer.head_shapes()
    responses = z[0].detach().float().norm(dim=0).flatten().cpu().numpy()

    def rows_of(head: int) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
        def compute(wanted: NDArray[np.int64]) -> NDArray[np.float32]:
            rows = layer.affinity(x, torch.from_numpy(wanted))[0, :, head]
            result: NDArray[np.float32] = rows.float().cpu().numpy()
            return result

        return compute

    return [
        BlockAffinity(
            name=f"{name} head {head}",
            function=get_pairwise("embedded_gaussian" if layer.content or shapes is None else "gaussian"),
            span="spacetime",
            temporal_groups=1,
            queries=queries,
            keys=keys,
            compute_rows=rows_of(head),
            responses=responses,
            layer=name,
            head=None if shapes is None else _in_pixels(*shapes[head], (row.step, column.step)),
        )
        for head in range(layer.heads)
    ]


def _in_pixels(centre: Tensor, covariance: Tensor, step: tuple[float, float]) -> HeadShape:
    scale = torch.tensor(step, dtype=torch.float64)
    at = centre.double().cpu() * scale
    spread = covariance.double().cpu() * scale[:, None] * scale[None, :]
    return HeadShape((float(at[0]), float(at[1])), spread.numpy())
