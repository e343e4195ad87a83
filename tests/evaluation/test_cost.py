"""Counting by hand from the layers against the paper's layers, torch's own counter, and itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nonlocal_nn._modes import meta_init
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.evaluation.cost import count_macs, count_parameters, measure, pairwise_macs
from nonlocal_nn.models.catalog import create_model

STANDARD_CLIP = (3, 32, 224, 224)


def billions(name: str, clip: tuple[int, ...] = STANDARD_CLIP, **overrides: object) -> float:
    with meta_init():
        model = create_model(name, **overrides)
    return count_macs(model, clip) / 1e9


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("c2d_r50", {}, 20.4),
        ("i3d_r50", {}, 33.1),
        ("c2d_r50_nl5", {"subsample_at": "input"}, 28.6),
        ("c2d_r50_nl5", {"subsample_at": "embedding"}, 31.6),
    ],
)
def test_multiply_adds_at_the_standard_clip(name: str, overrides: dict[str, object], expected: float) -> None:
    assert round(billions(name, **overrides), 1) == expected


def test_what_the_note_on_table_2e_says() -> None:
    """`nonlocal models` explains the paper's ratios with these numbers."""
    eight_frames = {"clip": (3, 8, 224, 224), "stem": "vnl"}
    plain = billions("c2d_r50", **eight_frames)
    assert round(billions("i3d_r50", **eight_frames) / plain, 2) == 1.46
    assert round(billions("i3d_3x3x3_r50", **eight_frames) / plain, 2) == 1.76
    assert round(billions("c2d_r50_nl5", subsample_at="input") / billions("c2d_r50"), 2) == 1.40
    with meta_init():
        gaussian, base = create_model("c2d_r50_nl5", pairwise="gaussian"), create_model("c2d_r50")
    assert round(count_parameters(gaussian) / count_parameters(base), 2) == 1.15
    pairwise = 2 * pairwise_macs(gaussian.res3.nonlocal1, (1, 512, 4, 28, 28))
    pairwise += 3 * pairwise_macs(gaussian.res4.nonlocal1, (1, 1024, 4, 14, 14))
    assert (
        round((count_macs(gaussian, STANDARD_CLIP) - pairwise) / count_macs(base, STANDARD_CLIP), 2) == 1.20
    )


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("c2d_r50", {"stem": "vnl32"}),
        ("i3d_r50_nl5", {}),
        ("i3d_3x3x3_r50_nl1", {"pairwise": "gaussian", "subsample_at": "input"}),
        ("c2d_r50_nl1", {"subsample": False, "span": "space"}),
        ("c2d_r50_nl1", {"span": "time"}),
        ("c2d_r50_nl1", {"temporal_groups": {"res4": 2}}),
    ],
)
def test_agrees_with_torchs_counter(name: str, overrides: dict[str, object]) -> None:
    """FlopCounterMode counts two a multiply-add, of the matrix products the operators really run."""
    clip = (3, 16, 64, 96)
    with torch.device("meta"):
        model = create_model(name, **overrides).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, *clip))
    assert 2 * count_macs(model, clip) == counter.get_total_flops()


def test_counts_layers_by_their_formulae() -> None:
    conv = nn.Conv3d(4, 6, (3, 3, 3), stride=(1, 2, 2), padding=1, groups=2)
    assert count_macs(conv, (4, 5, 8, 8)) == (6 * 5 * 4 * 4) * (4 // 2) * 27
    assert count_macs(nn.Linear(10, 3, bias=False), (7, 10)) == 7 * 30


def test_counts_a_block_by_hand() -> None:
    """Positions 2 x 4 x 4 = 32, keys 2 x 2 x 2 = 8, channels 6, inner 3."""
    shape = (6, 2, 4, 4)
    convolutions = 4 * 32 * 6 * 3  # theta, phi, g before the pool, W_z
    by_function = {
        "embedded_gaussian": 32 * 8 * (3 + 3),
        "dot_product": 32 * 8 * (3 + 3),
        "gaussian": 32 * 8 * (6 + 3) - 2 * 32 * 6 * 3,
        "concatenation": (32 + 8) * 3 + 32 * 8 * 3,
    }
    for pairwise, pairs in by_function.items():
        assert count_macs(NonLocalBlock(6, pairwise=pairwise), shape) == convolutions + pairs, pairwise
    pooled_first = convolutions - 2 * (32 - 8) * 6 * 3  # phi and g on 8 positions
    assert count_macs(NonLocalBlock(6, subsample_at="input"), shape) == pooled_first + 32 * 8 * 6
    whole = NonLocalBlock(6, subsample=False)
    assert count_macs(whole, shape) == convolutions + 32 * 32 * 6
    assert (
        count_macs(NonLocalBlock(6, subsample=False, temporal_groups=2), shape) == convolutions + 32 * 16 * 6
    )
    assert count_macs(NonLocalBlock(6, subsample=False, span="space"), shape) == convolutions + 32 * 16 * 6
    assert count_macs(NonLocalBlock(6, span="time"), shape) == convolutions + 32 * 2 * 6


def test_counting_leaves_the_model_as_it_was() -> None:
    model = create_model("c2d_tiny_nl2", num_classes=4)
    model.res3.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    cost = measure(model, (3, 8, 48, 48))
    assert cost == measure(model, (3, 8, 48, 48))
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(2, 2, 1), (3, 1, 1), (3, 2, 2)])
def test_a_transposed_convolution_multiplies_each_input_with_a_kernel(
    kernel: int, stride: int, groups: int
) -> None:
    layer = nn.ConvTranspose2d(2, 4, kernel, stride=stride, groups=groups)
    by_hand = sum(
        1
        for _ in range(2 * 4 * 5)  # input numbers
        for _ in range(4 // groups)  # channels that each adds to
        for _ in range(kernel * kernel)
    )
    assert count_macs(layer, (2, 4, 5)) == by_hand
