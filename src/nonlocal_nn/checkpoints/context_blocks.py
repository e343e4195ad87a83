"""Squeeze-and-excitation and global-context blocks in public code, wherever in a network they stand.

>>> import torch
>>> state = {"layer1.se.fc1.weight": torch.ones(2, 8, 1, 1), "layer1.se.fc2.weight": torch.ones(8, 2, 1, 1)}
>>> {prefix: (found.owner, found.kind) for prefix, found in find_context_blocks(state).items()}
{'layer1.se': ('timm and torchvision', 'squeeze_excitation')}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from nonlocal_nn.blocks.global_context import GlobalContext
from nonlocal_nn.blocks.squeeze_excitation import Gate, SqueezeExcitation

if TYPE_CHECKING:
    from torch import Tensor

ContextBlock = SqueezeExcitation | GlobalContext
Kind = Literal["squeeze_excitation", "global_context"]


@dataclass(frozen=True)
class ContextLayout:
    """Names of a block's parts in one layout: ours -> theirs."""

    owner: str
    kind: Kind
    modules: Mapping[str, str]
    convs: bool = True
    """Layers are 1x1 convolutions; such names with matrices are other things."""
    norm_eps: float = 1e-5


_SE: Kind = "squeeze_excitation"
_GC: Kind = "global_context"

LAYOUTS = (
    ContextLayout("timm and torchvision", _SE, {"W_1": "fc1", "W_2": "fc2"}),
    ContextLayout("timm's EfficientNet", _SE, {"W_1": "conv_reduce", "W_2": "conv_expand"}),
    ContextLayout("moskomule's senet.pytorch", _SE, {"W_1": "fc.0", "W_2": "fc.2"}, convs=False),
    ContextLayout(
        "GCNet and mmcv",
        _GC,
        {
            "w_k": "conv_mask",
            "add.W_v1": "channel_add_conv.0",
            "add.norm": "channel_add_conv.1",
            "add.W_v2": "channel_add_conv.3",
            "scale.W_v1": "channel_mul_conv.0",
            "scale.norm": "channel_mul_conv.1",
            "scale.W_v2": "channel_mul_conv.3",
        },
    ),
    ContextLayout(
        "timm's GlobalContext",
        _GC,
        {
            "w_k": "conv_attn",
            "add.W_v1": "mlp_add.fc1",
            "add.norm": "mlp_add.norm",
            "add.W_v2": "mlp_add.fc2",
            "scale.W_v1": "mlp_scale.fc1",
            "scale.norm": "mlp_scale.norm",
            "scale.W_v2": "mlp_scale.fc2",
        },
        norm_eps=1e-6,
    ),
)

# The last layer of each kind, by which a block is found.
_ENDS: dict[str, tuple[str, ...]] = {_SE: ("W_2",), _GC: ("add.W_v2", "scale.W_v2")}


@dataclass(frozen=True)
class FoundContextBlock:
    """A block in a state dict: its tensors under our names."""

    layout: ContextLayout
    tensors: dict[str, Tensor]
    names: tuple[str, ...]
    """Of its tensors in the file."""

    @property
    def owner(self) -> str:
        """Whose names they are."""
        return self.layout.owner

    @property
    def kind(self) -> Kind:
        """What it is."""
        return self.layout.kind


def find_context_blocks(state: Mapping[str, Tensor]) -> dict[str, FoundContextBlock]:
    """Every such block in a state dict, by the name of its module ("" for a block saved by itself)."""
    found: dict[str, FoundContextBlock] = {}
    for layout in LAYOUTS:
        for end in (role for role in _ENDS[layout.kind] if role in layout.modules):
            there = f"{layout.modules[end]}.weight"
            for name in state:
                start = name.removesuffix(there)  # with its dot
                prefix = start.removesuffix(".")
                if start == name or (start and start == prefix) or prefix in found:
                    continue
                block = _found(state, layout, start)
                if block is not None:
                    found[prefix] = block
    inside = [prefix for prefix in found if any(prefix.startswith(f"{other}.") for other in found if other)]
    return {prefix: found[prefix] for prefix in found if prefix not in inside}


