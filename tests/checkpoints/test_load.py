"""Every public layout loads and gives its owner's outputs; what cannot be right is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nonlocal_nn as nl
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.models.video_resnet import VideoResNet
from tests.checkpoints import plain_networks as plain
from tests.checkpoints.plain_networks import Kind, Plain

CLIP = (2, 3, 16, 36, 40)

CASES: dict[str, tuple[Plain, Kind, dict[str, Any]]] = {
    "pyslowfast": (plain.PYSLOWFAST, Kind(), {}),
    "pyslowfast dot product": (plain.PYSLOWFAST, Kind(pairwise="dot_product"), {"pairwise": "dot_product"}),
    "pyslowfast c2d": (plain.PYSLOWFAST, Kind(blocks={}, inflated={0: (), 1: (), 2: ()}, conv1_frames=1), {}),
    "pyslowfast groups": (plain.PYSLOWFAST, Kind(groups={1: 2}), {"temporal_groups": {"res3": 2}}),
    "pyslowfast other kernels": (
        plain.PYSLOWFAST,
        Kind(inflated={0: (), 1: (1,), 2: (0,)}, conv1_frames=3),
        {},
    ),
    "caffe2": (plain.CAFFE2, Kind(), {}),
    "caffe2 blocks in two stages": (plain.CAFFE2, Kind(blocks={1: (0, 1), 2: (0,)}), {"stem": "vnl"}),
    "caffe2 folded": (plain.CAFFE2, Kind(folded=True, normed=False, groups={1: 4}), {}),
    "caffe2 folded, no groups": (plain.CAFFE2, Kind(folded=True), {"temporal_groups": {}}),
    "mmaction2": (plain.MMACTION2, Kind(), {}),
    "mmaction2 dot product": (plain.MMACTION2, Kind(pairwise="dot_product"), {"pairwise": "dot_product"}),
    "mmaction2 gaussian": (plain.MMACTION2, Kind(pairwise="gaussian"), {}),
    "mmaction2 concatenation": (plain.MMACTION2, Kind(pairwise="concatenation", pooled=False), {}),
    "mmaction2 no pooling, no norm": (plain.MMACTION2, Kind(pooled=False, normed=False), {"scale": False}),
    "pytorch-resnet3d": (plain.RESNET3D, Kind(), {}),
}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def network(path: Path, **hints: Any) -> VideoResNet:
    model = nl.load_model(path, **hints)
    assert isinstance(model, VideoResNet)
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_network_gives_its_owners_outputs(case: str, tmp_path: Path) -> None:
    layout, kind, hints = CASES[case]
    state = plain.make_state(layout, kind)
    path = plain.write(state, layout, kind, tmp_path / "checkpoint")
    clip = torch.randn(CLIP)
    model = network(path, **hints)
    with torch.no_grad():
        assert relative_error(model(clip), plain.run(state, layout, kind, clip)) <= 1e-5
    assert not any(module.training for module in model.modules())
    report = model.load_report
    assert report is not None
    assert report.complete
    assert len(report.placed) == len(state), "every tensor has its place"
    assert set(report.placed) | set(report.implied) == set(model.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_slow_is_known_by_its_kernels(tmp_path: Path) -> None:
    """Slow has neither pool2 nor temporal kernels before res4; conv1 sees single frames."""
    layout = Plain(**{**vars(plain.PYSLOWFAST), "pool2": False})
    kind = Kind(inflated={0: (), 1: (), 2: (0,)}, conv1_frames=1)
    state = plain.make_state(layout, kind)
    with_res5 = {  # the rule looks at res4 and res5: give the network a res5
        **state,
        **{name.replace("s4.", "s5."): tensor for name, tensor in state.items() if name.startswith("s4.")},
    }
    for name in list(with_res5):
        if name.startswith("s5."):
            factor = [2 if size >= 16 else 1 for size in with_res5[name].shape]
            with_res5[name] = with_res5[name].repeat(*factor) if with_res5[name].dim() else with_res5[name]
    with_res5["s5.pathway0_res0.branch2.a.weight"] = torch.randn(32, 64, 3, 1, 1)
    with_res5["s5.pathway0_res0.branch1.weight"] = torch.randn(128, 64, 1, 1, 1)
    with_res5["head.projection.weight"] = torch.randn(5, 128)
    torch.save({"model_state": with_res5}, tmp_path / "slow.pyth")
    for hints in ({}, {"stem": "slowfast"}):
        model = network(tmp_path / "slow.pyth", **hints)
        assert model.pool2 is None
        assert model.features(torch.randn(1, 3, 4, 32, 32))["res5"].shape[2] == 4


@pytest.mark.parametrize("name", ["module.", ""])
def test_data_parallels_prefix_is_taken_off(name: str, tmp_path: Path) -> None:
    state = plain.make_state(plain.PYSLOWFAST, Kind())
    torch.save({"model_state": {name + key: tensor for key, tensor in state.items()}}, tmp_path / "m.pyth")
    assert network(tmp_path / "m.pyth").load_report.complete  # type: ignore[union-attr]


def test_half_precision_and_shared_memory_become_weights_of_their_own(tmp_path: Path) -> None:
    state = plain.make_state(plain.PYSLOWFAST, Kind())
    shared = state["s3.pathway0_res0.branch2.a_bn.weight"]
    state["s3.pathway0_res0.branch2.b_bn.weight"] = shared
    state["head.projection.weight"] = state["head.projection.weight"].half()
    torch.save({"model_state": state}, tmp_path / "m.pyth")
    model = network(tmp_path / "m.pyth")
    assert model.head.fc.weight.dtype == torch.float32
    block = model.get_submodule("res3.0")
    with torch.no_grad():
        block.norm1.weight.zero_()  # type: ignore[union-attr, operator]
    assert torch.equal(block.norm2.weight, shared)  # type: ignore[arg-type]


# Blocks by themselves, in 1, 2 and 3 dimensions


def nonlocal_pytorch_block(dims: int, pairwise: str, *, pooled: bool, normed: bool) -> dict[str, Tensor]:
    one, c, i = (1,) * dims, 8, 4
    pool = ".0" if pooled else ""
    out = ".0" if normed else ""
    state = {f"g{pool}.weight": torch.randn(i, c, *one), f"g{pool}.bias": torch.randn(i)}
    if pairwise != "gaussian":
        state |= {"theta.weight": torch.randn(i, c, *one), "theta.bias": torch.randn(i)}
        state |= {f"phi{pool}.weight": torch.randn(i, c, *one), f"phi{pool}.bias": torch.randn(i)}
    state |= {f"W{out}.weight": torch.randn(c, i, *one), f"W{out}.bias": torch.randn(c)}
    if normed:
        state |= {
            "W.1.weight": torch.randn(c),
            "W.1.bias": torch.randn(c),
            "W.1.running_mean": torch.randn(c),
        }
        state |= {"W.1.running_var": torch.rand(c) + 0.5, "W.1.num_batches_tracked": torch.tensor(4)}
    if pairwise == "concatenation":
        state["concat_project.0.weight"] = torch.randn(1, 2 * i, 1, 1)
    return state


def run_nonlocal_pytorch(state: dict[str, Tensor], pairwise: str, x: Tensor) -> Tensor:
    """The block of Non-local_pytorch, written out: pools after phi and g, never scales."""
    dims = x.dim() - 2

    def part(name: str, x: Tensor) -> Tensor:
        key = name if f"{name}.weight" in state else f"{name}.0"
        y = torch.einsum("oc,bc...->bo...", state[f"{key}.weight"].flatten(1), x)
        y = y + state[f"{key}.bias"].view(1, -1, *(1,) * dims)
        return pool(y) if key.endswith(".0") and name != "W" else y

    def pool(y: Tensor) -> Tensor:
        kernel = {1: (2,), 2: (2, 2), 3: (1, 2, 2)}[dims]
        return getattr(torch.nn.functional, f"max_pool{dims}d")(y, kernel)

    g = part("g", x).flatten(2)
    if pairwise == "gaussian":
        theta, phi = x.flatten(2), (pool(x) if "g.0.weight" in state else x).flatten(2)
    else:
        theta, phi = part("theta", x).flatten(2), part("phi", x).flatten(2)
    if pairwise == "concatenation":
        both = torch.cat(
            [
                theta[:, :, :, None].expand(-1, -1, -1, phi.shape[2]),
                phi[:, :, None].expand(-1, -1, theta.shape[2], -1),
            ],
            dim=1,
        )
        f = (
            torch.einsum("c,bcij->bij", state["concat_project.0.weight"].flatten(), both).relu()
            / phi.shape[2]
        )
    else:
        product = torch.einsum("bci,bcj->bij", theta, phi)
        f = product / phi.shape[2] if pairwise == "dot_product" else product.softmax(dim=2)
    y = part("W", torch.einsum("bij,bcj->bci", f, g).reshape(x.shape[0], -1, *x.shape[2:]))
    if "W.1.weight" in state:
        shape = (1, -1, *(1,) * dims)
        y = (y - state["W.1.running_mean"].view(shape)) / (state["W.1.running_var"].view(shape) + 1e-5).sqrt()
        y = y * state["W.1.weight"].view(shape) + state["W.1.bias"].view(shape)
    return x + y


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize(("pooled", "normed"), [(True, True), (False, False), (True, False)])
def test_a_file_of_one_block_is_a_block(
    dims: int, pairwise: str, pooled: bool, normed: bool, tmp_path: Path
) -> None:
    state = nonlocal_pytorch_block(dims, pairwise, pooled=pooled, normed=normed)
    torch.save(state, tmp_path / "block.pth")
    block = nl.load_model(tmp_path / "block.pth", pairwise=pairwise, scale=False)
    assert isinstance(block, NonLocalBlock)
    assert not block.training
    x = torch.randn(2, 8, *{1: (10,), 2: (6, 5), 3: (3, 5, 6)}[dims])
    with torch.no_grad():
        assert relative_error(block(x), run_nonlocal_pytorch(state, pairwise, x)) < 1e-5
    nl.save_model(block, tmp_path / "native.safetensors")
    again = nl.load_model(tmp_path / "native.safetensors")
    with torch.no_grad():
        assert torch.equal(again(x), block(x))


def test_timms_attention_scales_by_its_input_channels(tmp_path: Path) -> None:
    c, i = 32, 8
    state = {
        f"{n}.{k}": torch.randn(i, c, 1, 1) if k == "weight" else torch.randn(i)
        for n in "tpg"
        for k in ("weight", "bias")
    }
    state |= {"z.weight": torch.randn(c, i, 1, 1), "z.bias": torch.randn(c)}
    state |= {"norm.weight": torch.randn(c), "norm.bias": torch.randn(c), "norm.running_mean": torch.randn(c)}
    state |= {"norm.running_var": torch.rand(c) + 0.5, "norm.num_batches_tracked": torch.tensor(0)}
    torch.save({f"layer3.0.se.{name}": tensor for name, tensor in state.items()}, tmp_path / "net.pth")
    x = torch.randn(2, c, 5, 6)
    t, p, g = (
        torch.einsum("oc,bchw->bohw", state[f"{n}.weight"].flatten(1), x).flatten(2)
        + state[f"{n}.bias"][:, None]
        for n in "tpg"
    )
    for scaled in (True, False):
        (block,) = nl.load_blocks(tmp_path / "net.pth", scale=scaled).values()
        weights = (torch.einsum("bci,bcj->bij", t, p) * (c**-0.5 if scaled else 1)).softmax(dim=2)
        y = torch.einsum("bij,bcj->bci", weights, g).reshape(2, i, 5, 6)
        z = torch.einsum("oc,bchw->bohw", state["z.weight"].flatten(1), y) + state["z.bias"].view(1, -1, 1, 1)
        mean, var = state["norm.running_mean"].view(1, -1, 1, 1), state["norm.running_var"].view(1, -1, 1, 1)
        z = (z - mean) / (var + 1e-5).sqrt() * state["norm.weight"].view(1, -1, 1, 1) + state[
            "norm.bias"
        ].view(1, -1, 1, 1)
        with torch.no_grad():
            assert relative_error(block(x), x + z) < 1e-5


def test_blocks_of_a_users_own_network_saved_from_data_parallel(tmp_path: Path) -> None:
    first = nonlocal_pytorch_block(2, "embedded_gaussian", pooled=True, normed=True)
    second = nonlocal_pytorch_block(3, "concatenation", pooled=False, normed=False)
    state = {"module.conv_1.0.weight": torch.randn(8, 1, 3, 3), "module.fc.0.bias": torch.randn(10)}
    state |= {f"module.nl_1.{name}": tensor for name, tensor in first.items()}
    state |= {f"module.deep.2.attend.{name}": tensor for name, tensor in second.items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "net.pth")
    blocks = nl.load_blocks(tmp_path / "net.pth")
    assert {name: (b.dims, b.pairwise, b.subsample) for name, b in blocks.items()} == {
        "deep.2.attend": (3, "concatenation", False),
        "nl_1": (2, "embedded_gaussian", True),
    }
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        assert relative_error(blocks["nl_1"](x), run_nonlocal_pytorch(first, "embedded_gaussian", x)) < 1e-5
    with pytest.raises(ValueError, match=r"has 2 non-local block\(s\).*nl.load_blocks"):
        nl.load_model(tmp_path / "net.pth")


def test_blocks_out_of_whole_networks(tmp_path: Path) -> None:
    for layout in (plain.PYSLOWFAST, plain.CAFFE2, plain.MMACTION2, plain.RESNET3D):
        path = plain.write(plain.make_state(layout, Kind()), layout, Kind(), tmp_path / "checkpoint")
        ((prefix, block),) = nl.load_blocks(path).items()
        own = network(path).get_submodule("res3.nonlocal1")
        x = torch.randn(1, 32, 2, 4, 4)
        assert prefix == layout.block(1, 1).rstrip("._")
        assert isinstance(own, NonLocalBlock)
        assert str(own) == str(block)
        assert torch.equal(block(x), own(x))
    folded = Kind(folded=True, normed=False)
    path = plain.write(plain.make_state(plain.CAFFE2, folded), plain.CAFFE2, folded, tmp_path / "folded.pkl")
    assert nl.load_blocks(path)["nonlocal_conv3_1"].temporal_groups == 4
    assert nl.load_blocks(path, temporal_groups={"res3": 2})["nonlocal_conv3_1"].temporal_groups == 2
    nl.save_model(network(path), tmp_path / "native.safetensors")
    assert list(nl.load_blocks(tmp_path / "native.safetensors")) == ["res3.nonlocal1"]


# Image networks


@pytest.mark.parametrize("inflation", [None, "3x1x1", "3x3x3"])
def test_an_image_resnet_is_inflated(inflation: str | None, tmp_path: Path) -> None:
    kind = Kind(blocks={}, inflated={0: (), 1: (), 2: ()}, conv1_frames=1, classes=9)
    video = plain.make_state(plain.RESNET3D, kind)
    image = {name: tensor[:, :, 0] if tensor.dim() == 5 else tensor for name, tensor in video.items()}
    torch.save(image, tmp_path / "image.pth")
    model = network(tmp_path / "image.pth", inflation=inflation)
    assert (model.spec.inflation, model.spec.num_classes) == (inflation, 9)  # type: ignore[union-attr]
    state = model.state_dict()
    assert torch.allclose(state["stem.conv.weight"].sum(dim=2), image["conv1.weight"], atol=1e-6)
    if inflation is None:
        frame = torch.randn(2, 3, 1, 36, 40)
        with torch.no_grad():
            still = plain.run(
                video,
                Plain(
                    **{
                        **vars(plain.RESNET3D),
                        "conv1_stride": (2, 2, 2),
                        "pool1": ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
                        "pool2": False,
                    }
                ),
                kind,
                frame,
            )
            assert relative_error(model(frame.expand(-1, -1, 8, -1, -1)), still) < 1e-5


def test_basic_blocks_are_refused_with_a_way_out(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.randn(4, 3, 7, 7), "layer1.0.conv1.weight": torch.randn(4, 4, 3, 3)}
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"ResNet-18.*insert_blocks"):
        nl.load_model(tmp_path / "resnet18.pth")


# What is refused


@pytest.mark.parametrize(
    ("layout", "hints", "message"),
    [
        (plain.PYSLOWFAST, {"stem": "tiny"}, "stem='tiny' contradicts the file: conv1 is 4x3x5x7x7"),
        (plain.PYSLOWFAST, {"stem": "slow_fast"}, "stem='slow_fast' does not exist"),
        (plain.PYSLOWFAST, {"pairwise": "concatenation"}, "pairwise='concatenation' contradicts the file"),
        (plain.CAFFE2, {"pairwise": "gaussian"}, "pairwise='gaussian' contradicts the file"),
        (plain.CAFFE2, {"pairwise": "dot_product", "scale": True}, "never scales dot_product"),
        (
            plain.MMACTION2,
            {"temporal_groups": {"res4": 2}},
            "names 'res4', but the file has non-local blocks in res3",
        ),
        (plain.PYSLOWFAST, {"inflation": "3x3x3"}, "its kernels are 3x1x1"),
    ],
)
def test_a_hint_that_contradicts_the_file(
    layout: Plain, hints: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = plain.write(plain.make_state(layout, Kind()), layout, Kind(), tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=message):
        nl.load_model(path, **hints)


def test_hints_for_our_own_files_must_agree(tmp_path: Path) -> None:
    path = plain.write(plain.make_state(plain.CAFFE2, Kind()), plain.CAFFE2, Kind(), tmp_path / "c.pkl")
    nl.save_model(network(path), tmp_path / "m.safetensors")
    network(tmp_path / "m.safetensors", stem="vnl", scale=True)
    with pytest.raises(ValueError, match="stem='vnl32' contradicts"):
        nl.load_model(tmp_path / "m.safetensors", stem="vnl32")


def test_a_file_must_fill_its_network_unless_a_part_is_asked_for(tmp_path: Path) -> None:
    state = plain.make_state(plain.PYSLOWFAST, Kind())
    less = {name: tensor for name, tensor in state.items() if "nonlocal1.bn.weight" not in name}
    odd = state | {"head.projection.weight": torch.randn(5, 7)}
    for content, message in (
        (less, "res3.nonlocal1.norm.weight"),
        (state | {"ema.decay": torch.ones(1)}, "left out: ema.decay"),
        (odd, r"head.fc.weight \(file 5x7, network 5x64\)"),
    ):
        torch.save({"model_state": content}, tmp_path / "m.pyth")
        with pytest.raises(ValueError, match=rf"does not fill the network[^$]*{message}"):
            nl.load_model(tmp_path / "m.pyth")
    del less["head.projection.weight"]
    torch.save({"model_state": less | {"ema.decay": torch.ones(1)}}, tmp_path / "m.pyth")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = network(tmp_path / "m.pyth", partial=True)
    assert any("loaded in part" in str(w.message) and "ema.decay" in str(w.message) for w in caught)
    assert torch.equal(model.stem.conv.weight, state["s1.pathway0_stem.conv.weight"])
    assert bool(model.head.fc.weight.any()), "what is missing starts as in a new network"


def test_a_block_left_switched_off_is_said_loudly(tmp_path: Path) -> None:
    state = plain.make_state(plain.PYSLOWFAST, Kind())
    state["s3.pathway0_nonlocal1.bn.weight"] = torch.zeros(32)
    torch.save({"model_state": state}, tmp_path / "m.pyth")
    with pytest.warns(UserWarning, match=r"1 non-local block switched off.*res3.nonlocal1"):
        nl.load_model(tmp_path / "m.pyth")


def test_files_of_no_known_layout(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.ones(2, 2)}, tmp_path / "m.pth")
    with pytest.raises(
        ValueError, match=r"of no layout we know. Its 1 tensors are named encoder.weight.*PySlowFast"
    ):
        nl.load_model(tmp_path / "m.pth")
    with pytest.raises(ValueError, match="has no non-local block that we know"):
        nl.load_blocks(tmp_path / "m.pth")
    state = plain.make_state(plain.PYSLOWFAST, Kind())
    gap = {name: tensor for name, tensor in state.items() if not name.startswith("s3.pathway0_res0.")}
    torch.save({"model_state": gap}, tmp_path / "m.pyth")
    with pytest.raises(ValueError, match="residual block 0 of res3 is missing"):
        nl.load_model(tmp_path / "m.pyth")
    with pytest.raises(FileNotFoundError, match="no such file"):
        nl.load_model(tmp_path / "absent.pth")


# The real thing


@pytest.mark.parametrize(
    "name",
    [
        "alexhex7_concatenation_3d_sub_bn",
        "alexhex7_embedded_gaussian_2d_sub_bn",
        "caffe2_c2d_r50_32x2",
        "caffe2_i3d_r50_nl5_8x8",
        "mmaction2_i3d_r50_nl5_embedded_gaussian",
        "pyslowfast_i3d_r50_nl5",
    ],
)
def test_shared_checkpoints_give_their_owners_outputs(name: str, shared_checkpoints: Path) -> None:
    folder = shared_checkpoints / name
    about = json.loads((folder / "spec.json").read_text())
    (path,) = folder.glob("checkpoint.*")
    arrays = np.load(folder / "io.npz")
    hints = {"pairwise": about["pairwise"], "scale": about["scale"]}
    if "stem_pool" in about:
        hints["stem"] = about["stem_pool"]
    model = nl.load_model(path, **hints)
    with torch.no_grad():
        output = model(torch.from_numpy(arrays["input"]))
    theirs = torch.from_numpy(arrays["logits"] if "logits" in arrays else arrays["output"])
    assert relative_error(output, theirs) <= 1e-4
    if name != "caffe2_c2d_r50_32x2":  # the one that its layout's defaults do not describe
        with torch.no_grad():
            assert relative_error(nl.load_model(path)(torch.from_numpy(arrays["input"])), theirs) <= 1e-4
