"""insert_blocks: any network, nothing changes until the blocks are trained, and errors say where to go."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import nonlocal_nn as nl
from nonlocal_nn.insertion.layer_outputs import layer_outputs
from tests.insertion.cifar_resnet import CifarResNet, cifar_images, trained_weights

IMAGE, VIDEO = (2, 3, 64, 64), (2, 3, 8, 32, 32)


class Parallel(nn.Module):
    """A user's network: branches in a ModuleDict, layers in a ModuleList, a layer given by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
        self.branches = nn.ModuleDict(
            {"left": nn.Conv2d(8, 4, 1), "right": nn.Sequential(nn.Conv2d(8, 4, 1))}
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        for layer in self.layers:
            x = x + self.act(layer(x))
        return torch.cat([self.branches["left"](x), self.branches["right"](x)], 1)


def segmentation() -> nn.Module:
    return torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3)


def timm_model(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return pytest.importorskip("timm").create_model(name, num_classes=5)

    return build


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str], tuple[int, ...]]] = {
    "resnet18": (torchvision.models.resnet18, ["layer2.1", "layer3"], IMAGE),
    "resnet50": (torchvision.models.resnet50, ["layer2.1", "layer3.4"], IMAGE),
    "convnext_tiny": (torchvision.models.convnext_tiny, ["features.5.2"], IMAGE),
    "fcn_resnet50": (segmentation, ["backbone.layer3.5"], IMAGE),
    "r3d_18": (torchvision.models.video.r3d_18, ["layer2.1"], VIDEO),
    "timm_resnet18": (timm_model("resnet18"), ["layer3.1"], IMAGE),
    "timm_mobilenetv3": (timm_model("mobilenetv3_small_050"), ["blocks.3.0"], IMAGE),
    "timm_convnext": (timm_model("convnext_atto"), ["stages.2.blocks.3"], IMAGE),
    "timm_regnet": (timm_model("regnetx_002"), ["s3.b2"], IMAGE),
    "ours": (lambda: nl.create_model("i3d_tiny", num_classes=3), ["res3.0"], VIDEO),
    "users": (Parallel, ["layers.1", "branches.right", "branches.left"], IMAGE),
    "cifar": (CifarResNet, ["layer1.2", "layer3.0"], (2, 3, 32, 32)),
}


def out(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return y["out"] if isinstance(y, dict) else y


def blocks(model: nn.Module) -> dict[str, nl.NonLocalBlock]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nl.NonLocalBlock)}


def opened(model: nn.Module) -> nn.Module:
    """The same model with blocks that do something."""
    for block in blocks(model).values():
        assert isinstance(block.norm, nn.Module)
        nn.init.constant_(block.norm.weight, 0.5)
    return model


def resnet(*after: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nl.insert_blocks(torchvision.models.resnet18(num_classes=4), after or ["layer2.1"], **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_and_training_moves_the_blocks(name: str) -> None:
    build, after, shape = NETWORKS[name]
    before = build()
    model = nl.insert_blocks(copy.deepcopy(before), after=after)
    assert len(blocks(model)) == len(after)

    x = torch.randn(shape)
    for train in (False, True):
        outputs = []
        for network in (before, model):
            torch.manual_seed(1)  # dropout
            outputs.append(out(network.train(train), x))
        assert torch.equal(*outputs)

    # The original's names are all there, with equal tensors (the batch norm statistics moved alike, too), and
    # they load: only the blocks' are missing.
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in before.state_dict().items())
    keys = model.load_state_dict(before.state_dict(), strict=False)
    assert not keys.unexpected_keys
    counters = {key for key in state if key.endswith("num_batches_tracked")}  # torch fills them in itself
    assert set(keys.missing_keys) - counters == {key for key in state if ".nonlocal_block." in key} - counters
    assert {key for key, _ in model.named_parameters()} <= set(state)
    nl.insert_blocks(build(), after=after).load_state_dict(state)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved: list[set[str]] = []
    for _ in range(2):
        start = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        optimizer.zero_grad()
        out(model, x).square().mean().backward()
        optimizer.step()
        moved.append({key for key, p in model.named_parameters() if not torch.equal(p, start[key])})
    for block in blocks(model):
        assert f"{block}.norm.weight" in moved[0]
        assert f"{block}.theta.weight" not in moved[0]  # behind a gamma of zero nothing moves yet
        assert {f"{block}.{part}.weight" for part in ("theta", "phi", "g", "W_z")} <= moved[1]


@pytest.mark.parametrize("pairwise", ["gaussian", "dot_product", "concatenation"])
def test_options_reach_every_block(pairwise: str) -> None:
    model = torchvision.models.video.r3d_18(num_classes=4).eval()
    x = torch.randn(VIDEO)
    y = model(x)
    nl.insert_blocks(
        model,
        ["layer1.1", "layer2.0"],
        inner_channels=8,
        pairwise=pairwise,
        subsample_at="input",
        temporal_groups=2,
        norm=None,
        init="released",
        example_input=x,
    )
    for block in blocks(model).values():
        assert (block.pairwise, block.inner_channels, block.subsample_at) == (pairwise, 8, "input")
        assert (block.temporal_groups, block.norm, block.init, block.dims) == (2, None, "released", 3)
    assert torch.equal(model(x), y)


def test_sequential_stands_for_its_last_part() -> None:
    assert list(blocks(resnet("layer2"))) == ["layer2.1.nonlocal_block"]
    assert list(blocks(resnet("layer2.1"))) == ["layer2.1.nonlocal_block"]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 6, 1), nn.Sequential(nn.ReLU())))
    assert list(blocks(nl.insert_blocks(model, "1"))) == ["1.1.0.nonlocal_block"]


