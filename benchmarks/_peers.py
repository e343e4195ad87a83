"""Other projects' blocks, loaded from a checkout of theirs, with a copy of our block's weights.

Only the one file with the block is loaded. What it imports from packages that are not here gets a stand-in
that does what the block asks of it, no more.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from _cases import Case
from nonlocal_nn import NonLocalBlock

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class Peer:
    """A project: where its block is, what the block can do, and how it is built with given weights."""

    name: str
    file: str  # in the checkout; {function} is put in
    functions: tuple[str, ...]
    build: Callable[[ModuleType, NonLocalBlock], nn.Module]
    dims: tuple[int, ...] = (1, 2, 3)
    subsample_at: str = "embedding"

    def why_not(self, case: Case) -> str:
        """Why it cannot take part; "" where it can."""
        if case.function not in self.functions:
            return f"has no {case.function}"
        if case.dims not in self.dims:
            return f"has no {case.dims}-dimensional block"
        return ""

    def module(self, checkout: Path, block: NonLocalBlock) -> nn.Module:
        """Its block with the weights of ours, in the same mode, type and place."""
        source = load_file(checkout / self.file.format(function=block.pairwise))
        peer = self.build(source, block)
        weight = block.g.weight
        peer.to(weight.device, weight.dtype).train(block.training)
        return peer.requires_grad_(weight.requires_grad)


def find(checkout: Path) -> Peer:
    """Which project a checkout is of.

    Raises:
        ValueError: where it is none of those known here.
    """
    for peer in PEERS:
        if (checkout / peer.file.format(function="dot_product")).is_file():
            return peer
    known = ", ".join(f"{peer.name} ({peer.file})" for peer in PEERS)
    raise ValueError(f"--peer {checkout}: not a checkout of a project known here, which are {known}")


def load_file(path: Path) -> ModuleType:
    """Run the one file as a module of a package that has stand-ins for what is missing."""
    package = "benchmark_peer"
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    with stand_ins(package):
        spec.loader.exec_module(module)
    return module


@contextmanager
def stand_ins(package: str) -> Iterator[None]:
    """mmengine's registry and initialisers, and mmcv's ConvModule, while a file is loaded."""

    class Registry:
        def register_module(self) -> Callable[[type], type]:
            return lambda registered: registered

    def leave_alone(*_: Any, **__: Any) -> None:
        """Initial weights are overwritten by ours."""

    made = {
        package: {"__path__": []},
        f"{package}.conv_module": {"ConvModule": ConvNormActivation},
        "mmengine": {"__path__": []},
        "mmengine.model": {"constant_init": leave_alone, "normal_init": leave_alone},
        "mmengine.registry": {"MODELS": Registry()},
    }
    before = {name: sys.modules.get(name) for name in made}
    try:
        for name, content in made.items():
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(content)
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class ConvNormActivation(nn.Module):
    """What mmcv's block uses of its ConvModule: a convolution, then batch norm and ReLU where asked for."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        conv_cfg: dict[str, Any] | None = None,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        dims = int(conv_cfg["type"].removeprefix("Conv").removesuffix("d")) if conv_cfg else 2
        self.norm_cfg = norm_cfg
        self.conv = CONV[dims](in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.norm = BATCH_NORM[dims](out_channels) if norm_cfg else None
        self.activate = nn.ReLU(inplace=True) if act_cfg else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, norm, activation."""
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.activate is None else self.activate(x)


@torch.no_grad()
def copy_into(target: nn.Module, source: nn.Module | None) -> None:
    """Weights and statistics of a convolution or a norm; the first module of a Sequential is meant."""
    assert source is not None
    if isinstance(target, nn.Sequential):
        target = target[0]
    if isinstance(target, ConvNormActivation):
        target = target.conv
    target.load_state_dict(source.state_dict())


@torch.no_grad()
def copy_scores(projection: nn.Module, w_f: Tensor | None) -> None:
    """Concatenation's vector w_f into a 1x1 convolution of one output."""
    assert w_f is not None
    conv = projection.conv if isinstance(projection, ConvNormActivation) else projection[0]
    conv.weight.copy_(w_f.view_as(conv.weight))


def build_alexhex7(source: ModuleType, block: NonLocalBlock) -> nn.Module:
    """AlexHex7/Non-local_pytorch: one file and three classes a function."""
    made = getattr(source, f"NONLocalBlock{block.dims}D")
    peer: nn.Module = made(block.channels, block.inner_channels, sub_sample=block.subsample, bn_layer=True)
    copy_embeddings(peer, block, ("theta", "phi", "g"))
    copy_into(peer.W[0], block.W_z)
    copy_into(peer.W[1], block.norm)
    if block.w_f is not None:
        copy_scores(peer.concat_project, block.w_f)
    return peer


def build_mmcv(source: ModuleType, block: NonLocalBlock) -> nn.Module:
    """open-mmlab/mmcv: NonLocal1d, 2d and 3d with a mode."""
    made = getattr(source, f"NonLocal{block.dims}d")
    peer: nn.Module = made(
        block.channels,
        reduction=block.channels // block.inner_channels,
        use_scale=False,
        mode=block.pairwise,
        sub_sample=block.subsample,
        norm_cfg={"type": f"BN{block.dims}d"},
    )
    copy_embeddings(peer, block, ("theta", "phi", "g"))
    copy_into(peer.conv_out.conv, block.W_z)
    copy_into(peer.conv_out.norm, block.norm)
    if block.w_f is not None:
        copy_scores(peer.concat_project, block.w_f)
    return peer


def copy_embeddings(peer: nn.Module, block: NonLocalBlock, names: tuple[str, ...]) -> None:
    """theta, phi and g; gaussian has g alone (a phi that it does have is not used)."""
    for name in names:
        if getattr(block, name) is not None:
            copy_into(getattr(peer, name), getattr(block, name))


def build_slowfast(source: ModuleType, block: NonLocalBlock) -> nn.Module:
    """facebookresearch/SlowFast: 3-D, two functions, keys pooled before the embeddings."""
    softmax = block.pairwise == "embedded_gaussian"
    peer: nn.Module = source.Nonlocal(
        block.channels,
        block.inner_channels,
        pool_size=[1, 2, 2] if block.subsample else None,
        instantiation="softmax" if softmax else "dot_product",
    )
    for name in ("theta", "phi", "g"):
        copy_into(getattr(peer, f"conv_{name}"), getattr(block, name))
    if softmax:  # it multiplies by inner ** -0.5 whatever one asks for: theta undoes that
        with torch.no_grad():
            peer.conv_theta.weight.mul_(block.inner_channels**0.5)
            peer.conv_theta.bias.mul_(block.inner_channels**0.5)
    copy_into(peer.conv_out, block.W_z)
    copy_into(peer.bn, block.norm)
    return peer


EVERY = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
PEERS = (
    Peer("Non-local_pytorch", "lib/non_local_{function}.py", EVERY, build_alexhex7),
    Peer("mmcv", "mmcv/cnn/bricks/non_local.py", EVERY, build_mmcv),
    Peer(
        "SlowFast",
        "slowfast/models/nonlocal_helper.py",
        ("embedded_gaussian", "dot_product"),
        build_slowfast,
        dims=(3,),
        subsample_at="input",
    ),
)
