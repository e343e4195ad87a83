"""The non-local block (section 3.3 of the paper, Fig. 2): z = W_z y + x, where y looks at every position.

>>> import torch
>>> block = NonLocalBlock(8)
>>> x = torch.randn(2, 8, 4, 6, 6)
>>> torch.equal(block(x), x)  # a new block changes nothing
True
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nonlocal_nn import functional  # noqa: F401 - imported before torch.compile traces a block
from nonlocal_nn._files import BLOCK_OPTIONS_KEY
from nonlocal_nn._typing import Float, Int
from nonlocal_nn.blocks.grid import Grouping, flat_positions
from nonlocal_nn.blocks.norm import (
    FrozenBatchNorm,
    ZeroBatchNorm1d,
    ZeroBatchNorm2d,
    ZeroBatchNorm3d,
    ZeroConv1d,
    ZeroConv2d,
    ZeroConv3d,
    fold_norm,
)
from nonlocal_nn.blocks.options import BlockOptions, Init, Norm, Span, SubsampleAt
from nonlocal_nn.blocks.pool import SpacePool
from nonlocal_nn.blocks.sharding import Sharding
from nonlocal_nn.ops.checks import without_autocast, working_dtype
from nonlocal_nn.ops.cpu.workspace import check_budget
from nonlocal_nn.pairwise import PairwiseFunction

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# As parts of their own they start at zero, too: after `to_empty` each module resets itself.
_ZERO_CONV: dict[int, Callable[..., _ConvNd]] = {1: ZeroConv1d, 2: ZeroConv2d, 3: ZeroConv3d}
_BATCH_NORM = {1: ZeroBatchNorm1d, 2: ZeroBatchNorm2d, 3: ZeroBatchNorm3d}


class NonLocalBlock(nn.Module):
    """z_i = W_z y_i + x_i with y_i = 1/C(x) sum_j f(x_i, x_j) g(x_j) (Eqs. 1 and 6).

    >>> block = NonLocalBlock(1024, pairwise="dot_product")
    >>> block.inner_channels, tuple(block.theta.weight.shape)
    (512, (512, 1024, 1, 1, 1))

    Symbols of the paper are names here: theta, phi, g and W_z are 1x1 convolutions; `w_f` is concatenation's
    vector. All four convolutions have biases (zero at the start), as the released code's do.

    Args:
        channels: of x.
        inner_channels: of theta, phi and g; half of `channels` when None (Fig. 2).
        pairwise: f and C, by name or as a `PairwiseFunction` of your own (docs/extending.md).
            "embedded_gaussian"  exp(theta_i . phi_j), C = sum_j f     (Eq. 3: a softmax over j)
            "gaussian"           exp(x_i . x_j),       C = sum_j f     (Eq. 2: no theta, no phi)
            "dot_product"        theta_i . phi_j,      C = N           (Eq. 4; N is the number of keys)
            "concatenation"      ReLU(w_f . [theta_i, phi_j]), C = N   (Eq. 5)
        dims: 1 (positions), 2 (height, width) or 3 (frames, height, width).
        subsample: keys come from a max-pooled map, 2x2 in space, never in time (dims=1: pooled by 2). Span
            "time" compares a place with itself, so there is no space to pool and this does not apply there.
        subsample_at: "embedding" pools phi(x) and g(x) (the paper); "input" pools x before both (the released
            code).
        span: "spacetime", "space" (each frame by itself) or "time" (each place across frames); Table 2d.
            dims=3 only.
        temporal_groups: so many contiguous runs of frames, each seeing itself alone (released long-clip
            models). dims=3 only.
        scale: multiply theta_i . phi_j by inner_channels ** -0.5, as the released code does for
            embedded_gaussian (gaussian: channels ** -0.5, the length of its vectors). Only for functions of
            that product, which concatenation is not.
        norm: "batch": batch norm after W_z, its gamma starting at zero. "frozen": the same with everything
            fixed, for weights that are loaded: gamma is zero, and the block the identity, until then. None:
            W_z and its bias start at zero.
        init: "paper": He et al., normal with variance 2 / fan-in. "released": normal with deviation 0.01.
        memory_budget: bytes that the average over positions may take beside maps and their gradients; None
            lets it decide by what is free, see `nonlocal_nn.functional.gaussian`. An attribute: it can be
            changed at any time and is not saved.

    A new block is the identity, whatever the options.

    Raises:
        ValueError: for options that do not exist or do not go together.
    """

    _sharding: Sharding | None = None  # see `shard_over`

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        pairwise: str | PairwiseFunction = "embedded_gaussian",
        dims: int = 3,
        subsample: bool = True,
        subsample_at: SubsampleAt = "embedding",
        span: Span = "spacetime",
        temporal_groups: int = 1,
        scale: bool = False,
        norm: Norm | None = "batch",
        *,
        init: Init = "paper",
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        check_budget(memory_budget)
        options = BlockOptions(
            inner_channels, pairwise, dims, subsample, subsample_at, span, temporal_groups, scale, norm, init
        )
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.options, self.function = options, options.function
        if inner_channels is None:
            inner_channels = max(1, channels // 2)
        self.channels, self.inner_channels = channels, inner_channels
        self.pairwise, self.dims = self.function.name, dims
        self.subsample, self.subsample_at = subsample and span != "time", subsample_at
        self.span, self.temporal_groups = span, temporal_groups
        self.scale = self.scale_of_product if scale else 1.0
        self.init = init
        self.memory_budget = memory_budget
        self._grouping = Grouping(span, temporal_groups)

        conv = _CONV[dims]
        embedded = self.function.embeds
        self.theta = conv(channels, inner_channels, 1) if embedded else None
        self.phi = conv(channels, inner_channels, 1) if embedded else None
        self.g = conv(channels, inner_channels, 1)
        self.W_z = (_ZERO_CONV[dims] if norm is None else conv)(inner_channels, channels, 1)
        self.w_f = nn.Parameter(torch.empty(2 * inner_channels)) if self.function.scores else None
        self.pool = SpacePool(dims) if self.subsample else nn.Identity()
        self.norm: nn.Module | None = None
        if norm is not None:
            self.norm = (
                _BATCH_NORM[dims](channels) if norm == "batch" else FrozenBatchNorm(channels, gamma=0.0)
            )
        self.reset_parameters()

    def header(self) -> dict[str, Any]:
        """What a file says of the block beside its weights; JSON can hold it.

        >>> header = NonLocalBlock(4, dims=2, scale=True).header()
        >>> header["channels"], header["dims"], header["scale"]
        (4, 2, True)

        Raises:
            ValueError: it has a scale that no option gives.
        """
        if self.scale not in (1.0, self.scale_of_product):
            raise ValueError(
                f"the block scales by {self.scale}; only {self.scale_of_product:g} can be written"
            )
        frozen = isinstance(self.norm, FrozenBatchNorm)
        options = dataclasses.replace(
            self.options,
            inner_channels=self.inner_channels,
            scale=self.scale != 1.0,
            norm=None if self.norm is None else "frozen" if frozen else "batch",
        )
        return {"channels": self.channels, **options.to_file()}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Options travel in the state dict's metadata, which torch.save keeps and other loaders pass over."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        about = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if about is not None:
            with contextlib.suppress(ValueError):  # a scale of the owner's own cannot be written
                about[BLOCK_OPTIONS_KEY] = {**self.header(), "norm_eps": getattr(self.norm, "eps", None)}

    @property
    def scale_of_product(self) -> float:
        """What `scale=True` multiplies theta_i . phi_j by: the inverse root of their length."""
        return float((self.inner_channels if self.function.embeds else self.channels) ** -0.5)

    @torch.no_grad()
    def reset_parameters(self, generator_of: Callable[[str], torch.Generator | None] | None = None) -> None:
        """The initial weights, with which the block is the identity.

        generator_of: the source of random numbers for "theta", "phi", "g", "W_z", "w_f"; None: torch's own.
        """
        convs = {"theta": self.theta, "phi": self.phi, "g": self.g, "W_z": self.W_z}
        weights = {name: conv.weight for name, conv in convs.items() if conv is not None}
        for name, weight in {**weights, **({} if self.w_f is None else {"w_f": self.w_f})}.items():
            fan_in = weight.numel() // (weight.shape[0] if weight.dim() > 1 else 1)
            std = (2 / fan_in) ** 0.5 if self.init == "paper" else 0.01
            nn.init.normal_(weight, std=std, generator=generator_of and generator_of(name))
        for conv in convs.values():
            if conv is not None and conv.bias is not None:
                nn.init.zeros_(conv.bias)
        if self.norm is None:
            nn.init.zeros_(self.W_z.weight)
            return
        reset = getattr(self.norm, "reset_parameters", None)
        if reset is not None:
            reset()
        if isinstance(self.norm.weight, Tensor):  # a norm put in the place of ours starts at one
            nn.init.zeros_(self.norm.weight)

    def forward(
        self, x: Float[Tensor, "batch channel *positions"]
    ) -> Float[Tensor, "batch channel *positions"]:
        """Z, of x's shape.

        >>> NonLocalBlock(4, dims=1)(torch.zeros(2, 4, 9)).shape
        torch.Size([2, 4, 9])

        Raises:
            ValueError: for another rank or number of channels, a map too small to subsample, or frames that
                do not divide into the temporal groups.
        """
        if self._sharding is None:
            self._check(x)
        else:
            self._sharding.check(x, self._check, pooled=self.subsample, dims=self.dims)
        theta, phi, g = self._embed(x)
        split = self._grouping.split
        y = self._average(split(theta), split(phi), split(g))
        z: Tensor = self.W_z(self._grouping.join(y, x))
        if self.norm is not None:
            z = self.norm(z)
        return x + z

    @torch.no_grad()
    def affinity(
        self, x: Float[Tensor, "batch channel *positions"], queries: Int[Tensor, "query ..."]
    ) -> Float[Tensor, "batch query key"]:
        """Rows of f(x_i, x_j) / C(x) for the chosen positions i: what each of them looks at.

        >>> block = NonLocalBlock(4)
        >>> rows = block.affinity(torch.randn(1, 4, 2, 6, 6), torch.tensor([[0, 3, 3], [1, 5, 0]]))
        >>> rows.shape, block.key_shape((2, 6, 6)), bool((rows.sum(dim=2) - 1).abs().max() < 1e-6)
        (torch.Size([1, 2, 18]), (2, 3, 3), True)

        queries: flat positions (queries,) or coordinates (queries, dims) in x's grid. Keys are all positions
        of the key grid, see `key_shape`, in order; those outside the query's span or group are 0. Only these
        rows are computed: memory is queries x keys. Half precisions give float32. No gradient is kept.

        Raises:
            ValueError: for an x that `forward` would refuse, a query that is not a position of its grid, or a
                block that is split over processes, where no process has all keys.
        """
        if self._sharding is not None:
            raise ValueError(
                "affinity needs all keys in one process; give the whole map to "
                "copy.deepcopy(block).shard_over(None)"
            )
        self._check(x)
        theta, phi, _ = self._embed(x)
        return self.affinity_of(theta, phi, queries)

    @torch.no_grad()
    def embeddings(
        self, x: Float[Tensor, "batch channel *positions"]
    ) -> tuple[Float[Tensor, "batch d *positions"], Float[Tensor, "batch d *keys"]]:
        """The maps of theta_i and phi_j, from which `affinity_of` makes rows later.

        >>> block = NonLocalBlock(4, dims=2)
        >>> theta, phi = block.embeddings(torch.zeros(1, 4, 6, 8))
        >>> theta.shape, phi.shape
        (torch.Size([1, 2, 6, 8]), torch.Size([1, 2, 3, 4]))

        Raises:
            ValueError: for an x that `forward` would refuse.
        """
        self._check(x)
        theta, phi, _ = self._embed(x)
        return theta, phi

    @torch.no_grad()
    def affinity_of(
        self,
        theta: Float[Tensor, "batch d *positions"],
        phi: Float[Tensor, "batch d *keys"],
        queries: Int[Tensor, "query ..."],
    ) -> Float[Tensor, "batch query key"]:
        """The rows that `affinity` gives, from kept `embeddings`; no map is embedded again.

        Raises:
            ValueError: for a query that is not a position of theta's grid.
        """
        shape = tuple(theta.shape[2:])
        places = flat_positions(queries.to(theta.device), shape)
        dtype = working_dtype(theta.dtype)
        left = theta.flatten(2)[:, :, places].mT.to(dtype)
        right = phi.flatten(2).mT.to(dtype)
        with without_autocast(theta.device):
            if self.function.scores:
                left, right = self._scores(left, right)
            if self.span == "spacetime" and self.temporal_groups == 1:
                return self.function.rows(left, right, self.scale)
            groups = self._grouping.group_numbers
            of_queries = groups(shape, theta.device)[places]
            of_keys = groups(tuple(phi.shape[2:]), theta.device)
            rows = left.new_zeros(left.shape[0], left.shape[1], right.shape[1])
            for group in torch.unique(of_queries):
                some, keys = (of_queries == group).nonzero(), (of_keys == group).nonzero()[:, 0]
                part = self.function.rows(left[:, some[:, 0]], right[:, keys], self.scale)
                rows[:, some, keys] = part
            return rows

    def key_shape(self, position_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of key positions for a map of `position_shape`: (frames, height, width) for dims=3.

        >>> NonLocalBlock(4).key_shape((4, 28, 28))
        (4, 14, 14)

        Raises:
            ValueError: when the map is too small to subsample, or has another number of axes.
        """
        if len(position_shape) != self.dims:
            raise ValueError(f"dims={self.dims} needs {self.dims} position axes, got {tuple(position_shape)}")
        if not self.subsample:
            return tuple(position_shape)
        self._check_space(position_shape)
        space = position_shape[1:] if self.dims == 3 else position_shape
        return (*position_shape[: self.dims - len(space)], *(size // 2 for size in space))

    @torch.no_grad()
    def fold_norm(self) -> NonLocalBlock:
        """Take the norm into W_z, in place, for inference: one pass over the map less. Returns the block.

        >>> block = NonLocalBlock(4).eval().fold_norm()
        >>> block.norm is None
        True

        Outputs are those of the block in eval mode, up to rounding. A block without a norm stays as it is.

        Raises:
            ValueError: in training mode, where batch norm uses the statistics of the batch; for a batch norm
                that keeps no statistics.
        """
        if self.norm is not None:
            if self.training:
                raise ValueError(
                    "a block in training mode normalises by its own batch; call eval() before fold_norm()"
                )
            fold_norm(self.W_z, self.norm)
            self.norm = None
        return self

    def shard_over(self, group: dist.ProcessGroup | None) -> NonLocalBlock:
        """From now on x is this process's part of a map that is split over the processes of `group`.

        >>> block = NonLocalBlock(4).shard_over(None)  # the whole map again

        Process r of the group (`torch.distributed.group.WORLD`: all) gives its contiguous part of the frames
        (dims=3; else of the first position axis); parts may differ in size. Every process gets z for its own
        part, with keys from all of them: what the unsplit block gives. All call the block in the same order,
        forward and backward. Span "space" needs no other process and sends nothing. Returns the block.

        Gradients: those of x are complete. Those of the parameters are what this part adds: call
        `nonlocal_nn.functional.sharded.sum_gradients(model.parameters(), group)` after the backward pass of
        losses that add up to the whole one (a wrapper that averages them, like DistributedDataParallel, gives
        1 / processes of that). Batch norm in training needs the statistics of all parts: use
        `torch.nn.SyncBatchNorm.convert_sync_batchnorm(model, group)` or norm="frozen".

        A copy (`copy.deepcopy`) is split like the block. A pickle is not: call this again where it is read.

        Raises:
            ValueError: here, with temporal_groups > 1, for a pairwise function that has no such form, or when
                this process is not in the group. In
                `forward`, on every process, when an x is wrong or they differ in anything but that axis, when
                a part is empty, or when dims is 1 or 2 and a part that is pooled, but for the last, has an
                odd size.
        """
        self._sharding = Sharding.of(group, self.span, self.temporal_groups, self.function)
        return self

    def _check(self, x: Tensor) -> None:
        if x.dim() != self.dims + 2 or x.shape[1] != self.channels:
            axes = {1: "positions", 2: "height, width", 3: "frames, height, width"}[self.dims]
            raise ValueError(f"expected (batch, {self.channels}, {axes}), got {tuple(x.shape)}")
        self._check_space(x.shape[2:])

    def _check_space(self, positions: Any) -> None:
        """The sizes of a map (symbols or tensors, while a program is written down) leave keys to pool."""
        if self.subsample and min(positions[-min(self.dims, 2) :]) < 2:
            raise ValueError(
                f"a map of {tuple(positions)} positions is too small to subsample by 2 in space; "
                "use subsample=False"
            )

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps theta, phi and g, (batch, channels, *grid); the last two on the key grid."""
        if self.subsample_at == "input":
            keys = self.pool(x)
            phi, g = keys if self.phi is None else self.phi(keys), self.g(keys)
        else:
            phi, g = self.pool(x if self.phi is None else self.phi(x)), self.pool(self.g(x))
        theta = x if self.theta is None else self.theta(x)
        if theta.dtype == g.dtype == phi.dtype:
            return theta, phi, g
        # Under autocast x itself (gaussian) may be wider than g.
        dtype = torch.promote_types(theta.dtype, g.dtype)
        return theta.to(dtype), phi.to(dtype), g.to(dtype)

    def _scores(self, theta: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """w_f . [theta_i, phi_j] = a_i + b_j with a_i = theta_i . w_f[:inner], b_j = phi_j . w_f[inner:]."""
        assert self.w_f is not None
        # Columns, not vectors: onnxruntime 1.32 gives wrong numbers for a transposed map times a vector.
        halves = self.w_f.to(theta.dtype).view(2, self.inner_channels, 1)
        with without_autocast(theta.device):
            return (theta @ halves[0]).squeeze(2), (phi @ halves[1]).squeeze(2)

    def _average(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        dtype = g.dtype
        if self.function.scores:
            # In full precision: rounded scores would turn keys with a_i + b_j near 0 on or off.
            work = working_dtype(dtype)
            theta, phi = self._scores(theta.to(work), phi.to(work))
            g = g.to(work)
        operands = (theta, phi, g, self.scale, self.memory_budget)
        if self._sharding is not None:
            return self.function.averaged_over(self._sharding.group, *operands).to(dtype)
        return self.function.averaged(*operands).to(dtype)

    def extra_repr(self) -> str:
        """The block in the paper's symbols."""
        product = "theta_i . phi_j" if self.function.embeds else "x_i . x_j"
        product = product if self.scale == 1 else f"{self.scale:.4g} {product}"
        y = self.function.equation.format(product=product)
        z = "W_z y_i + x_i" if self.norm is None else "norm(W_z y_i) + x_i"
        if not self.subsample:
            keys = "all positions"
        else:
            keys = "max-pooled phi and g" if self.subsample_at == "embedding" else "max-pooled x"
        groups = f" in {self.temporal_groups} runs of frames" if self.temporal_groups > 1 else ""
        channels = f"{self.channels} -> {self.inner_channels} -> {self.channels}"
        return (
            f"{channels}, {self.pairwise}: z_i = {z}, y_i = {y}\n"
            f"dims={self.dims}, span={self.span}{groups}, keys: {keys}"
        )
