"""Self-attention on a map by relative positions, which can be a convolution (Cordonnier et al., ICLR 2020).

>>> import torch
>>> from torch import nn
>>> conv = nn.Conv2d(3, 8, 3, padding=1)
>>> attention = SelfAttention2d.from_conv(conv)
>>> x = torch.randn(2, 3, 10, 7)
>>> torch.allclose(attention(x), conv(x), atol=1e-5)
True
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nonlocal_nn._typing import Float, Int
from nonlocal_nn.blocks.conv_attention import (
    Convolution,
    Geometry,
    PaddingMode,
    as_conv,
    geometry_of,
    kernel_of,
    taps_of,
)
from nonlocal_nn.blocks.grid import flat_positions
from nonlocal_nn.blocks.options import check_choice
from nonlocal_nn.ops import relative
from nonlocal_nn.ops.checks import working_dtype
from nonlocal_nn.ops.cpu.workspace import check_budget

Position = Literal["quadratic", "gaussian", "learned"]

_CHUNK_BYTES = 2**24  # of weights at a time, where no memory_budget says how much
_WIDEST = 63  # rows and columns on each side of a query that `to_conv` looks at

# What the paper's released code calls degenerate, and value weights that say as much.
_LEAST_SPREAD_SQUARED = 1e-5
_LARGEST_CONDITION = 1000.0
_LEAST_VALUE = 0.1  # of the median


class SelfAttention2d(nn.Module):
    """y_q = b + sum over heads h and keys k of A_h[q, k] W_h x_k, A_h a softmax of scores of offsets k - q.

    >>> import torch
    >>> layer = SelfAttention2d(16, 32, heads=4)
    >>> layer(torch.randn(2, 16, 9, 12)).shape, layer.centres.shape
    (torch.Size([2, 32, 9, 12]), torch.Size([4, 2]))

    Scores of offset delta (rows, columns), by `position`:

    - "quadratic": -s^2/2 (delta - Delta)^2, a centre Delta and a spread s for each head;
    - "gaussian": -1/2 (S (delta - Delta))^2, S a 2 x 2 matrix;
    - "learned": r[delta rows] + c[delta columns], two tables, for maps of up to `largest_map`.

    With content, q . k / sqrt(d) is added, with q and k linear in x. Quadratic and learned scores cost
    O(N (H + W)), in training too; gaussian ones N^2, some rows of queries at a time; content is linear in
    memory where scores are quadratic or learned.

    Args:
        in_channels, out_channels: of x and y.
        heads: how many.
        content: add q . k / sqrt(d).
        d: numbers of q and k of one head; None: in_channels // heads, at least 1.
        stride: rows and columns from query to query.
        padding: rows and columns around the map that keys are sought in, too: one number, (rows, columns), or
            (left, right, top, bottom).
        padding_mode: what is there, as in `nn.Conv2d`.
        groups: values see the channels of their own group alone.
        bias: b.
        largest_map: (height, width), with its padding, that the tables of "learned" are made for.
        memory_budget: bytes for weights at a time; None: as is fast.

    Raises:
        ValueError: numbers below 1, channels that groups do not divide, names that there are not, "learned"
            without `largest_map` or another with it, d without content.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 9,
        position: Position = "quadratic",
        *,
        content: bool = False,
        d: int | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | tuple[int, int, int, int] = 0,
        padding_mode: PaddingMode = "zeros",
        groups: int = 1,
        bias: bool = True,
        largest_map: tuple[int, int] | None = None,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("position", position, get_args(Position))
        check_choice("padding_mode", padding_mode, get_args(PaddingMode))
        check_budget(memory_budget)
        numbers = {"in_channels": in_channels, "out_channels": out_channels, "heads": heads, "groups": groups}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} = {number}: it must be 1 or more")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups = {groups} divide neither or one of {in_channels} and {out_channels}")
        if (position == "learned") != (largest_map is not None):
            raise ValueError(
                f"position={position!r} with largest_map={largest_map}: tables, and they alone, have a "
                "largest map"
            )
        if d is not None and (not content or d < 1):
            raise ValueError(f"d = {d} with content={content}: numbers of q and k, 1 or more")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.position, self.content, self.memory_budget = position, content, memory_budget
        self.geometry = Geometry(_pair("stride", stride, 1), _sides(padding), padding_mode, (1, 1))
        self.largest_map = largest_map
        self.value = nn.Parameter(torch.empty(heads, out_channels, in_channels // groups))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.centres: nn.Parameter | None = None
        self.spreads: nn.Parameter | None = None
        self.row_table: nn.Parameter | None = None
        self.column_table: nn.Parameter | None = None
        if largest_map is not None:
            height, width = largest_map
            self.row_table = nn.Parameter(torch.empty(heads, 2 * height - 1))
            self.column_table = nn.Parameter(torch.empty(heads, 2 * width - 1))
        else:
            self.centres = nn.Parameter(torch.empty(heads, 2))
            shape = (heads, 2, 2) if position == "gaussian" else (heads,)
            self.spreads = nn.Parameter(torch.empty(shape))
        self.query: nn.Parameter | None = None
        self.key: nn.Parameter | None = None
        if content:
            width = d or max(1, in_channels // heads)
            self.query = nn.Parameter(torch.empty(heads, width, in_channels))
            self.key = nn.Parameter(torch.empty(heads, width, in_channels))
        self.reset_parameters()

    @property
    def heads(self) -> int:
        """How many there are."""
        return len(self.value)

    @property
    def stride(self) -> tuple[int, int]:
        """Rows and columns from query to query."""
        return self.geometry.stride

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom; the first query stands in the padded map's corner."""
        return self.geometry.padding

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The initial weights: centres from N(0, 2^2), spreads 1 + N(0, 0.01^2) (the released code)."""
        self._reset(list(range(self.heads)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _reset(self, heads: Sequence[int]) -> None:
        fan_in = self.value.shape[2] * self.heads
        at = torch.tensor(heads, dtype=torch.long, device=self.value.device)

        def fill(parameter: nn.Parameter | None, std: float, mean: float | Tensor = 0.0) -> None:
            if parameter is not None:
                noise = torch.randn(len(heads), *parameter.shape[1:], device=at.device, dtype=parameter.dtype)
                parameter[at] = noise * std + mean

        fill(self.value, fan_in**-0.5)
        fill(self.centres, 2.0)
        one: float | Tensor = 1.0
        if self.position == "gaussian":
            one = torch.eye(2, device=at.device, dtype=self.value.dtype)
        fill(self.spreads, 0.01, one)
        for table in (self.row_table, self.column_table):
            fill(table, 0.02)
        for projection in (self.query, self.key):
            fill(projection, self.in_channels**-0.5)

    # --- the forward pass ---

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels rows columns"]:
        """Y, at the queries' grid.

        Raises:
            ValueError: another number of channels or axes, a map too small, or too large for the tables.
        """
        shape = self._check(x)
        around = self.geometry.padded(x)
        if self.query is not None and self.key is not None:
            y = self._with_content(around, shape)
        elif self.position == "gaussian":
            y = relative.by_rows(
                around, self._joint(around, shape), self.value, shape, self._most_bytes, self.groups
            )
        else:
            rows, columns = self._axes(around, shape)
            y = relative.separable(around, rows, columns, self.value, self.groups)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    @property
    def _most_bytes(self) -> int:
        return self.memory_budget or _CHUNK_BYTES

    def _check(self, x: Tensor) -> tuple[int, int]:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected (batch, {self.in_channels}, height, width), got {tuple(x.shape)}")
        shape = self.geometry.grid(x.shape[2], x.shape[3])
        if self.largest_map is not None:
            left, right, top, bottom = self.geometry.padding
            sizes = (x.shape[2] + top + bottom, x.shape[3] + left + right)
            if sizes[0] > self.largest_map[0] or sizes[1] > self.largest_map[1]:
                raise ValueError(
                    f"a map of {sizes[0]} x {sizes[1]} with its padding; the tables of "
                    f"{tuple(self.row_table.shape) if self.row_table is not None else ()} and "
                    f"{tuple(self.column_table.shape) if self.column_table is not None else ()} allow up to "
                    f"{self.largest_map[0]} x {self.largest_map[1]}"
                )
        return shape

    def _offsets(self, around: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows, columns = (
            relative.offsets(queries, keys, stride, around.device)
            for queries, keys, stride in zip(shape, around.shape[2:], self.geometry.stride, strict=True)
        )
        return rows, columns

    def _axes(self, around: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The scores of rows and of columns."""
        rows, columns = self._offsets(around, shape)
        if self.row_table is not None and self.column_table is not None:
            return relative.table_scores(rows, self.row_table), relative.table_scores(
                columns, self.column_table
            )
        assert self.centres is not None
        assert self.spreads is not None
        return (
            relative.axis_scores(rows, self.centres[:, 0], self.spreads),
            relative.axis_scores(columns, self.centres[:, 1], self.spreads),
        )

    def _joint(self, around: Tensor, shape: tuple[int, int]) -> relative.ScoresOf:
        rows, columns = self._offsets(around, shape)
        assert self.centres is not None
        assert self.spreads is not None
        centres, spreads = self.centres, self.spreads
        return lambda first, last: relative.joint_scores(rows[first:last], columns, centres, spreads)

    def _content(self, around: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Q / sqrt(d) (batch, head, d, queries) and k (batch, head, d, keys)."""
        assert self.query is not None
        assert self.key is not None
        vertical, horizontal = self.geometry.stride
        here = around[:, :, : shape[0] * vertical : vertical, : shape[1] * horizontal : horizontal]
        scale = self.query.shape[1] ** -0.5
        q = torch.einsum("hdi,bin->bhdn", self.query.to(around.dtype) * scale, here.flatten(2))
        return q, torch.einsum("hdi,bin->bhdn", self.key.to(around.dtype), around.flatten(2))

    def _with_content(self, around: Tensor, shape: tuple[int, int]) -> Tensor:
        q, k = self._content(around, shape)
        if self.position != "gaussian":
            rows, columns = self._axes(around, shape)
            budget = self.memory_budget
            return relative.with_content(
                around, q, k, rows, columns, self.value, shape, self.groups, memory_budget=budget
            )
        joint = self._joint(around, shape)

        def scores_of(first: int, last: int) -> Tensor:
            some = q[..., first * shape[1] : last * shape[1]]
            return (some.mT @ k).to(working_dtype(q.dtype)) + joint(first, last)

        most = self._most_bytes // max(1, len(around))
        return relative.by_rows(around, scores_of, self.value, shape, most, self.groups)

    # --- what it looks at ---

    @torch.no_grad()
    def affinity(
        self, x: Float[Tensor, "batch in_channels height width"], queries: Int[Tensor, "query ..."]
    ) -> Float[Tensor, "batch query head key"]:
        """Rows of A_h for the chosen queries: a row for each head, over the padded map.

        >>> layer = SelfAttention2d(3, 3, heads=2)
        >>> rows = layer.affinity(torch.zeros(1, 3, 4, 5), torch.tensor([[0, 0], [3, 4]]))
        >>> rows.shape, rows.sum(dim=3).allclose(torch.ones(1, 2, 2))
        (torch.Size([1, 2, 2, 20]), True)

        queries: flat positions (queries,) or coordinates (queries, 2) in the output's grid.
        """
        shape = self._check(x)
        around = self.geometry.padded(x)
        places = flat_positions(queries.to(x.device), shape)
        if self.position == "gaussian":
            joint, asked = self._joint(around, shape), (divmod(p, shape[1]) for p in places.tolist())
            scores = torch.stack([joint(n, n + 1)[:, at] for n, at in asked], dim=1)
        else:
            rows, columns = self._axes(around, shape)
            of_row, of_column = rows[:, places // shape[1]], columns[:, places % shape[1]]
            scores = (of_row.unsqueeze(3) + of_column.unsqueeze(2)).flatten(2)
        scores = scores.expand(len(x), *scores.shape)
        if self.content:
            q, k = self._content(around, shape)
            scores = scores + q[..., places].mT @ k
        return scores.softmax(dim=3).transpose(1, 2)

    def key_shape(self, position_shape: tuple[int, int]) -> tuple[int, int]:
        """The padded map's height and width."""
        left, right, top, bottom = self.geometry.padding
        return position_shape[0] + top + bottom, position_shape[1] + left + right

    # --- heads ---

    @torch.no_grad()
    def head_shapes(self) -> list[tuple[Float[Tensor, 2], Float[Tensor, "2 2"]]] | None:
        """Of every head, from the query on: centre and covariance of its Gaussian, in rows and columns.

        None: tables have neither. A spread of zero gives an infinite covariance.

        >>> shape, = SelfAttention2d(3, 3, heads=1).head_shapes()
        >>> shape[0].shape, shape[1].shape
        (torch.Size([2]), torch.Size([2, 2]))
        """
        if self.centres is None or self.spreads is None:
            return None
        spreads = self.spreads.double()
        if self.position == "gaussian":
            inverse = torch.linalg.pinv(spreads)
            covariances = inverse @ inverse.mT
        else:
            covariances = spreads.square().reciprocal()[:, None, None] * torch.eye(2, device=spreads.device)
        covariances = torch.where(covariances.isnan(), torch.zeros_like(covariances), covariances)
        return list(zip(self.centres.double(), covariances, strict=True))

    @torch.no_grad()
    def degenerate_heads(self) -> list[int]:
        """Heads that look everywhere alike, along a line alone, or whose values count for nothing.

        spread^2 below 1e-5, or the matrix's condition above 1000 (as the paper's released code has it), or
        value weights below a tenth of the median.
        """
        size = self.value.flatten(1).norm(dim=1)
        bad = size < _LEAST_VALUE * size.median()
        if self.spreads is not None and self.position == "gaussian":
            singular = torch.linalg.svdvals(self.spreads.double())
            bad |= (singular[:, 0] ** 2 < _LEAST_SPREAD_SQUARED) | (
                singular[:, 0] > _LARGEST_CONDITION * singular[:, 1]
            )
        elif self.spreads is not None:
            bad |= self.spreads**2 < _LEAST_SPREAD_SQUARED
        return [head for head, is_bad in enumerate(bad.tolist()) if is_bad]

    @torch.no_grad()
    def reset_heads(self, heads: Sequence[int], optimizer: torch.optim.Optimizer | None = None) -> None:
        """New initial weights for these heads alone, and nothing in the optimizer's memory of them.

        Raises:
            ValueError: a head that there is not.
        """
        self._check_heads(heads)
        self._reset(heads)
        for parameter in self._of_heads().values():
            state = {} if optimizer is None else optimizer.state.get(parameter, {})
            for kept in state.values():
                if isinstance(kept, Tensor) and kept.shape == parameter.shape:
                    kept[list(heads)] = 0

    @torch.no_grad()
    def prune_heads(self, heads: Sequence[int]) -> None:
        """Take these heads out, in place; an optimizer must be made anew.

        Raises:
            ValueError: a head that there is not, or all of them.
        """
        self._check_heads(heads)
        left = [head for head in range(self.heads) if head not in set(heads)]
        if not left:
            raise ValueError(f"heads {sorted(set(heads))} are all there are; one must stay")
        for name, parameter in self._of_heads().items():
            setattr(self, name, nn.Parameter(parameter[left].clone(), requires_grad=parameter.requires_grad))

    def _of_heads(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if name != "bias"}

    def _check_heads(self, heads: Sequence[int]) -> None:
        wrong = [head for head in heads if not 0 <= head < self.heads]
        if wrong:
            raise ValueError(f"no such head: {wrong}; there are 0 to {self.heads - 1}")

    # --- convolutions ---

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, alpha: float = 50.0) -> SelfAttention2d:
        """The layer that gives what `conv` gives: a head for each tap of its kernel.

        The spread of a head is sqrt(2 alpha): other offsets get exp(-alpha) or less. From alpha 20 on that
        is below float32's rounding, from 104 on it is exactly zero. At 50 the gradient of a centre is about
        1e-20: such a layer computes, and its centres do not learn.

        Raises:
            TypeError: anything but an nn.Conv2d.
            ValueError: alpha <= 0.
        """
        if not alpha > 0:
            raise ValueError(f"alpha = {alpha}: it must be more than 0")
        geometry, taps = geometry_of(conv), taps_of(conv)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            len(taps),
            stride=geometry.stride,
            padding=geometry.padding,
            padding_mode=geometry.padding_mode,
            groups=conv.groups,
            bias=conv.bias is not None,
        ).to(device=conv.weight.device, dtype=conv.weight.dtype)
        layer.geometry = geometry
        assert layer.centres is not None
        assert layer.spreads is not None
        with torch.no_grad():
            layer.value.copy_(conv.weight.flatten(2).permute(2, 0, 1))
            layer.centres.copy_(taps)
            layer.spreads.fill_(math.sqrt(2 * alpha))
            if layer.bias is not None and conv.bias is not None:
                layer.bias.copy_(conv.bias)
        return layer.train(conv.training)

    @torch.no_grad()
    def to_conv(self, tolerance: float = 1e-5) -> Convolution:
        """The convolution that the layer is: kernel sum_h A_h(delta) W_h, heads sharp or not.

        >>> layer = SelfAttention2d(3, 3, heads=4)
        >>> made = layer.to_conv(1e-3)
        >>> made.error <= 1e-3, made.conv(torch.randn(1, 3, 40, 40)).shape
        (True, torch.Size([1, 3, 40, 40]))

        The smallest kernel whose outputs are off by at most `tolerance` times the map's largest number. At
        the border, whose width is returned, the layer's softmax renormalises, and a convolution does not.

        Raises:
            ValueError: a layer with content, a tolerance that no kernel reaches (with the best one).
        """
        if self.content:
            raise ValueError("a layer with content looks at the map: it is no convolution")
        if not tolerance > 0:
            raise ValueError(f"tolerance = {tolerance}: it must be more than 0")
        weights, first = self.weights_of_offsets()
        kernel = kernel_of(weights, first, self.value, tolerance)
        return as_conv(kernel, self.geometry, self.groups, self.bias, self.value)

    @torch.no_grad()
    def weights_of_offsets(self) -> tuple[Float[Tensor, "head rows columns"], tuple[int, int]]:
        """A_h(delta) on an endless map, without content, and the offset of the first, (row, column).

        >>> weights, first = SelfAttention2d.from_conv(nn.Conv2d(1, 1, 1)).weights_of_offsets()
        >>> weights[0, -first[0], -first[1]]  # all of it on the query itself
        tensor(1., dtype=torch.float64)
        """
        if self.row_table is not None and self.column_table is not None:
            rows, columns = (table.double().softmax(dim=1) for table in (self.row_table, self.column_table))
            first = (-(rows.shape[1] // 2), -(columns.shape[1] // 2))
            return rows.unsqueeze(2) * columns.unsqueeze(1), first
        assert self.centres is not None
        assert self.spreads is not None
        low = self.centres.amin(dim=0).floor().long() - _WIDEST
        high = self.centres.amax(dim=0).ceil().long() + _WIDEST
        row, column = (
            torch.arange(int(low[axis]), int(high[axis]) + 1, device=self.value.device).unsqueeze(0)
            for axis in (0, 1)
        )
        spreads = self.spreads.double()
        if self.position == "gaussian":
            scores = relative.joint_scores(row, column, self.centres.double(), spreads)
            weights = scores[:, 0].softmax(dim=1).reshape(self.heads, row.shape[1], column.shape[1])
        else:
            rows, columns = (
                relative.axis_scores(offset, self.centres[:, axis].double(), spreads)[:, 0].softmax(dim=1)
                for axis, offset in enumerate((row, column))
            )
            weights = rows.unsqueeze(2) * columns.unsqueeze(1)
        # A head that is broad beside the window: what a normal distribution has outside of it.
        for deviation in _deviations(spreads):
            weights = weights * torch.erf(_WIDEST / (2**0.5 * deviation)).view(-1, 1, 1)
        return weights, (int(low[0]), int(low[1]))

    def extra_repr(self) -> str:
        """The layer in the paper's symbols."""
        content = " + q . k / sqrt(d)" if self.content else ""
        return (
            f"{self.in_channels} -> {self.out_channels}, {self.heads} heads, {self.position}{content}, "
            f"stride={self.geometry.stride}, padding={self.geometry.padding} ({self.geometry.padding_mode}), "
            f"groups={self.groups}"
        )


def _deviations(spreads: Tensor) -> tuple[Tensor, Tensor]:
    """Of each head's weights along rows and along columns, in pixels."""
    if spreads.dim() == 1:
        return 1 / spreads.abs(), 1 / spreads.abs()
    precision = spreads.mT @ spreads
    determinant = torch.linalg.det(spreads).square()
    return (precision[:, 1, 1] / determinant).sqrt(), (precision[:, 0, 0] / determinant).sqrt()


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name} = {value}: one number or (rows, columns), {least} or more")
    return pair


def _sides(padding: int | tuple[int, int] | tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Left, right, top, bottom."""
    if isinstance(padding, int):
        padding = (padding, padding)
    if len(padding) == 2:
        padding = (padding[1], padding[1], padding[0], padding[0])
    if len(padding) != 4 or min(padding) < 0:
        raise ValueError(f"padding = {padding}: one number, (rows, columns) or (left, right, top, bottom)")
    return padding