def test_a_block_after_a_block() -> None:
    model = opened(nl.insert_blocks(resnet("layer2.1"), ["layer2.1.nonlocal_block"])).eval()
    first, second = blocks(model)
    assert second == f"{first}.nonlocal_block"
    seen: list[Tensor] = []
    model.layer2[1].register_forward_hook(lambda _, __, output: seen.append(output))
    x = torch.randn(IMAGE)
    model(x)
    for name in (first, second):
        nn.init.zeros_(model.get_submodule(name).norm.weight)
        model(x)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


class Shared(nn.Module):
    """A layer that runs twice in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.relu(self.twice(self.relu(self.stem(x)))))


def test_a_shared_layer_shares_its_block() -> None:
    model = opened(nl.insert_blocks(Shared(), ["twice"])).eval()
    x = torch.randn(1, 3, 8, 8)
    block = model.twice.nonlocal_block
    del model.twice.nonlocal_block
    model.twice._forward_hooks.clear()
    want = block(model.twice(model.relu(block(model.twice(model.relu(model.stem(x)))))))
    torch.manual_seed(0)
    assert not torch.equal(model(x), want)
    model = nl.insert_blocks(model, ["twice"])
    model.twice.nonlocal_block.load_state_dict(block.state_dict())
    assert torch.equal(model.eval()(x), want)


def test_the_trace_changes_nothing() -> None:
    """Modes, statistics, gradients, hooks, attributes, random numbers, and what a layer keeps for itself."""

    class Keeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.register_buffer("average", torch.zeros(4))
            self.last: Tensor | None = None
            self.runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            x = self.bn(self.conv(x)) + torch.randn(1)
            self.average = 0.9 * self.average + x.mean((0, 2, 3))
            self.last = x
            return x

    model = nn.Sequential(Keeper(), nn.Dropout(), nn.Conv2d(4, 5, 3))
    model[0].bn.eval()
    model[2].weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    for example in (None, torch.randn(1, 3, 20, 20, generator=torch.Generator())):
        assert layer_outputs(model, ["0.conv", "2"], example)["2"].shape[1] == 5
    assert torch.equal(torch.get_rng_state(), expected)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert model[0].last is None
    assert model[0].runs == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_blocks_follow_mode_dtype_and_device_and_can_always_be_trained() -> None:
    model = torchvision.models.resnet18(num_classes=4).to(torch.float64)
    model.requires_grad_(False)
    model.layer2.eval()
    block_in_eval, block_in_training = blocks(nl.insert_blocks(model, ["layer2.1", "layer3.1"])).values()
    assert not any(module.training for module in block_in_eval.modules())
    assert all(module.training for module in block_in_training.modules())
    for block in (block_in_eval, block_in_training):
        assert block.theta.weight.dtype == torch.float64
        assert all(parameter.requires_grad for parameter in block.parameters())
    model(torch.randn(IMAGE, dtype=torch.float64)).sum().backward()

    with torch.device("meta"):
        meta = torchvision.models.resnet18(num_classes=4)
    assert nl.insert_blocks(meta, ["layer2.1"]).layer2[1].nonlocal_block.theta.weight.is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = torchvision.models.resnet18(num_classes=4).eval().to(dtype)
    x = torch.randn(IMAGE, dtype=dtype)
    y = model(x)
    nl.insert_blocks(model, ["layer2.1", "layer3"])
    assert torch.equal(model(x), y)
    assert torch.equal(resnet("layer2.1").eval().half()(x.half()), resnet("layer3.1").eval().half()(x.half()))


def test_channels_last() -> None:
    model = torchvision.models.resnet18(num_classes=4).eval().to(memory_format=torch.channels_last)
    x = torch.randn(IMAGE).contiguous(memory_format=torch.channels_last)
    y = model(x)
    nl.insert_blocks(model, ["layer2.1"])
    kept: list[Tensor] = []
    model.layer2[1].register_forward_hook(lambda _, __, output: kept.append(output))
    assert torch.equal(model(x), y)
    assert kept[0].is_contiguous(memory_format=torch.channels_last)


def test_copies_and_pickles_are_models_of_their_own() -> None:
    model = opened(resnet("layer2.1", "layer3.1")).eval()
    x = torch.randn(IMAGE)
    y = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), y)
        nn.init.zeros_(twin.layer2[1].nonlocal_block.norm.weight)
        assert not torch.equal(twin(x), y)
    assert torch.equal(model(x), y)


# In a process of its own: torch counts hooks from 0 again, so that one that is registered after unpickling
# could take the place of the block's; and here dynamo would have to look through the tests' shape checks.
ANOTHER_PROCESS = """
import torch
model = torch.load("model.pt", weights_only=False)
x, y, closed = torch.load("answer.pt")
layer = model.layer2[0]
handles = [layer.register_forward_hook(lambda *_: None) for _ in range(max(layer._forward_hooks) + 1)]
assert torch.equal(model(x), y)
for handle in handles:
    handle.remove()
