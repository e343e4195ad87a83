"""Which positions look at which: spans and temporal groups as a reshape, and positions by number.

>>> import torch
>>> x = torch.arange(2 * 4 * 3 * 3).view(1, 2, 4, 3, 3)
>>> Grouping("space", 1).split(x).shape  # each of 4 frames by itself: 9 positions of 2 channels
torch.Size([4, 9, 2])
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from nonlocal_nn.blocks.options import Span


@dataclass(frozen=True)
class Grouping:
    """Positions of a group see each other and nothing else (Table 2d).

    >>> Grouping("time", 1).split(torch.zeros(1, 2, 4, 3, 3)).shape  # 9 places, each across 4 frames
    torch.Size([9, 4, 2])

    span "spacetime": all positions of `temporal_groups` contiguous runs of frames; "space": each frame;
    "time": each place across the frames of its run. Maps without a time axis (dims 1 and 2) are one group.
    """

    span: Span
    temporal_groups: int

    def frames_per_group(self, frames: Any) -> Any:
        """Frames that see each other; an int, but a tensor while torch.jit.trace runs, as a map's sizes are.

        Raises:
            ValueError: when the frames do not divide into the temporal groups.
        """
        if frames % self.temporal_groups:
            raise ValueError(
                f"{frames} frames do not divide into temporal_groups={self.temporal_groups}; "
                "give a clip whose frames at this block are a multiple of it"
            )
        return 1 if self.span == "space" else frames // self.temporal_groups

    def _is_one(self, dims: int) -> bool:
        """Whether all positions see each other."""
        return dims < 3 or (self.temporal_groups == 1 and self.span == "spacetime")

    def split(self, x: Tensor) -> Tensor:
        """(batch, channels, *positions) -> (batch * groups, positions of a group, channels)."""
        if self._is_one(x.dim() - 2):
            return x.flatten(2).transpose(1, 2)
        batch, channels, *shape = x.shape
        run = self.frames_per_group(shape[0])
        x = x.reshape(batch, channels, shape[0] // run, run, shape[1] * shape[2])
        if self.span == "time":
            return x.permute(0, 2, 4, 3, 1).reshape(-1, run, channels)
        return x.permute(0, 2, 3, 4, 1).reshape(-1, run * shape[1] * shape[2], channels)

    def join(self, y: Tensor, like: Tensor) -> Tensor:
        """The inverse of `split`: (batch, channels, *positions), batch and positions as in the map `like`."""
        batch, _, *shape = like.shape
        channels = y.shape[2]
        if self._is_one(len(shape)):
            return y.transpose(1, 2).reshape(batch, channels, *shape)
        run = self.frames_per_group(shape[0])
        places = shape[1] * shape[2]
        if self.span == "time":
            y = y.reshape(batch, shape[0] // run, places, run, channels).permute(0, 4, 1, 3, 2)
        else:
            y = y.reshape(batch, shape[0] // run, run, places, channels).permute(0, 4, 1, 2, 3)
        joined: Tensor = y.reshape(batch, channels, *shape)
        return joined

    def group_numbers(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The group of every position of a grid of `shape`, flat, in order."""
        if len(shape) < 3:
            return torch.zeros(prod(shape), dtype=torch.long, device=device)
        run = self.frames_per_group(shape[0])
        places = shape[1] * shape[2]
        numbers = (torch.arange(shape[0], device=device) // run)[:, None].expand(-1, places)
        if self.span == "time":
            numbers = numbers * places + torch.arange(places, device=device)
        flat: Tensor = numbers.flatten()
        return flat


def flat_positions(queries: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Flat numbers (queries,) of positions given so or as coordinates (queries, dims) in a grid of `shape`.

    >>> flat_positions(torch.tensor([[1, 2], [0, 3]]), (2, 4))
    tensor([6, 3])

    Raises:
        ValueError: for another rank or dtype, or for a position outside the grid, naming it.
    """
    if queries.is_floating_point() or queries.is_complex() or queries.dtype == torch.bool:
        raise ValueError(f"queries must be integers (positions), got dtype {queries.dtype}")
    if queries.dim() == 2 and queries.shape[1] == len(shape):
        size = torch.tensor(shape, device=queries.device)
        steps = torch.tensor([prod(shape[axis + 1 :]) for axis in range(len(shape))], device=queries.device)
        outside = ((queries < 0) | (queries >= size)).any(dim=1)
        flat = (queries.long() * steps).sum(dim=1)
    elif queries.dim() == 1:
        outside = (queries < 0) | (queries >= prod(shape))
        flat = queries.long()
    else:
        raise ValueError(
            f"queries must be (queries,) flat positions or (queries, {len(shape)}) coordinates, "
            f"got shape {tuple(queries.shape)}"
        )
    if outside.any():
        raise ValueError(
            f"query {queries[outside][0].tolist()} lies outside the grid of positions {tuple(shape)}"
        )
    return flat
