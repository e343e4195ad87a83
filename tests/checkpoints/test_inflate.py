"""Image weights in a video network: a video of one repeated frame gives the image network's features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import nonlocal_nn as nl
from nonlocal_nn.checkpoints.inflate import inflate_kernel, inflate_state_dict
from nonlocal_nn.checkpoints.load import load_image_weights
from nonlocal_nn.models.catalog import create_model
from nonlocal_nn.models.video_resnet import VideoResNet

FRAMES = 8


def shaken(model: nn.Module) -> nn.Module:
    """Norms as after training: no statistic or scale at its first value, so that none can be mixed up."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 0.9, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def image_network() -> nn.Module:
    return shaken(torchvision.models.resnet50(weights=None))


@pytest.fixture(scope="module")
def weights_file(image_network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(image_network.state_dict(), path)
    return path


def image_features(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    features = {"conv1": model.relu(model.bn1(model.conv1(x)))}
    features["pool1"] = x = model.maxpool(features["conv1"])
    for i in range(1, 5):
        features[f"res{i + 1}"] = x = model.get_submodule(f"layer{i}")(x)
    return features


@torch.no_grad()
def test_c2d_on_a_still_clip_is_the_image_network(image_network: nn.Module, weights_file: Path) -> None:
    """No maximum sees the padding of the paper's pools, so every stage and the logits agree."""
    model = create_model("c2d_r50_nl5", num_classes=1000).eval()
    report = load_image_weights(model, weights_file)
    assert all(".nonlocal" in name for name in report.missing)
    assert (report.unused, dict(report.mismatched)) == ((), {})
    image = torch.randn(2, 3, 64, 64)
    clip = image[:, :, None].repeat(1, 1, FRAMES, 1, 1)
    expected, measured = image_features(image_network, image), model.features(clip)
    assert set(measured) - {"pool2"} == set(expected)
    for name, features in expected.items():
        frames = measured[name].shape[2]
        torch.testing.assert_close(measured[name], features[:, :, None].expand(-1, -1, frames, -1, -1))
    torch.testing.assert_close(model(clip), image_network(image))


@pytest.mark.parametrize("name", ["i3d_r50", "i3d_3x3x3_r50"])
@torch.no_grad()
def test_every_inflated_layer_on_a_still_clip_is_the_image_layer(
    name: str, image_network: nn.Module, weights_file: Path
) -> None:
    """Layer by layer, at the middle frame: the ends see the padding."""
    model = create_model(name, num_classes=400)
    report = load_image_weights(model, weights_file)
    assert set(report.mismatched) == {"head.fc.weight", "head.fc.bias"}
    pairs = [(model.stem.conv, image_network.conv1)]
    for stage in range(1, 5):
        for ours, theirs in zip(
            model.get_submodule(f"res{stage + 1}"), image_network.get_submodule(f"layer{stage}"), strict=True
        ):
            pairs += [(ours.conv1, theirs.conv1), (ours.conv2, theirs.conv2)]
    inflated = [(ours, theirs) for ours, theirs in pairs if ours.kernel_size[0] > 1]
    assert len(inflated) == 1 + 3 + 2 + 3 + 1
    for ours, theirs in inflated:
        image = torch.randn(1, theirs.in_channels, 8, 8)
        clip = image[:, :, None].repeat(1, 1, 5 * ours.stride[0], 1, 1)
        middle = ours(clip).unbind(2)[2]
        torch.testing.assert_close(middle, theirs(image), atol=2e-5, rtol=1e-4)


def test_kernels_add_up_to_the_image_kernel() -> None:
    kernel = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(inflate_kernel(kernel, 3).sum(dim=2), kernel)


def test_non_local_blocks_and_other_classes_keep_their_weights(image_network: nn.Module) -> None:
    model = create_model("i3d_r50_nl1", num_classes=6)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, report = inflate_state_dict(image_network.state_dict(), own)
    assert list(state) == list(own)
    kept = {name for name in own if ".nonlocal" in name or name.startswith("head.fc")}
    assert set(report.placed) == set(own) - kept
    assert all(torch.equal(state[name], own[name]) for name in kept)
    assert str(report).count("\n") == 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("resnet101", "the video network lacks: layer3.6"),
        ("resnet18", "the image network lacks: .*other shapes: "),
        ("wide_resnet50_2", "other shapes: res2.0.conv1.weight"),
    ],
)
def test_another_networks_weights_are_refused(image: str, message: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(image, weights=None).state_dict()
        own = create_model("c2d_r50").state_dict()
    with pytest.raises(ValueError, match=f"a ResNet-50 goes into r50.*{message}"):
        inflate_state_dict(state, own)


def test_a_refused_file_names_itself_and_changes_nothing(tmp_path: Path) -> None:
    model: VideoResNet = create_model("c2d_tiny")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"conv1.weight": torch.ones(16, 3, 5, 5), "fc.bias": torch.zeros(3)}, tmp_path / "some.pth")
    with pytest.raises(ValueError, match=r"some.pth: these image weights are not those of this network"):
        load_image_weights(model, tmp_path / "some.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("folder", [True, False])
def test_a_c2d_of_ours_is_inflated(tmp_path, folder) -> None:
    torch.manual_seed(0)
    plain = nl.create_model("c2d_tiny_nl2", num_classes=3).eval()
    with torch.no_grad():
        plain.get_parameter("res3.nonlocal0.norm.weight").fill_(0.5)
    nl.save_model(plain, tmp_path / "model.safetensors")
    inflated = nl.create_model("i3d_tiny_nl2", num_classes=3).eval()
    report = load_image_weights(inflated, tmp_path if folder else tmp_path / "model.safetensors")
    assert not report.missing
    assert not report.mismatched
    kernel, own = plain.get_parameter("res2.0.conv1.weight"), inflated.get_parameter("res2.0.conv1.weight")
    assert own.shape[2] == 3
    torch.testing.assert_close(own.sum(dim=2, keepdim=True), kernel)
    assert torch.equal(inflated.get_parameter("res3.nonlocal0.norm.weight"), torch.full((64,), 0.5))
    # Away from the ends of the clip, one repeated frame gives what the C2D gives.
    x = torch.randn(1, 3, 1, 48, 48).expand(-1, -1, 9, -1, -1)
    a, b = (model.features(x)["conv1"] for model in (plain, inflated))
    torch.testing.assert_close(a[:, :, 4], b[:, :, 4], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="are not those of this network's ResNet"):
        load_image_weights(nl.create_model("i3d_small", num_classes=3), tmp_path / "model.safetensors")