assert torch.equal(model(x), y)

compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
assert torch.equal(compiled(x), y)
compiled(x).sum().backward()
assert model.layer2[0].nonlocal_block.theta.weight.grad.abs().sum() > 0
gamma = model.layer2[0].nonlocal_block.norm.weight
with torch.no_grad():
    gamma.mul_(0)
assert torch.equal(compiled(x), closed)  # the block is in the graph, with its weights
with torch.no_grad():
    assert torch.equal(torch.export.export(model, (x,)).module()(x), closed)
"""


def test_another_process_unpickles_compiles_and_exports(tmp_path: Path) -> None:
    model: nn.Module = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], 4)
    model, x = nl.insert_blocks(model, ["layer2.0"]).eval(), torch.randn(IMAGE)
    closed = model(x)
    answer = opened(model)(x)
    assert not torch.allclose(answer, closed)
    torch.save(model, tmp_path / "model.pt")
    torch.save((x, answer.detach(), closed.detach()), tmp_path / "answer.pt")
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_activation_checkpointing() -> None:
    model = opened(resnet())
    model.train()
    x = torch.randn(IMAGE)
    twin = copy.deepcopy(model)
    model(x).sum().backward()
    body = torch.utils.checkpoint.checkpoint(twin.layer2, twin.layer1(_stem(twin, x)), use_reentrant=False)
    twin.fc(twin.avgpool(twin.layer4(twin.layer3(body))).flatten(1)).sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


def _stem(model: nn.Module, x: Tensor) -> Tensor:
    return model.maxpool(model.relu(model.bn1(model.conv1(x))))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel() -> None:
    model, x = opened(resnet()), torch.randn(IMAGE)
    twin = copy.deepcopy(model)
    twin(x).sum().backward()
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped(x).sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)
    with pytest.raises(
        ValueError, match=r"wrapped in DistributedDataParallel already.*Insert the blocks first"
    ):
        nl.insert_blocks(wrapped, ["module.layer3.1"])


def test_sync_batch_norm_keeps_the_blocks() -> None:
    model = opened(resnet()).eval()
    x = torch.randn(IMAGE)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert torch.equal(converted(x), model(x))
    assert isinstance(converted.layer2[1].nonlocal_block.norm, nn.SyncBatchNorm)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(1, 4, 1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.left(image) + self.right(mask)


class ValueDependent(nn.Module):
    """Fake tensors have no values, so this one must run for real."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x[x[:, 0].mean((1, 2)) < float(x.max())] if x.sum().item() == x.sum().item() else x


