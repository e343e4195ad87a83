"""Small networks in the public layouts, written and run without our code: names, files, outputs.

Each project's own forward pass is written out plainly on its own tensors, so that what a loader should give
is known from the layout alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Triple = tuple[int, int, int]

WIDTH, CLASSES, STAGES = 4, 5, (1, 2, 1)


@dataclass(frozen=True)
class Plain:
    """One layout's way with names and pools. Stages count from 0, `part` is 1, 2, 3 or 0 (the shortcut)."""

    conv: Callable[[int, int, int], str]
    norm: Callable[[int, int, int], str]
    stem: tuple[str, str]
    head: str
    block: Callable[[int, int], str]
    roles: dict[str, str]
    conv1_stride: Triple
    pool1: tuple[Triple, Triple, Triple]
    pool2: bool = True
    pool_input: bool = True
    scale: bool = True
    conv_suffix: tuple[str, str] = (".weight", ".bias")
    norm_suffix: tuple[str, str, str, str] = (".weight", ".bias", ".running_mean", ".running_var")
    output_bias: bool = True


def letters(part: int) -> str:
    return " abc"[part]


PYSLOWFAST = Plain(
    conv=lambda s, b, p: f"s{s + 2}.pathway0_res{b}." + ("branch1" if p == 0 else f"branch2.{letters(p)}"),
    norm=lambda s, b, p: (
        f"s{s + 2}.pathway0_res{b}." + ("branch1_bn" if p == 0 else f"branch2.{letters(p)}_bn")
    ),
    stem=("s1.pathway0_stem.conv", "s1.pathway0_stem.bn"),
    head="head.projection",
    block=lambda s, b: f"s{s + 2}.pathway0_nonlocal{b}.",
    roles={"theta": "conv_theta", "phi": "conv_phi", "g": "conv_g", "out": "conv_out", "norm": "bn"},
    conv1_stride=(1, 2, 2),
    pool1=((1, 3, 3), (1, 2, 2), (0, 1, 1)),
)
CAFFE2 = Plain(
    conv=lambda s, b, p: f"res{s + 2}_{b}_" + ("branch1" if p == 0 else f"branch2{letters(p)}"),
    norm=lambda s, b, p: f"res{s + 2}_{b}_" + ("branch1_bn" if p == 0 else f"branch2{letters(p)}_bn"),
    stem=("conv1", "res_conv1_bn"),
    head="pred",
    block=lambda s, b: f"nonlocal_conv{s + 2}_{b}_",
    roles={"theta": "theta", "phi": "phi", "g": "g", "out": "out", "norm": "bn"},
    conv1_stride=(1, 2, 2),
    pool1=((1, 3, 3), (1, 2, 2), (0, 0, 0)),
    conv_suffix=("_w", "_b"),
    norm_suffix=("_s", "_b", "_rm", "_riv"),
)
MMACTION2 = Plain(
    conv=lambda s, b, p: f"backbone.layer{s + 1}.{b}." + ("downsample.conv" if p == 0 else f"conv{p}.conv"),
    norm=lambda s, b, p: f"backbone.layer{s + 1}.{b}." + ("downsample.bn" if p == 0 else f"conv{p}.bn"),
    stem=("backbone.conv1.conv", "backbone.conv1.bn"),
    head="cls_head.fc_cls",
    block=lambda s, b: f"backbone.layer{s + 1}.{b}.non_local_block.",
    roles={
        "theta": "theta.conv",
        "phi": "phi.0.conv",
        "g": "g.0.conv",
        "out": "conv_out.conv",
        "norm": "conv_out.bn",
        "w_f": "concat_project.conv",
    },
    conv1_stride=(2, 2, 2),
    pool1=((1, 3, 3), (2, 2, 2), (0, 1, 1)),
    pool_input=False,
    scale=False,
    output_bias=False,
)
RESNET3D = Plain(
    conv=lambda s, b, p: f"layer{s + 1}.{b}." + ("downsample.0" if p == 0 else f"conv{p}"),
    norm=lambda s, b, p: f"layer{s + 1}.{b}." + ("downsample.1" if p == 0 else f"bn{p}"),
    stem=("conv1", "bn1"),
    head="fc",
    block=lambda s, b: f"layer{s + 1}.{b}.nl.",
    roles={"theta": "theta", "phi": "phi", "g": "g", "out": "out", "norm": "bn"},
    conv1_stride=(2, 2, 2),
    pool1=((2, 3, 3), (2, 2, 2), (0, 0, 0)),
)


