"""The computed reach is the one that gradients show."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn.models.reach import Field, reach
from nonlocal_nn.models.spec import STEMS, VideoResNetSpec

SMALL: dict[str, Any] = {"base_width": 1, "num_classes": 2, "nonlocal_after": {}}


def measured(name: str, pixels: int, frames: int, **overrides: Any) -> Field:
    """From the first to the last pixel and frame with a gradient from the middle of the last map.

    Pools average here: a maximum passes its gradient to one pixel alone.
    """
    torch.manual_seed(0)
    model = nl.create_model(name, **{**SMALL, **overrides}).double().eval()
    for part in (model.stem, model):
        for child, pool in list(part.named_children()):
            if isinstance(pool, torch.nn.MaxPool3d):
                setattr(part, child, torch.nn.AvgPool3d(pool.kernel_size, pool.stride, pool.padding))
    for weight in model.parameters():  # positive weights and input: no ReLU is closed, no gradient cancels
        weight.data.abs_().add_(0.1)
    x = torch.rand(1, 3, frames, pixels, pixels, dtype=torch.float64, requires_grad=True)
    last = list(model.features(x).values())[-1]
    t, h, w = (size // 2 for size in last.shape[2:])
    (gradient,) = torch.autograd.grad(last[0, :, t, h, w].sum(), x)
    seen = gradient[0].abs().sum(dim=0)
    return Field(_span(seen.sum((0, 1))), _span(seen.sum((1, 2))))


def _span(seen: torch.Tensor) -> int:
    where = seen.nonzero()
    return int(where.max() - where.min()) + 1


@pytest.mark.parametrize("name", ["c2d_small", "i3d_small", "c2d_tiny", "i3d_tiny", "i3d_3x3x3_tiny"])
def test_small_networks(name: str) -> None:
    computed = reach(name, nonlocal_after={}).end
    assert measured(name, 2 * computed.pixels + 32, 2 * computed.frames + 6) == computed


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("inflation", [None, "3x1x1", "3x3x3"])
def test_every_stem(stem: str, inflation: Any) -> None:
    shape: dict[str, Any] = {
        "stem": stem,
        "inflation": inflation,
        "stage_blocks": (2, 1),
        "stage_strides": (1, 2),
    }
    computed = reach(VideoResNetSpec("mine", **shape)).end
    frames = 2 * computed.frames + 8
    assert measured("c2d_tiny", 2 * computed.pixels + 16, frames, **shape) == computed


def test_figures_of_the_long_range_set() -> None:
    assert reach("c2d_small").end == (25, 1)
    assert reach("i3d_small").end == (25, 5)
    assert reach("c2d_small_nl").first_block == (25, 1)
    assert reach("c2d_small_nl").blocks_relate == ("space", "time")
    assert reach("c2d_small").first_block is None
    assert str(reach("c2d_small")) == "25 pixels, 1 frame"
    assert str(reach("i3d_small_nl", span="time")) == "25 pixels, 5 frames; blocks: all of time"


def test_a_block_in_the_middle_sees_less_than_the_end() -> None:
    whole = reach("c2d_tiny_nl1")
    assert whole.first_block is not None
    assert whole.first_block < whole.end


@pytest.mark.parametrize(
    ("name", "axis", "before"),
    [("c2d_small", 4, 8), ("c2d_small", 3, 8), ("i3d_small", 2, 1), ("i3d_small", 4, 8), ("c2d_tiny", 4, 16)],
)
def test_quartets_tie_from_the_reach_on_and_not_before(name: str, axis: int, before: int) -> None:
    """Two pieces moved apart, in every place: AA' + BB' = AB' + BA' exactly where no feature holds both.

    before: the stride of the last map, within which a field that holds both may be missed.
    """
    torch.manual_seed(0)
    seen = reach(name).end
    size, sees = (1, seen.frames) if axis == 2 else (6, seen.pixels)
    length = 2 * sees + size + 2 * before
    model = nl.create_model(name, num_classes=2).double().eval()
    shape = [4, 3, 1, 9, 9]
    shape[axis] = length
    colours = torch.rand(2, 2, 3, dtype=torch.float64)

    def tied(distance: int, place: int) -> bool:
        clips = torch.zeros(shape, dtype=torch.float64)
        for number in range(4):
            for which, start in enumerate((place, place + distance)):
                colour = colours[which, divmod(number, 2)[which]]
                clips[number].narrow(axis - 1, start, size)[:] = colour[:, None, None, None]
        with torch.no_grad():
            odds = model(clips).diff(dim=1).squeeze(1)
        return bool((odds[0] + odds[3] - odds[1] - odds[2]).abs() < 1e-13 * odds.abs().max())

    ends = sees + size - 1
    assert all(tied(ends, place) for place in range(2 * before))
    assert not all(tied(ends - before, place) for place in range(2 * before))