def test_example_inputs() -> None:
    image, mask = torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)
    for example in ((image, mask), {"mask": mask, "image": image}):
        assert list(blocks(nl.insert_blocks(TwoInputs(), ["right"], example_input=example)))
    with pytest.raises(ValueError, match=r"own making; give example_input.*missing 1 required.*'mask'"):
        nl.insert_blocks(TwoInputs(), ["right"])
    model = ValueDependent()
    state = copy.deepcopy(model.state_dict())
    nl.insert_blocks(model, ["conv"], example_input=image)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())
    # Without an example, the part that does not depend on values tells.
    without = nl.insert_blocks(ValueDependent(), ["conv"])
    assert without.conv.nonlocal_block.channels == model.conv.nonlocal_block.channels
    with pytest.raises(
        ValueError, match=r"does not run on example_input.*expected input.* to have 3 channels"
    ):
        nl.insert_blocks(resnet(), ["layer3.1"], example_input=mask)


def test_networks_tied_to_one_size() -> None:
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    assert list(blocks(nl.insert_blocks(small, ["1"]))) == ["1.nonlocal_block"]


class Rows(nn.Module):
    """Channels last, as vision transformers keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.mix = nn.Linear(8, 8)
        self.tokens = nn.Linear(8, 8)
        self.pair = nn.LSTM(8, 8, batch_first=True)
        self.unused = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(self.mix(self.conv(x).movedim(1, -1)).flatten(1, 2))
        return self.pair(y)[0]


REFUSED = {
    "typo": (resnet, "layer3.7", r"no layer 'layer3.7'; the nearest are layer3.0, layer3.1"),
    "typo_in_front": (resnet, "layr3.1", r"no layer 'layr3.1'; the nearest are layer3.1"),
    "nonsense": (resnet, "zzz", r"no layer 'zzz'; the nearest are conv1, bn1"),
    "empty": (resnet, "", "no layer ''; a name is as in model.named_modules"),
    "has_one": (resnet, "layer2", r"'layer2.1' has a block already.*after 'layer2.1.nonlocal_block'"),
    "two_axes": (resnet, "fc", r"'fc' \(Linear\) gives out \(2, 4\); a block needs \(batch, channels"),
    "two_places": (resnet, "layer1.0.relu", r"no weights and runs 2 times.*around it, 'layer1.0'"),
    "dict": (
        segmentation,
        "backbone",
        r"'backbone' .*OrderedDict of 'out'.*backbone.conv1, ..., backbone.layer4",
    ),
    "list": (
        Parallel,
        "layers",
        r"'layers' \(ModuleList\) never ran.*container.*layers.0, layers.1, layers.2",
    ),
    "unused": (Rows, "unused", r"'unused' \(Conv2d\) never ran"),
    "tuple": (Rows, "pair", r"'pair' \(LSTM\) gives out a tuple of 2; a block needs one tensor"),
    "channels_last": (
        Rows,
        "mix",
        r"\(2, 56, 56, 8\) and, for a larger input, .*second axis is not channels",
    ),
    "tokens": (Rows, "tokens", r"\(2, 3136, 8\) and, for a larger input, .*second axis is not channels"),
    "runs_its_children": (
        lambda: nl.create_model("c2d_tiny", num_classes=2),
        "res3",
        r"'res3' \(Stage\) runs everything.*would run twice; name a layer inside it \(res3.0, res3.1\)",
    ),
    "dense_block": (torchvision.models.densenet121, "features.denseblock1", "runs everything"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), "1", "a lazy layer.*run the model once"),
    "no_convolution": (lambda: nn.Sequential(nn.Linear(3, 4)), "0", "no convolution.*give example_input"),
    "compiled": (lambda: torch.compile(resnet()), "_orig_mod.layer3.1", "OptimizedModule already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_changes(case: str) -> None:
    build, name, message = REFUSED[case]
    model = build()
    keys = list(model.state_dict())
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    # the first layer would be fine
    fine = [
        other for other in ("layer4.1", "res2.0", "layers.0", "conv") if other in dict(model.named_modules())
    ]
    with pytest.raises(ValueError, match=message):
        nl.insert_blocks(model, [*fine, name])
    assert list(model.state_dict()) == keys
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


def test_refused_options() -> None:
    model = torchvision.models.resnet18(num_classes=4)
    x = torch.zeros(1, 3, 32, 32)
    for options, message in (
        ({"dims": 3}, r"dims=3, but layer 'layer4.1' gives out .*: dims=2"),
        ({"span": "time"}, "dims=2 has no time axis"),
        (
            {"example_input": x},
            r"'layer4.1' gives out \(1, 512, 1, 1\): .*too small to subsample.*subsample=False",
        ),
        ({"after": ["layer4", "layer4.1"]}, r"'layer4.1' and 'layer4' are the same place"),
        ({"after": []}, "after names no layer"),
    ):
        with pytest.raises(ValueError, match=message):
            nl.insert_blocks(model, **({"after": ["layer4.1"]} | options))
    with pytest.raises(TypeError, match="pairwize"):
        nl.insert_blocks(model, ["layer4.1"], pairwize="gaussian")
    video = torchvision.models.video.r3d_18(num_classes=2)
    with pytest.raises(ValueError, match=r"'layer1.1' gives out .*: 8 frames do not divide"):
        nl.insert_blocks(video, ["layer1.1"], temporal_groups=3, example_input=torch.zeros(VIDEO))
    assert not blocks(video)
    assert not blocks(model)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_name_that_is_no_text() -> None:
    with pytest.raises(ValueError, match="no layer 3; a name is as in"):
        nl.insert_blocks(resnet(), [3])  # type: ignore[list-item]


def test_axes_that_differ_from_the_input_must_be_named() -> None:
    """Frames as a batch of images, then a sequence: legal, but it could as well be tokens."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Conv1d(4, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean(2))

    with pytest.raises(ValueError, match=r"3 axes for an input of 4.*say so with dims=1"):
        nl.insert_blocks(Sequence(), ["head"])
    assert nl.insert_blocks(Sequence(), ["head"], dims=1).head.nonlocal_block.channels == 6


