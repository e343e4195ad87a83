"""From layout to layout and back: the same tensors; what a layout cannot say is refused, nothing written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn import cli
from nonlocal_nn.checkpoints.export import export_model
from nonlocal_nn.checkpoints.safe_read import read_state_dict
from tests.checkpoints import plain_networks as plain
from tests.checkpoints.plain_networks import Kind, Plain

ROUND_TRIPS: dict[str, tuple[Plain, Kind, dict[str, Any]]] = {
    "pyslowfast": (plain.PYSLOWFAST, Kind(pairwise="dot_product"), {"pairwise": "dot_product"}),
    "pyslowfast, blocks without norm": (plain.PYSLOWFAST, Kind(normed=False), {}),
    "mmaction2": (plain.MMACTION2, Kind(pairwise="gaussian"), {}),
    "mmaction2, no pooling": (
        plain.MMACTION2,
        Kind(pairwise="concatenation", pooled=False, normed=False),
        {},
    ),
    "caffe2": (plain.CAFFE2, Kind(groups={1: 2}), {"temporal_groups": {"res3": 2}}),
    "caffe2, folded": (plain.CAFFE2, Kind(folded=True, normed=False), {}),
    "caffe2, c2d": (
        plain.CAFFE2,
        Kind(blocks={}, inflated={0: (), 1: (), 2: ()}, conv1_frames=1),
        {"stem": "vnl32"},
    ),
}


def options(hints: dict[str, Any]) -> list[str]:
    return [f"--{name}={json.dumps(v) if isinstance(v, dict) else v}" for name, v in hints.items()]


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_there_and_back_gives_the_same_tensors(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, kind, hints = ROUND_TRIPS[case]
    to = case.partition(",")[0]
    state = plain.make_state(layout, kind)
    source = plain.write(state, layout, kind, tmp_path / "source")
    native, back = tmp_path / "new" / "native.safetensors", tmp_path / "back"
    assert cli.main(["convert", str(source), str(native), "--to", "native", *options(hints)]) == 0
    assert cli.main(["convert", str(native), str(back), "--to", to]) == 0
    again = read_state_dict(back)
    assert set(again) == set(state)
    for name, tensor in state.items():
        assert torch.equal(again[name], tensor), name
        assert again[name].shape == tensor.shape, name
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("load it with nonlocal_nn.load_model(")
    model = eval(line.removeprefix("load it with "), {"nonlocal_nn": nl})
    clip = torch.randn(1, 3, 16, 36, 36)
    # Copies: where the weights of a mapped file begin in memory decides how some processors add them up, and
    # so the last bit.
    ours, theirs = copy.deepcopy(model), copy.deepcopy(nl.load_model(native))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(ours(clip), theirs(clip))


def test_from_layout_to_layout_with_hints(tmp_path: Path) -> None:
    kind = Kind()
    state = plain.make_state(plain.PYSLOWFAST, kind)
    model = nl.load_model(plain.write(state, plain.PYSLOWFAST, kind, tmp_path / "a.pyth"))
    hints = export_model(model, tmp_path / "a.pkl", "caffe2")
    assert hints == {"stem": "slowfast"}
    again = nl.load_model(tmp_path / "a.pkl", **hints)
    clip = torch.randn(1, 3, 8, 36, 36)
    with torch.no_grad():
        assert torch.equal(again(clip), model(clip))


@pytest.mark.parametrize(
    ("name", "overrides", "to", "message"),
    [
        (
            "c2d_tiny_nl1",
            {},
            "pyslowfast",
            "pool at subsample_at='embedding'; theirs pool x before phi and g",
        ),
        ("c2d_tiny_nl1", {"subsample_at": "input"}, "mmaction2", "theirs pool phi and g"),
        ("c2d_tiny_nl1", {"pairwise": "concatenation"}, "caffe2", "its blocks are concatenation"),
        ("c2d_tiny_nl1", {"span": "time"}, "mmaction2", "look over time alone"),
        ("c2d_tiny_nl1", {"pairwise": "dot_product", "scale": True}, "mmaction2", "scale theta"),
        ("c2d_tiny_nl1", {"subsample": False}, "pyslowfast", "do not subsample"),
        ("c2d_tiny_nl1", {"temporal_groups": {"res3": 2}}, "mmaction2", "groups of frames"),
        ("c2d_tiny_nl1", {}, "mmaction2", "takes res3.nonlocal0.W_z.bias to be 0"),
        ("c2d_tiny", {"norm": "frozen"}, "pyslowfast", "batch norms are frozen"),
        ("c2d_tiny", {"norm_eps": 1e-3}, "caffe2", "add 0.001 to the variance"),
        ("c2d_tiny", {"stage_strides": (2, 2, 2)}, "caffe2", "strides"),
        ("c2d_tiny", {}, "tensorflow", "no layout to write is called 'tensorflow'"),
    ],
)
def test_what_a_layout_cannot_express(
    name: str, overrides: dict[str, Any], to: str, message: str, tmp_path: Path
) -> None:
    model = nl.create_model(name, num_classes=3, **overrides)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    with pytest.raises(ValueError, match=message):
        export_model(model, tmp_path / "out", to)
    assert list(tmp_path.iterdir()) == []


def test_one_block_becomes_native_alone(tmp_path: Path) -> None:
    block = nl.NonLocalBlock(8, pairwise="concatenation", dims=2, subsample=False)
    with pytest.raises(ValueError, match="a single block has no place"):
        export_model(block, tmp_path / "out", "caffe2")
    export_model(block, tmp_path / "out", "native")
    with pytest.warns(UserWarning, match="switched off"):
        again = nl.load_model(tmp_path / "out")
    assert str(again) == str(block)


def test_two_files_are_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "only.pth", "--to", "native"]) == 2
    assert "takes two files" in capsys.readouterr().err


def test_a_stem_of_another_size_is_a_hint(tmp_path: Path) -> None:
    model = nl.create_model("i3d_tiny", num_classes=2).eval()
    hints = export_model(model, tmp_path / "m.pth", "mmaction2")
    assert hints == {"stem": "tiny"}
    with pytest.raises(ValueError, match="stem='mmaction2' is the layout's: conv1 is 8x3x3x5x5"):
        nl.load_model(tmp_path / "m.pth")
    clip = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(nl.load_model(tmp_path / "m.pth", **hints)(clip), model(clip))
