"""Which pixels a position sees: one lit pixel must reach the positions that the geometry says it does."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from nonlocal_nn import NonLocalBlock, create_model, insert_blocks
from nonlocal_nn.explain.capture.affinity import capture
from nonlocal_nn.explain.capture.geometry import Axis, GridGeometry
from nonlocal_nn.explain.capture.tracing import AxisTrace


def reached(model: nn.Module, name: str, size: tuple[int, ...], pixel: tuple[int, ...]) -> np.ndarray:
    """The positions (..., axes) of the block's map that change when one pixel is lit.

    All weights are made positive, so that nothing that a pixel reaches is cut off by a ReLU or a maximum.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().clamp_(min=1e-2)
        for module in model.modules():
            if isinstance(module, NonLocalBlock):
                module.W_z.weight.zero_()
                module.W_z.bias.zero_()
                if module.norm is not None:
                    module.norm.weight.zero_()
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    dark = torch.zeros(1, 3, *size, dtype=torch.float64)
    lit = dark.clone()
    lit[(0, slice(None), *pixel)] = 1e6
    model.double().eval()
    with torch.no_grad():
        model(dark)
        model(lit)
    handle.remove()
    model.float()
    change = (seen[1] - seen[0]).abs().amax(dim=1)
    return (change > 0)[0].numpy()


def expected_reach(grid: GridGeometry, pixel: tuple[int, ...]) -> np.ndarray:
    """The positions whose receptive field holds the pixel."""
    point = (0,) * (3 - len(pixel)) + pixel
    inside = [
        np.abs(centres - place) <= (receptive - 1) / 2
        for centres, receptive, place in zip(grid.axis_centres(), grid.receptive, point, strict=True)
    ]
    return inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]