@dataclass(frozen=True)
class Kind:
    """Which network of a layout: where blocks are and what they compute, which kernels span three frames."""

    blocks: dict[int, tuple[int, ...]] = field(default_factory=lambda: {1: (1,)})
    pairwise: str = "embedded_gaussian"
    inflated: dict[int, tuple[int, ...]] = field(default_factory=lambda: {0: (0,), 1: (0,), 2: ()})
    conv1_frames: int = 5
    folded: bool = False
    groups: dict[int, int] = field(default_factory=dict)
    pooled: bool = True
    normed: bool = True
    classes: int = CLASSES


def make_state(plain: Plain, kind: Kind, seed: int = 0) -> State:
    """Random weights under the layout's names."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def conv(name: str, out: int, into: int, kernel: Triple, *, bias: bool = False) -> None:
        fan_in = into * kernel[0] * kernel[1] * kernel[2]
        state[name + plain.conv_suffix[0]] = random(out, into, *kernel) * (2 / fan_in) ** 0.5
        if bias:
            state[name + plain.conv_suffix[1]] = random(out) * 0.1

    def norm(name: str, channels: int) -> None:
        values = [random(channels) * 0.2 + 1, random(channels) * 0.1, random(channels) * 0.1]
        values.append(random(channels).abs() + 0.5)
        for suffix, value in list(zip(plain.norm_suffix, values, strict=True))[: 2 if kind.folded else 4]:
            state[name + suffix] = value
        if plain.norm_suffix[0] == ".weight":
            state[name + ".num_batches_tracked"] = torch.tensor(7)

    conv(plain.stem[0], WIDTH, 3, (kind.conv1_frames, 7, 7))
    norm(plain.stem[1], WIDTH)
    channels = WIDTH
    for s, count in enumerate(STAGES):
        inner = WIDTH * 2**s
        for b in range(count):
            if b == 0:
                conv(plain.conv(s, b, 0), 4 * inner, channels, (1, 1, 1))
                norm(plain.norm(s, b, 0), 4 * inner)
            conv(plain.conv(s, b, 1), inner, channels, (3 if b in kind.inflated[s] else 1, 1, 1))
            conv(plain.conv(s, b, 2), inner, inner, (1, 3, 3))
            conv(plain.conv(s, b, 3), 4 * inner, inner, (1, 1, 1))
            for part, size in zip((1, 2, 3), (inner, inner, 4 * inner), strict=True):
                norm(plain.norm(s, b, part), size)
            channels = 4 * inner
            if b in kind.blocks.get(s, ()):
                start, roles = plain.block(s, b), role_names(plain, kind)
                for role in ("theta", "phi", "g"):
                    if role == "g" or kind.pairwise != "gaussian":
                        conv(start + roles[role], channels // 2, channels, (1, 1, 1), bias=True)
                conv(
                    start + roles["out"],
                    channels,
                    channels // 2,
                    (1, 1, 1),
                    bias=plain.output_bias or not kind.normed,
                )
                if kind.normed:
                    norm(start + roles["norm"], channels)
                if kind.pairwise == "concatenation":
                    state[start + roles["w_f"] + ".weight"] = random(1, channels, 1, 1)
    state[plain.head + plain.conv_suffix[0]] = random(kind.classes, channels)
    state[plain.head + plain.conv_suffix[1]] = random(kind.classes)
    return state


def role_names(plain: Plain, kind: Kind) -> dict[str, str]:
    return {role: name if kind.pooled else name.replace(".0.", ".") for role, name in plain.roles.items()}


@torch.no_grad()
def run(state: State, plain: Plain, kind: Kind, x: Tensor) -> Tensor:
    """Logits as the layout's own project computes them."""

    def conv(x: Tensor, name: str, stride: Triple = (1, 1, 1)) -> Tensor:
        weight = state[name + plain.conv_suffix[0]]
        bias = state.get(name + plain.conv_suffix[1])
        padding = tuple(size // 2 for size in weight.shape[2:])
        return F.conv3d(x, weight, bias, stride=stride, padding=padding)

    def norm(x: Tensor, name: str) -> Tensor:
        shape = (1, -1, 1, 1, 1)
        values = [state[name + suffix].view(shape) for suffix in plain.norm_suffix if name + suffix in state]
        if kind.folded:
            return x * values[0] + values[1]
        return (x - values[2]) / (values[3] + 1e-5).sqrt() * values[0] + values[1]

    def block(x: Tensor, start: str, groups: int) -> Tensor:
        if groups > 1:  # frames into groups, groups into the batch
            parts = [block(part, start, 1) for part in x.chunk(groups, dim=2)]
            return torch.cat(parts, dim=2)
        roles = role_names(plain, kind)

        def pool(y: Tensor) -> Tensor:
            return F.max_pool3d(y, (1, 2, 2)) if kind.pooled else y

        keys = pool(x) if plain.pool_input else x
        after = pool if not plain.pool_input else lambda y: y
        g = after(conv(keys, start + roles["g"])).flatten(2)
        if kind.pairwise == "gaussian":
            theta, phi = x.flatten(2), after(x).flatten(2)
        else:
            theta = conv(x, start + roles["theta"]).flatten(2)
            phi = after(conv(keys, start + roles["phi"])).flatten(2)
        if kind.pairwise == "concatenation":
            w_f = state[start + roles["w_f"] + ".weight"].flatten()
            inner = theta.shape[1]
            pairs = torch.einsum("c,bci->bi", w_f[:inner], theta)[:, :, None]
            weights = F.relu(pairs + torch.einsum("c,bcj->bj", w_f[inner:], phi)[:, None]) / phi.shape[2]
        else:
            product = torch.einsum("bci,bcj->bij", theta, phi)
            if kind.pairwise == "dot_product":
                weights = product / phi.shape[2]
            else:
                weights = (product * (theta.shape[1] ** -0.5 if plain.scale else 1)).softmax(dim=2)
        y = torch.einsum("bij,bcj->bci", weights, g).reshape(x.shape[0], -1, *x.shape[2:])
        y = conv(y, start + roles["out"])
        return x + (norm(y, start + roles["norm"]) if kind.normed else y)

    x = F.relu(norm(conv(x, plain.stem[0], plain.conv1_stride), plain.stem[1]))
    x = F.max_pool3d(x, *plain.pool1)
    for s, count in enumerate(STAGES):
        for b in range(count):
            stride = (1, 2, 2) if s > 0 and b == 0 else (1, 1, 1)
            y = F.relu(norm(conv(x, plain.conv(s, b, 1)), plain.norm(s, b, 1)))
            y = F.relu(norm(conv(y, plain.conv(s, b, 2), stride), plain.norm(s, b, 2)))
            y = norm(conv(y, plain.conv(s, b, 3)), plain.norm(s, b, 3))
            x = F.relu(y + (norm(conv(x, plain.conv(s, b, 0), stride), plain.norm(s, b, 0)) if b == 0 else x))
            if b in kind.blocks.get(s, ()):
                x = block(x, plain.block(s, b), kind.groups.get(s, 1))
        if s == 0 and plain.pool2:
            x = F.max_pool3d(x, (2, 1, 1))
    return (
        x.mean(dim=(2, 3, 4)) @ state[plain.head + plain.conv_suffix[0]].T
        + state[plain.head + plain.conv_suffix[1]]
    )


def python2_pickle(values: dict[str, Tensor], *, key: str | None = "blobs") -> bytes:
    """As Python 2 wrote it: protocol 2, byte strings. Written out by hand, opcode by opcode."""

    def text(raw: bytes) -> bytes:
        return b"U" + bytes([len(raw)]) + raw

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    out = b"\x80\x02" + (b"}" + text(key.encode()) if key else b"") + b"}("
    for name, tensor in values.items():
        array = tensor.numpy()
        raw = array.tobytes()
        kind = (b"f" if array.dtype.kind == "f" else b"i") + str(array.dtype.itemsize).encode()
        out += text(name.encode()) + b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n"
        out += number(0) + b"\x85" + text(b"b") + b"\x87R"
        out += b"(" + number(1) + b"(" + b"".join(number(size) for size in array.shape) + b"t"
        out += b"cnumpy\ndtype\n" + text(kind) + b"\x89\x88\x87R(" + number(3) + text(b"<") + b"NNN"
        out += number(-1) + number(-1) + number(0) + b"tb\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    return out + b"u" + (b"s" if key else b"") + b"."


def write(state: State, plain: Plain, kind: Kind, path: Path) -> Path:
    """The file its project would write, with what else such files hold."""
    if plain is CAFFE2:
        extra = {} if kind.folded else {"conv1_w_momentum": state["conv1_w"], "model_iter": torch.tensor([3])}
        path.write_bytes(python2_pickle(state | extra, key=None if kind.folded else "blobs"))
        assert len(pickle.loads(path.read_bytes(), encoding="latin1"))
    elif plain is PYSLOWFAST:
        torch.save({"epoch": 3, "model_state": state, "cfg": "TRAIN: {}"}, path)
    elif plain is MMACTION2:
        torch.save({"meta": {"epoch": 3}, "state_dict": state}, path)
    else:
        torch.save(state, path)
    return path
