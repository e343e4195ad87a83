"""Our own blocks in a state dict: their options come back, or what is assumed is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nonlocal_nn as nl

OPTIONS: list[dict[str, Any]] = [
    {},
    {"subsample": False},
    {"subsample_at": "input"},
    {"scale": True},
    {"pairwise": "dot_product"},
    {"pairwise": "gaussian", "scale": True},
    {"pairwise": "concatenation", "inner_channels": 3},
    {"norm": None},
    {"norm": "frozen"},
    {"dims": 3, "span": "space"},
    {"dims": 3, "span": "time"},
    {"dims": 3, "temporal_groups": 2},
]


class _Net(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(3, 3)
        self.nl = nl.NonLocalBlock(6, **{"dims": 2, **options})
        if self.nl.norm is not None:
            self.nl.norm.eps = 1e-3  # type: ignore[assignment]
        for parameter in (*self.parameters(), *(b for b in self.buffers() if b.is_floating_point())):
            nn.init.uniform_(parameter.data, 0.2, 0.8)
        self.eval()


def _x(block: nl.NonLocalBlock) -> Tensor:
    return torch.randn(2, 6, *(4, 6, 8)[3 - block.dims :])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("wrapped", ["plain", "DataParallel", "compiled", "in a checkpoint"])
def test_options_travel_in_a_state_dict(tmp_path: Path, options: dict[str, Any], wrapped: str) -> None:
    net = _Net(**options)
    saved: Any = net.state_dict()
    if wrapped == "DataParallel":
        saved = nn.DataParallel(net).state_dict()
    elif wrapped == "compiled":
        saved = torch.compile(net).state_dict()
    elif wrapped == "in a checkpoint":
        saved = {"epoch": 3, "model": {"state_dict": saved}, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(saved, tmp_path / "net.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (name,) = blocks = nl.load_blocks(tmp_path / "net.pth")
    assert name == "nl"
    x = _x(net.nl)
    torch.testing.assert_close(blocks["nl"](x), net.nl(x), rtol=0, atol=0)
    torch.save(net.nl.state_dict(), tmp_path / "block.pth")
    torch.testing.assert_close(nl.load_model(tmp_path / "block.pth")(x), net.nl(x), rtol=0, atol=0)


def test_a_state_dict_has_the_names_it_had(tmp_path: Path) -> None:
    """Old files load strictly into new blocks, and new ones anywhere: the options are no tensor."""
    block = nl.NonLocalBlock(6, dims=2)
    state = block.state_dict()
    assert not [name for name in state if "extra" in name or not isinstance(state[name], Tensor)]
    old = dict(state)  # without metadata, as other programs write it
    assert not any(nl.NonLocalBlock(6, dims=2).load_state_dict(old, strict=True))
    torch.save(state, tmp_path / "a.pth")
    again = torch.load(tmp_path / "a.pth", weights_only=True)
    assert not any(nl.NonLocalBlock(6, dims=2).load_state_dict(again, strict=True))


def _as_safetensors(net: nn.Module, path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in net.state_dict().items()}, path)


def _as_a_new_dictionary(net: nn.Module, path: Path) -> None:
    torch.save(dict(net.state_dict()), path)


@pytest.mark.parametrize("write", [_as_safetensors, _as_a_new_dictionary])
@pytest.mark.parametrize(
    "options",
    [
        {"subsample": False},
        {"subsample_at": "input", "scale": True},
        {"pairwise": "dot_product"},
        {"dims": 3, "span": "space"},
    ],
)
def test_where_options_are_lost_it_is_said_and_hints_help(
    tmp_path: Path, write: Callable[[nn.Module, Path], None], options: dict[str, Any]
) -> None:
    net = _Net(**options)
    write(net, tmp_path / "net.bin")
    with pytest.warns(UserWarning, match=r"does not say the options of its blocks \('nl'\).*subsample_at"):
        nl.load_blocks(tmp_path / "net.bin", scale=False)
    hints = {name: value for name, value in options.items() if name != "dims"}
    with pytest.warns(UserWarning, match="temporal_groups=1"):
        block = nl.load_blocks(tmp_path / "net.bin", **hints)["nl"]
    assert block.norm is not None
    block.norm.eps = 1e-3  # type: ignore[assignment]
    x = _x(net.nl)
    torch.testing.assert_close(block(x), net.nl(x), rtol=1e-5, atol=1e-5)


def test_a_hint_that_contradicts_the_options_is_refused(tmp_path: Path) -> None:
    torch.save(_Net(pairwise="dot_product").state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"hint pairwise='gaussian' contradicts .*'dot_product'"):
        nl.load_blocks(tmp_path / "net.pth", pairwise="gaussian")


class _Tea(nn.Module):
    """The names and the formula of tea1528's block, written anew."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.g = nn.Conv2d(6, 3, 1)
        self.W_z = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
        if mode != "gaussian":
            self.theta, self.phi = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)
        if mode == "concatenation":
            self.W_f = nn.Sequential(nn.Conv2d(6, 1, 1), nn.ReLU())
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, x: Tensor) -> Tensor:
        g = self.g(x).flatten(2).mT
        theta, phi = (x, x) if self.mode == "gaussian" else (self.theta(x), self.phi(x))
        theta, phi = theta.flatten(2), phi.flatten(2)
        if self.mode == "concatenation":
            count = theta.shape[2]
            pairs = torch.cat(
                [theta[..., :, None].expand(-1, -1, -1, count), phi[..., None, :].expand(-1, -1, count, -1)],
                dim=1,
            )
            f = self.W_f(pairs)[:, 0] / count
        else:
            f = theta.mT @ phi
            f = f / f.shape[2] if self.mode == "dot_product" else f.softmax(dim=2)
        return self.W_z((f @ g).mT.reshape(x.shape[0], 3, *x.shape[2:])) + x


@pytest.mark.parametrize("mode", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("key", ["net", "params", "params_ema", "state_dict_ema", "network"])
def test_tea1528s_block_in_usual_wrappings(tmp_path: Path, mode: str, key: str) -> None:
    torch.manual_seed(1)
    theirs = _Tea(mode).eval()
    torch.save({key: nn.ModuleDict({"head": nn.Linear(2, 2), "nl": theirs}).state_dict()}, tmp_path / "t.pth")
    hint = {"pairwise": mode} if mode == "dot_product" else {}
    block = nl.load_blocks(tmp_path / "t.pth", **hint)["nl"]
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(block(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_several_sets_of_weights_are_said(tmp_path: Path) -> None:
    net, averaged = _Net(), _Net(pairwise="dot_product")
    torch.save({"params_ema": averaged.state_dict(), "params": net.state_dict()}, tmp_path / "t.pth")
    with pytest.warns(UserWarning, match="several sets of weights, params, params_ema; 'params' is read"):
        assert nl.load_blocks(tmp_path / "t.pth")["nl"].pairwise == "embedded_gaussian"


def test_an_owners_own_prefix_is_taken_off_a_network(tmp_path: Path) -> None:
    theirs = {f"net.{name}": tensor for name, tensor in _Tea("gaussian").state_dict().items()}
    torch.save({"state_dict": theirs}, tmp_path / "lightning.ckpt")
    assert nl.load_model(tmp_path / "lightning.ckpt").pairwise == "gaussian"  # type: ignore[union-attr]