class Functional(nn.Module):
    """Strides, padding, cropping and pooling by functions and methods, in odd ways, on two axes unlike."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 3, 3, 5))
        self.block = NonLocalBlock(4, dims=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (4, 1, 0, 3))
        x = F.conv2d(x, self.weight, stride=(1, 2), padding="valid")
        x = torch.max_pool2d(x, (2, 3), (2, 1), padding=(1, 1))
        x = x[:, :, 1:-2, 3:]
        x = F.avg_pool2d(x, 2, ceil_mode=True)
        x = x.permute(0, 2, 3, 1).contiguous().transpose(1, 3).transpose(2, 3).narrow(2, 1, x.shape[2] - 2)
        return self.block(x)


class Tokens(nn.Module):
    """Patches as tokens in one axis, channels last, then a map again."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.mix = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU())
        self.block = NonLocalBlock(6, dims=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.mix(tokens)
        return self.block(tokens.transpose(1, 2).reshape(x.shape))


NETWORKS = {
    "c2d_tiny": (lambda: create_model("c2d_tiny_nl2"), "res3.nonlocal0", (8, 48, 48)),
    "i3d, time strides": (
        lambda: create_model(
            "i3d_r50", nonlocal_after={"res2": (1,), "res3": (3,)}, base_width=4, dropout=0.0
        ),
        "res3.nonlocal3",
        (16, 64, 96),
    ),
    "resnet18": (
        lambda: insert_blocks(torchvision.models.resnet18(), after="layer3.1"),
        "layer3.1.nonlocal_block",
        (96, 128),
    ),
    "video r2plus1d": (
        lambda: insert_blocks(torchvision.models.video.r2plus1d_18(), after="layer2.1"),
        "layer2.1.nonlocal_block",
        (8, 32, 40),
    ),
    "densenet": (
        lambda: insert_blocks(torchvision.models.densenet121(), after="features.transition2"),
        "features.transition2.pool.nonlocal_block",
        (64, 64),
    ),
    "average pools in shortcuts": (
        lambda: insert_blocks(timm.create_model("resnet26d"), after="layer2.1"),
        "layer2.1.nonlocal_block",
        (96, 96),
    ),
    "functions": (Functional, "block", (41, 50)),
    "a sequence": (
        lambda: insert_blocks(
            nn.Sequential(
                nn.Conv1d(3, 4, 9, stride=3), nn.MaxPool1d(4), nn.Conv1d(4, 4, 3, padding=2, dilation=2)
            ),
            after="1",
        ),
        "1.nonlocal_block",
        (200,),
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_lit_pixel_reaches_the_positions_whose_receptive_field_holds_it(network):
    build, name, size = NETWORKS[network]
    torch.manual_seed(0)
    model = build()
    pixels = [tuple(s // 2 for s in size), tuple(s // 3 for s in size), tuple(s - 5 for s in size)]
    for pixel in pixels:
        hit = reached(model, name, size, pixel)
        grid = capture(model, torch.rand(1, 3, *size), blocks=[name]).blocks[name].queries
        assert grid.shape == (1, 1, *hit.shape)[-3:]
        hit = hit.reshape(grid.shape)
        # A dilated or strided path leaves holes, so what must agree is the box around what was reached.
        expected = expected_reach(grid, pixel)
        for axis in range(3):
            other = tuple(a for a in range(3) if a != axis)
            wanted, found = np.flatnonzero(expected.any(other)), np.flatnonzero(hit.any(other))
            assert [*found[[0, -1]]] == [*wanted[[0, -1]]], f"axis {axis} of pixel {pixel}"


@pytest.mark.parametrize(
    ("build", "name", "size"),
    [
        (Tokens, "block", (32, 48)),
        (
            lambda: insert_blocks(
                nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ConvTranspose2d(4, 4, 2, stride=2)), after="1"
            ),
            "1.nonlocal_block",
            (64, 64),
        ),
        (
            lambda: insert_blocks(
                nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Upsample(scale_factor=2)), after="1"
            ),
            "1.nonlocal_block",
            (64, 64),
        ),
        (
            lambda: insert_blocks(torchvision.models.convnext_tiny(), after="features.0"),
            "features.0.1.nonlocal_block",
            (64, 64),
        ),
    ],
)
def test_the_nearest_position_is_one_that_the_pixel_reaches(build, name, size):
    model = build()
    for pixel in ((0, 0), (17, 30), (size[0] - 1, 23)):
        hit = reached(model, name, size, pixel)
        grid = capture(model, torch.rand(1, 3, *size)).blocks[name].queries
        assert hit.reshape(-1)[grid.nearest(0, *pixel)], (pixel, grid)
        box = grid.cell(grid.nearest(0, *pixel))
        assert box[2] <= pixel[0] <= box[3]
        assert box[4] <= pixel[1] <= box[5]


def test_adaptive_pools_and_unknown_steps_spread_positions_evenly():
    class Adaptive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = NonLocalBlock(3, dims=2, subsample=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(F.adaptive_avg_pool2d(x, (5, 7)))

    grid = capture(Adaptive(), torch.rand(1, 3, 30, 42)).blocks["block"].queries
    assert grid == GridGeometry((1, 5, 7), (0, 2.5, 2.5), (1, 6, 6), (1, 6, 6))

    class Unfollowed(Adaptive):
        def forward(self, x: Tensor) -> Tensor:
            mixed = torch.einsum("bchw,hk->bckw", x, torch.ones(30, 10))
            return self.block(mixed)

    grid = capture(Unfollowed(), torch.rand(1, 3, 30, 42)).blocks["block"].queries
    assert (grid.shape, grid.first, grid.step) == ((1, 10, 42), (0, 1, 0), (1, 3, 1))


def test_a_batch_that_cannot_be_followed_is_refused():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = NonLocalBlock(3, dims=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(torch.einsum("bcthw,tu->buchw", x, torch.ones(4, 4))[0])

    with pytest.raises(ValueError, match="a batch of 4 for one clip"):
        capture(Mixed(), torch.rand(1, 3, 4, 8, 8))


def test_keys_lie_in_the_middle_of_the_positions_they_were_pooled_from():
    model = nn.Sequential(nn.Conv3d(3, 4, 3, stride=(2, 4, 4), padding=1), NonLocalBlock(4))
    found = capture(model, torch.rand(1, 3, 8, 36, 40)).blocks["1"]
    assert found.queries.shape == (4, 9, 10)
    assert found.keys == GridGeometry((4, 4, 5), (0, 2, 2), (2, 8, 8), (3, 7, 7))
    of_queries = found.queries.centres().reshape(4, 9, 10, 3)[:, :8]
    middles = of_queries.reshape(4, 4, 2, 5, 2, 3).mean((2, 4))
    np.testing.assert_allclose(found.keys.centres(), middles.reshape(-1, 3))


def test_reshapes_carry_axes_and_cuts_through_them_are_lost():
    x = torch.zeros(1, 3, 4, 6, 8)
    frame, row, column = Axis(0, 4), Axis(1, 6), Axis(2, 8)
    with AxisTrace() as trace:
        trace.start(x)
        folded = x.transpose(1, 2).reshape(4, 3, 48)
        assert trace.axes_of(folded)[0] == (frame,)
        assert trace.axes_of(folded)[2] == (row, column)
        again = folded.view(1, 4, 3, 6, 8)[:, :, :, None]
        assert trace.axes_of(again)[1:] == ((frame,), trace.axes_of(x)[1], (), (row,), (column,))
        windows = x.view(1, 3, 4, 3, 2, 8)
        assert trace.axes_of(windows)[3] == (Axis(1, 3, 0.5, 2, 2),)
        assert trace.axes_of(x.reshape(9, 64)) is None
        assert trace.axes_of(x[0, :, 1, ..., ::2])[1:] == ((row,), (Axis(2, 4, 0, 2),))
        assert trace.axes_of(torch.stack([x, x], dim=2))[3] == (frame,)
        assert trace.axes_of(torch.cat([x, x], dim=1))[2] == (frame,)
        assert not isinstance(trace.axes_of(torch.cat([x, x], dim=2))[2][0], Axis)
        assert trace.axes_of(x.select(2, 0))[2:] == ((row,), (column,))
        assert trace.axes_of(torch.zeros_like(x).relu_() + 1)[4] == (column,)
        assert trace.axes_of(torch.ones(3)) is None
