"""Other blocks than the non-local one, put into a network by name."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

import nonlocal_nn as nl


def bottleneck_ends(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith("bn3")]


@pytest.mark.parametrize("block", ["squeeze_excitation", "global_context"])
def test_resnet50_gets_sixteen_blocks_and_gives_what_it_gave(block):
    model = torchvision.models.resnet50().eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        model = nl.insert_blocks(model, bottleneck_ends(model), block=block)
        assert torch.equal(model(x), before)
    if block == "squeeze_excitation":
        assert sum(parameter.numel() for parameter in model.parameters()) == 28_088_024  # SE-ResNet-50
    children = [name for name, part in model.named_modules() if name.endswith(f"bn3.{block}")]
    assert len(children) == 16
    model(x).sum().backward()
    last = "W_2.weight" if block == "squeeze_excitation" else "add.W_v2.weight"
    assert all(bool(model.get_parameter(f"{name}.{last}").grad.count_nonzero()) for name in children)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


def test_copies_pickles_and_compiled_networks_have_the_block():
    model = nl.insert_blocks(small(), "1", block="squeeze_excitation", block_options={"reduction": 2})
    assert model[1].squeeze_excitation.hidden == 4
    with torch.no_grad():
        model[1].squeeze_excitation.W_2.weight.normal_()
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    assert not torch.equal(expected, small()(x))
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), expected)


def test_one_behind_the_other():
    model = nl.insert_blocks(small(), "1", block="global_context")
    with pytest.raises(ValueError, match=r"has a block already; .* after '1\.global_context'"):
        nl.insert_blocks(model, "1")
    nl.insert_blocks(model, "1.global_context", pairwise="gaussian")
    assert model[1].global_context.nonlocal_block.channels == 8


def test_a_function_makes_any_block():
    seen = []

    def make(channels: int, axes: int) -> nn.Module:
        seen.append((channels, axes))
        return nn.BatchNorm2d(channels)

    model = nl.insert_blocks(small().double(), ["0", "1"], block=make)
    assert seen == [(8, 2), (8, 2)]
    assert model[0].inserted_block.weight.dtype == torch.float64
    assert model(torch.randn(2, 3, 9, 9, dtype=torch.float64)).shape == (2, 8, 5, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"block": "squeeze_exitation"},
            "'squeeze_exitation'; the nearest are squeeze_excitation",
        ),
        (
            {"block": "squeeze_excitation", "block_options": {"reducton": 4}},
            "has no option 'reducton'; the nearest are reduction",
        ),
        ({"block": "squeeze_excitation", "block_options": {"reduction": 0}}, "reduction = 0"),
        (
            {"block": "global_context", "pairwise": "gaussian", "scale": True},
            "pairwise, scale: options of",
        ),
        ({"block_options": {"reduction": 4}}, r"\['reduction'\]: a non-local block's are arguments"),
        ({"block": lambda channels, axes: 3}, "made a int for layer '1'"),
        ({"block": lambda channels, axes: nn.ReLU(), "block_options": {"a": 1}}, "with a block of your own"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_changed(options, words):
    model = small()
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=words):
        nl.insert_blocks(model, "1", **options)
    assert list(model.state_dict()) == names
    assert not model[1]._forward_hooks