def _found(state: Mapping[str, Tensor], layout: ContextLayout, start: str) -> FoundContextBlock | None:
    tensors: dict[str, Tensor] = {}
    names: list[str] = []
    for ours, theirs in layout.modules.items():
        for tensor in ("weight", "bias"):
            name = f"{start}{theirs}.{tensor}"
            if name in state:
                names.append(name)
                tensors[f"{ours}.{tensor}"] = state[name]
    pairs = (
        [("W_1", "W_2")] if layout.kind == _SE else [("add.W_v1", "add.W_v2"), ("scale.W_v1", "scale.W_v2")]
    )
    fitting = [_fits(tensors, layout, *pair) for pair in pairs if f"{pair[1]}.weight" in tensors]
    return FoundContextBlock(layout, tensors, tuple(names)) if fitting and all(fitting) else None


def _fits(tensors: Mapping[str, Tensor], layout: ContextLayout, first: str, second: str) -> bool:
    """Whether the two layers are channels -> fewer -> channels."""
    one, two = tensors.get(f"{first}.weight"), tensors[f"{second}.weight"]
    return (
        one is not None
        and one.dim() == two.dim()
        and (one.dim() > 2) == layout.convs
        and one.dim() >= 2
        and tuple(one.shape[:2]) == tuple(two.shape[:2])[::-1]
        and 0 < one.shape[0] < one.shape[1]
        and all(size == 1 for size in (*one.shape[2:], *two.shape[2:]))
    )


def build_context_block(found: FoundContextBlock, what: str, gate: Gate | None = None) -> ContextBlock:
    """The block with its weights, in eval mode.

    gate: no tensor tells it; None: the sigmoid, as nearly all have it.

    Raises:
        ValueError: a tensor of a shape that does not belong to the others.
    """
    tensors = {name: tensor for name, tensor in found.tensors.items() if name != "w_k.bias"}
    # A bias of the logits moves all of them alike, which the softmax does not see.
    layers = {name.replace("w_k.weight", "w_k"): _flat(name, tensor) for name, tensor in tensors.items()}
    block: ContextBlock
    if found.kind == _SE:
        hidden, channels = layers["W_1.weight"].shape
        block = SqueezeExcitation(channels, hidden=hidden, gate=gate or "sigmoid", bias="W_1.bias" in layers)
    else:
        ways: list[Literal["add", "scale"]] = []
        for way in ("scale", "add"):
            if f"{way}.W_v2.weight" in layers:
                ways.append(way)
        hidden, channels = layers[f"{ways[0]}.W_v1.weight"].shape
        block = GlobalContext(
            channels,
            hidden=hidden,
            pooling="softmax" if "w_k" in layers else "average",
            fuse=ways,
            norm="layer" if f"{ways[0]}.norm.weight" in layers else None,
            gate=gate or "sigmoid",
        )
        for part in block.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.eps = found.layout.norm_eps
    wanted = block.state_dict()
    wrong = [
        f"{name} {tuple(layers[name].shape) if name in layers else 'is missing'}"
        for name, tensor in wanted.items()
        if name not in layers or layers[name].shape != tensor.shape
    ]
    wrong += [f"{name} has no place" for name in layers if name not in wanted]
    if wrong:
        raise ValueError(f"{what} ({found.owner}): {', '.join(wrong)}")
    block.load_state_dict(layers)
    return block.to(next(iter(layers.values())).dtype).eval()


def _flat(name: str, tensor: Tensor) -> Tensor:
    """Matrices of 1x1 convolutions, vectors of norms over [c, 1, 1]."""
    vector = name == "w_k.weight" or ".norm." in name or name.endswith(".bias")
    return tensor.flatten() if vector else tensor.flatten(1)
