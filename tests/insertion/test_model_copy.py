"""Insertion beside what cannot be copied, and without a trace in the owner's hooks."""

from __future__ import annotations

import functools
import io
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nonlocal_nn as nl
from nonlocal_nn.insertion.model_copy import model_copy


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))


class _Holds(nn.Module):
    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.body, self.thing = _net(), thing
        self.parts = [self.body[0], self.body[3]]
        self.act: Callable[[Tensor], Tensor] = self._act
        self.scale = functools.partial(torch.mul, torch.ones(1))

    def _act(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.act(self.body(x)))


@pytest.mark.parametrize(
    "make",
    [threading.Lock, io.StringIO, lambda: (i for i in range(3)), threading.Event, Path("/dev/null").open],
)
@pytest.mark.parametrize("example", [None, torch.zeros(1, 3, 32, 32)])
def test_things_that_cannot_be_copied(make: Callable[[], Any], example: Tensor | None) -> None:
    model = _Holds(make())
    x = torch.randn(2, 3, 16, 16)
    before = model.eval()(x)
    nl.insert_blocks(model, after=["body.2"], example_input=example)
    assert torch.equal(model(x), before)


def test_hooks_of_the_owner_see_nothing() -> None:
    model, seen = _net(), []
    for layer in model.modules():
        layer.register_forward_hook(lambda *call: seen.append(call))
        layer.register_forward_pre_hook(lambda *call: seen.append(call))
    model[1].register_forward_hook(lambda _, __, y: y.detach().numpy() and None)
    tracked = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    nl.insert_blocks(model, after=["2"], example_input=torch.zeros(1, 3, 32, 32))
    assert seen == []
    assert model.training
    for name, tensor in tracked.items():
        assert torch.equal(model.state_dict()[name], tensor)
    model[1]._forward_hooks.clear()
    model(torch.zeros(1, 3, 16, 16))
    assert seen  # they are still there


def test_kept_activations_do_not_matter() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.features = _net(), []

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.body:
                x = layer(x)
                self.features.append(x)
            return x

    model = Remembers()
    model(torch.zeros(1, 3, 16, 16))
    nl.insert_blocks(model, after=["body.2"])
    assert len(model.features) == 4  # none of them ours


def test_scripted_and_compiled_parts_elsewhere(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    for part in (torch.jit.script(Twice()), torch.compile(Twice()), nn.DataParallel(Twice())):
        model = nn.Sequential(part, _net()).eval()
        nl.insert_blocks(model, after=["1.2"])
        assert isinstance(model[1][2].nonlocal_block, nl.NonLocalBlock)
    with pytest.raises(ValueError, match="part '0' is wrapped in OptimizedModule"):
        nl.insert_blocks(nn.Sequential(torch.compile(_net()), nn.ReLU()), after=["0._orig_mod.2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = nn.Sequential(torch.jit.script(_net()))
    with pytest.raises(ValueError, match="TorchScript"):
        nl.insert_blocks(scripted, after=["0.2"])


def test_a_network_that_holds_itself() -> None:
    model = _Holds(None)
    model.thing = [model, {"again": model.body}]
    twin = model_copy(model, lambda tensor: tensor.detach())
    assert twin.thing[0] is twin  # type: ignore[index]
    assert twin.thing[1]["again"] is twin.body  # type: ignore[index]
    assert twin.parts[0] is twin.body[0]  # type: ignore[index]
    assert twin.act.__self__ is twin  # type: ignore[union-attr]


class _ChannelsLast(nn.Module):
    """As Swin: channels last inside, one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.stage = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24))
        self.plain = nn.Identity()
        self.norm = nn.BatchNorm2d(24)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 56
        x = self.plain(self.stage(self.patches(x).permute(0, 2, 3, 1)))
        return self.norm(x.permute(0, 3, 1, 2)).mean((2, 3))


@pytest.mark.parametrize("layer", ["stage", "stage.0", "plain"])
def test_where_channels_come_last_a_block_is_refused(layer: str) -> None:
    with pytest.raises(ValueError, match=r"nothing tells which axis is channels.*say so with dims=2"):
        nl.insert_blocks(_ChannelsLast(), after=[layer], example_input=torch.zeros(1, 3, 56, 56))


def test_a_layer_whose_parts_tell_takes_a_block() -> None:
    model = _ChannelsLast()
    for layer, channels in (("norm", 24), ("patches", 24)):
        nl.insert_blocks(model, after=[layer], example_input=torch.zeros(1, 3, 56, 56))
        assert model.get_submodule(layer).nonlocal_block.channels == channels
    model = nl.insert_blocks(
        _ChannelsLast(), after=["plain"], dims=2, example_input=torch.zeros(1, 3, 56, 56)
    )
    assert model.plain.nonlocal_block.channels == 14  # as it was told
