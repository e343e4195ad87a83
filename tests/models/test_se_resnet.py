"""Residual blocks with squeeze-and-excitation: parameters, placements, and timm's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nonlocal_nn as nl
from nonlocal_nn.models.video_resnet import Bottleneck


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("seresnet50", {}, 28_088_024),
        ("seresnet101", {}, 49_326_872),
        ("seresnet50", {"se_reduction": 2}, 45_700_000),
        ("seresnet50", {"se_reduction": 4}, 35_640_000),
        ("seresnet50", {"se_reduction": 8}, 30_600_000),
        ("seresnet50", {"se_reduction": 32}, 26_830_000),
    ],
)
def test_parameters(name, overrides, expected):
    with torch.device("meta"):
        model = nl.create_model(name, **overrides)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == expected or (overrides and abs(count - expected) < 10_000)  # the paper rounds


@pytest.mark.parametrize("placement", ["standard", "pre", "post", "identity"])
@pytest.mark.parametrize("channels_in", [16, 32])
def test_placements(placement, channels_in):
    excited = channels_in if placement == "pre" else 32
    block = Bottleneck(
        channels_in, 8, 32, nn.BatchNorm3d, excitation=nl.SqueezeExcitation(excited, 4), placement=placement
    ).eval()
    x = torch.randn(2, channels_in, 2, 5, 5)
    plain = Bottleneck(channels_in, 8, 32, nn.BatchNorm3d).eval()
    plain.load_state_dict(block.state_dict(), strict=False)

    def residual(x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(plain.norm1(plain.conv1(x)))
        return plain.norm3(plain.conv3(torch.relu(plain.norm2(plain.conv2(y)))))

    def shortcut(x: torch.Tensor) -> torch.Tensor:
        return x if plain.shortcut is None else plain.shortcut(x)

    se = block.excitation
    expected = {
        "standard": lambda: torch.relu(se(residual(x)) + shortcut(x)),
        "pre": lambda: torch.relu(residual(se(x)) + shortcut(x)),
        "post": lambda: se(torch.relu(residual(x) + shortcut(x))),
        "identity": lambda: torch.relu(residual(x) + se(shortcut(x))),
    }[placement]()
    torch.testing.assert_close(block(x), expected)


def test_timms_network_gives_the_same_numbers():
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("seresnet50", num_classes=10).eval()
    ours = nl.create_model("seresnet50", num_classes=10).eval()
    names = {
        "conv1": "stem.conv",
        "bn1": "stem.norm",
        "fc": "head.fc",
        "downsample.0": "shortcut.conv",
        "downsample.1": "shortcut.norm",
        "se.fc1": "excitation.W_1",
        "se.fc2": "excitation.W_2",
    }
    state = {}
    for key, tensor in theirs.state_dict().items():
        layer, _, field = key.rpartition(".")
        if layer.startswith("layer"):
            stage, index, part = layer.split(".", 2)
            part = (
                names.get(part, part.replace("bn", "norm"))
                if part not in ("conv1", "bn1")
                else part.replace("bn", "norm")
            )
            layer = f"res{int(stage[5:]) + 1}.{index}.{part}"
        else:
            layer = names[layer]
        state[f"{layer}.{field}"] = tensor
    for key, tensor in ours.state_dict().items():
        if state[key].shape != tensor.shape:
            state[key] = state[key].reshape(tensor.shape)
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x.unsqueeze(2)), theirs(x), rtol=1e-4, atol=1e-4)


def test_a_saved_network_keeps_its_blocks(tmp_path):
    model = nl.create_model("c2d_tiny", num_classes=3, se_reduction=4, se_placement="post").eval()
    nl.save_model(model, tmp_path / "model.safetensors")
    again = nl.load_model(tmp_path / "model.safetensors").eval()
    assert again.spec.se_reduction == 4
    x = torch.randn(1, 3, 8, 48, 48)
    torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [({"se_reduction": 0}, "se_reduction is 0"), ({"se_placement": "after"}, "se_placement is 'after'")],
)
def test_what_makes_no_sense_is_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        nl.create_model("c2d_tiny", **overrides)