@torch.no_grad()
def test_accuracy_of_trained_weights_does_not_move(shared_data: Path) -> None:
    weights = trained_weights(shared_data)
    images, labels = cifar_images(shared_data / "image_cls/cifar10_jpeg_test_a.zip", each=30)
    model = CifarResNet()
    model.load_state_dict(weights, strict=False)  # an old file, without num_batches_tracked
    before = model.eval()(images)
    assert (before.argmax(1) == labels).double().mean() > 0.8

    nl.insert_blocks(model, ["layer2.0", "layer2.2", "layer3.1"])
    assert torch.equal(model(images), before)

    late = nl.insert_blocks(CifarResNet(), ["layer2.0", "layer2.2", "layer3.1"])  # inserted, then loaded
    assert all(
        "nonlocal" in key or "num_batches" in key for key in late.load_state_dict(weights, strict=False)[0]
    )
    assert torch.equal(late.eval()(images), before)


def test_an_inserted_block_learns_what_the_layers_cannot() -> None:
    """A network that sees one place at a time learns whether two places are alike: ln 2 = 0.69 without."""
    losses = []
    for after in ([], ["1"]):
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU())
        model = nn.Sequential(*model, nn.Conv2d(16, 2, 1))
        if after:
            nl.insert_blocks(model, after, subsample=False, pairwise="dot_product")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            pair = torch.randint(0, 4, (64, 2))
            alike = torch.rand(64) < 0.5
            pair[alike, 1] = pair[alike, 0]
            target = (pair[:, 0] == pair[:, 1]).long()
            x = torch.eye(4)[pair].movedim(2, 1)[..., None]  # (batch, 4, 2, 1): two places
            loss = F.cross_entropy(model(x)[:, :, 0, 0], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert losses[1] < 0.1
