"""Squeeze-and-excitation and global context out of public files: the owner's numbers, by the owner's code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nonlocal_nn as nl
from nonlocal_nn.checkpoints.layouts import LAYOUTS

timm = pytest.importorskip("timm")


class Moskomule(nn.Module):
    """The formula of moskomule's senet.pytorch."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=(2, 3)))[:, :, None, None]


class ContextBlock(nn.Module):
    """The formula of GCNet, which mmcv has too."""

    def __init__(self, channels: int, hidden: int, pooling: str, fuse: tuple[str, ...]) -> None:
        super().__init__()
        if pooling == "att":
            self.conv_mask = nn.Conv2d(channels, 1, 1)
        self.pooling = pooling
        for name in fuse:
            layers = [nn.Conv2d(channels, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(inplace=True)]
            setattr(self, f"channel_{name}_conv", nn.Sequential(*layers, nn.Conv2d(hidden, channels, 1)))

    def forward(self, x: Tensor) -> Tensor:
        if self.pooling == "att":
            weights = self.conv_mask(x).flatten(2).softmax(dim=2)
            c = (x.flatten(2) @ weights.mT)[..., None]
        else:
            c = x.mean(dim=(2, 3), keepdim=True)
        y = x
        if hasattr(self, "channel_mul_conv"):
            y = y * self.channel_mul_conv(c).sigmoid()
        return y + self.channel_add_conv(c) if hasattr(self, "channel_add_conv") else y


OWNERS = {
    "timm's SE": lambda: timm.layers.SEModule(32, rd_channels=4),
    "timm's EfficientNet": lambda: timm.models._efficientnet_blocks.SqueezeExcite(32, rd_ratio=0.25),
    "torchvision's SE": lambda: __import__("torchvision").ops.SqueezeExcitation(32, 8),
    "moskomule": lambda: Moskomule(32, 4),
    "GCNet, add": lambda: ContextBlock(32, 8, "att", ("add",)),
    "GCNet, both, mean": lambda: ContextBlock(32, 8, "avg", ("mul", "add")),
    "timm's GC": lambda: timm.layers.GlobalContext(32, rd_channels=8),
    "timm's GC, scale": lambda: timm.layers.GlobalContext(32, rd_channels=8, fuse_add=False, fuse_scale=True),
}


def owners_block(kind: str) -> nn.Module:
    block = OWNERS[kind]().eval()
    with torch.no_grad():
        for tensor in block.parameters():
            tensor.copy_(0.5 * torch.randn_like(tensor))
    return block


@pytest.mark.parametrize("kind", OWNERS)
def test_the_owners_numbers(kind, tmp_path):
    theirs = owners_block(kind)
    network = nn.ModuleDict({"layer": nn.ModuleDict({"att": theirs}), "fc1": nn.Linear(4, 8)})
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "file.pth")
    (ours,) = nl.load_blocks(tmp_path / "file.pth").values()
    assert list(nl.load_blocks(tmp_path / "file.pth")) == ["layer.att"]
    x = torch.randn(2, 32, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_a_gate_is_a_hint(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.ops.SqueezeExcitation(16, 4, scale_activation=nn.Hardsigmoid).eval()
    torch.save({f"se.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "f.pth")
    ours = nl.load_blocks(tmp_path / "f.pth", gate="hard_sigmoid")["se"]
    x = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_every_block_of_a_network(tmp_path):
    model = timm.create_model("gcresnet33ts", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    blocks = nl.load_blocks(tmp_path / "net.pth")
    names = [name for name, part in model.named_modules() if isinstance(part, timm.layers.GlobalContext)]
    assert sorted(blocks) == sorted(names)
    assert all(isinstance(block, nl.GlobalContext) for block in blocks.values())


def test_a_mixture_of_blocks(tmp_path):
    network = nn.ModuleDict({"a": nl.NonLocalBlock(8, dims=2), "b": timm.layers.SEModule(8, rd_channels=2)})
    torch.save(network.state_dict(), tmp_path / "net.pth")
    blocks = nl.load_blocks(tmp_path / "net.pth")
    assert [type(blocks[name]).__name__ for name in ("a", "b")] == ["NonLocalBlock", "SqueezeExcitation"]


def test_a_broken_block_is_named(tmp_path):
    state = owners_block("GCNet, add").state_dict()
    state["channel_add_conv.1.weight"] = state["channel_add_conv.1.weight"][:3]
    torch.save({f"gc.{name}": tensor for name, tensor in state.items()}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"block gc .GCNet and mmcv.: add\.norm\.weight \(3,\)"):
        nl.load_blocks(tmp_path / "net.pth")


def test_mlps_of_transformers_are_none(tmp_path):
    torch.save({"mlp.fc1.weight": torch.ones(2, 8), "mlp.fc2.weight": torch.ones(8, 2)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="no non-local block"):
        nl.load_blocks(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("name", "layout", "stem"),
    [
        ("seresnet50", "image", {"stem": "slow"}),
        ("seresnet101", "image", {"stem": "slow"}),
        ("legacy_seresnet50", "senet", {}),
        ("legacy_seresnet101", "senet", {}),
    ],
)
def test_networks_there_and_back(name, layout, stem, tmp_path: Path):
    theirs = timm.create_model(name, num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    ours = nl.load_model(tmp_path / "net.pth", **stem).eval()
    x = torch.randn(1, 3, 71, 64)  # odd, so that pools which round up differ
    with torch.no_grad():
        torch.testing.assert_close(ours(x.unsqueeze(2)), theirs(x), rtol=1e-4, atol=1e-4)
        for parameter in ours.parameters():
            parameter.mul_(1.01)
        back = timm.create_model(name, num_classes=5).eval()
        shapes = {key: tensor.shape for key, tensor in back.state_dict().items()}
        state = {
            there: tensor.reshape(shapes[there])
            for key, tensor in ours.state_dict().items()
            if (there := LAYOUTS[layout].to_theirs(key)) is not None
        }
        back.load_state_dict(state)  # all of them: strict
        torch.testing.assert_close(back(x), ours(x.unsqueeze(2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biases", [True, False])
def test_a_timm_network_gives_its_logits(tmp_path: Path, biases: bool):
    theirs = timm.create_model("seresnet50", num_classes=7).eval()
    state = theirs.state_dict()
    if not biases:  # as moskomule's: other names, matrices, no biases
        for name, tensor in list(state.items()):
            if ".se.fc" in name and name.endswith(".bias"):
                del state[name]
                theirs.get_parameter(name).data.zero_()
            elif ".se.fc" in name:
                moved = name.replace("fc1", "fc.0").replace("fc2", "fc.2")
                state[moved] = state.pop(name).flatten(1)
                del tensor
    torch.save(state, tmp_path / "net.pth")
    ours = nl.load_model(tmp_path / "net.pth", stem="slow").eval()
    assert ours.spec.se_reduction == 16
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x.unsqueeze(2)), theirs(x), rtol=1e-4, atol=1e-4)
