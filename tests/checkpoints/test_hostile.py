"""Damaged and hostile files: one clear error each; nothing runs, no memory is taken, nothing is half done."""

from __future__ import annotations

import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import nonlocal_nn as nl
from nonlocal_nn.checkpoints.load import load_weights
from nonlocal_nn.checkpoints.safe_read import read_state_dict
from nonlocal_nn.models.catalog import create_model
from tests.checkpoints.plain_networks import python2_pickle


def small_block() -> dict[str, Tensor]:
    """A block in the names of Non-local_pytorch: 1-D, so that the files are small."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"g.0": (2, 4, 1), "theta": (2, 4, 1), "phi.0": (2, 4, 1), "W.0": (4, 2, 1)}
    state = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(shape[0], generator=generator) for name, shape in shapes.items()}
    norm = {"weight": 1.0, "bias": 0.5, "running_mean": 0.2, "running_var": 2.0}
    return state | {f"W.1.{name}": torch.full((4,), value) for name, value in norm.items()}


def caffe2_block() -> dict[str, Tensor]:
    suffix = {"weight": "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    part = {"g.0": "g", "theta": "theta", "phi.0": "phi", "W.0": "out", "W.1": "bn"}
    state = {}
    for name, tensor in small_block().items():
        module, _, last = name.rpartition(".")
        end = "s" if (module, last) == ("W.1", "weight") else suffix[last]
        state[f"nonlocal_conv3_1_{part[module]}_{end}"] = tensor
    return state


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    torch.save(small_block(), folder / "zip.pth")
    torch.save(small_block(), folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(small_block(), folder / "plain.safetensors")
    (folder / "caffe2.pkl").write_bytes(python2_pickle(caffe2_block()))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_refused_or_harmless(
    data: st.DataObject, whole_files: dict[str, bytes], scratch: Path
) -> None:
    """Cut, lengthened, or with bytes changed: an error that names the file, or a block of the same make.

    Changed bytes inside the numbers of a weight cannot be seen in formats without checksums; then other
    numbers come out, in the same places. Anything else must come out as it went in.
    """
    name = data.draw(st.sampled_from(sorted(whole_files)))
    whole = whole_files[name]
    content, kind = mutate(data, whole)
    path = scratch / name
    path.write_bytes(content)
    original = scratch / f"whole-{name}"
    original.write_bytes(whole)
    refusal = None
    try:
        block = nl.load_model(path)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(path) in refusal
        assert len(refusal) < 3000
        return
    expected = nl.load_model(original)
    assert type(block) is type(expected)
    assert {n: (t.shape, t.dtype) for n, t in block.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in expected.state_dict().items()
    }
    if kind != "bytes":
        for key, tensor in block.state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[key]), f"{key} changed by {kind}"


def mutate(data: st.DataObject, whole: bytes) -> tuple[bytes, str]:
    kind = data.draw(st.sampled_from(["cut", "bytes", "bytes", "bytes", "tail", "drop"]))
    place = data.draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        return whole[:place], kind
    if kind == "tail":
        return whole + data.draw(st.binary(min_size=1, max_size=64)), kind
    if kind == "drop":
        # from the start: a pickle or zip without its head; in the middle it could remove whole numbers
        return whole[1 + place % 16 :], kind
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed), kind


class Call:
    """Pickles as a call of a function, the classic attack."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def _text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def array(
    shape: bytes = b"J\x02\x00\x00\x00", code: str = "f4", raw: bytes = b"T\x08\x00\x00\x00" + bytes(8)
) -> bytes:
    """One pickled array as it should be, or with a part replaced."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _text("b") + b"\x87R"
        b"(K\x01(" + shape + b"tcnumpy\ndtype\n" + _text(code) + b"K\x00K\x01\x87R"
        b"(K\x03" + _text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + raw + b"tb"
    )


def _named(content: bytes) -> bytes:
    return b"\x80\x02}(" + _text("conv1_w") + content + b"u."


HOSTILE_PICKLES: dict[str, tuple[bytes, str]] = {
    "os.system": (b"\x80\x02cos\nsystem\n" + _text("touch sprung") + b"\x85R.", "it names os.system"),
    "eval": (b"\x80\x02cbuiltins\neval\n" + _text("open('sprung','w')") + b"\x85R.", "names builtins.eval"),
    "stack global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch sprung\x85R.", "names os.system"),
    "inst": (b"(" + _text("touch sprung") + b"ios\nsystem\n.", "opcode b'i'"),
    "obj": (b"\x80\x02(cos\nsystem\n" + _text("touch sprung") + b"o.", "names os.system"),
    "newobj": (b"\x80\x02cnumpy\nndarray\n)\x81.", r"opcode b'\\x81'"),
    "extension": (b"\x80\x02\x82\x01.", "opcode"),
    "persistent": (b"\x80\x02U\x01xQ.", "opcode b'Q'"),
    "runstring": (b"\x80\x02cnumpy.testing\nrunstring\n.", "names numpy.testing.runstring"),
    "dotted name": (
        b"\x80\x04\x8c\x05numpy\x8c\x13core.multiarray.sys\x93.",
        "names numpy.core.multiarray.sys",
    ),
    "another class": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87R.",
        "calls reconstruct with arguments that no array needs",
    ),
    "encode by rot13": (b"\x80\x02c_codecs\nencode\nU\x01aU\x05rot13\x86R.", "calls encode with arguments"),
    "huge memo": (b"\x80\x02}r\xff\xff\xff\xff.", "holds a dict|no arrays"),
    "huge string": (
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
        "announces 1152921504606846976 bytes",
    ),
    "negative string": (b"\x80\x02T\xff\xff\xff\xff.", "announces -1 bytes"),
    "huge shape": (
        _named(array(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f")),
        "needs 18446744056529682436 bytes and has 8",
    ),
    "negative shape": (_named(array(b"J\xff\xff\xff\xff")), "shape is not a tuple of sizes"),
    "objects": (_named(array(code="O8")), "dtype 'O8'"),
    "strings": (_named(array(code="S4")), "dtype 'S4'"),
    "empty lists": (b"\x80\x02" + b"]" * 2_000_100 + b".", "more than 2000000 steps"),
    "thousands of names for one array": (
        b"\x80\x02"
        + array(b"J\x00\x00\x08\x00", raw=b"T\x00\x00\x20\x00" + bytes(1 << 21))
        + b"q\x010}("
        + b"".join(_text(f"w{n}") + b"h\x01" for n in range(2000))
        + b"u.",
        "arrays are larger than the file",
    ),
    "array without a state": (
        _named(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"),
        "never described",
    ),
    "itself": (b"\x80\x02}q\x00(U\x01ah\x00u.", "no arrays"),
    "stack underflow": (b"\x80\x020000.", "a mark that is not there|a value that is not there"),
}


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickles(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, message = HOSTILE_PICKLES[name]
    refused_quietly(content, message, tmp_path, monkeypatch)


def refused_quietly(
    content: bytes, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str = ".pkl"
) -> None:
    """An error with the path and the reason; no file written, no memory taken."""
    monkeypatch.chdir(folder)
    path = folder / f"hostile{suffix}"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as caught:
        nl.load_model(path)
    assert str(path) in str(caught.value)
    assert [file.name for file in folder.iterdir()] == [path.name]
    if len(content) < 1 << 20:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "in kB"


def test_hostile_torch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = {"w": torch.ones(2), "x": Call(os.system, "touch sprung")}
    for new in (True, False):
        torch.save(evil, tmp_path / "file", _use_new_zipfile_serialization=new)
        content = (tmp_path / "file").read_bytes()
        (tmp_path / "file").unlink()
        refused_quietly(content, r"system.*state dict alone", tmp_path, monkeypatch, ".pth")
        (tmp_path / "hostile.pth").unlink()
    torch.save({"w": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "file").unlink()
    refused_quietly(
        content, r"w of shape \(1048576, 1048576\) is larger than the file", tmp_path, monkeypatch, ".pth"
    )


def test_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data/0", bytes(1 << 27))
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "file").unlink()
    refused_quietly(content, "is a compressed zip file", tmp_path, monkeypatch, ".pth")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 73)
        + b'{"w":{"dtype":"F32","shape":[9999999999,99999],"data_offsets":[0,4]}}    '
        + bytes(4),
    ],
)
def test_hostile_safetensors(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused_quietly(content, "safetensors|no layout", tmp_path, monkeypatch, ".safetensors")


def test_a_model_is_as_it_was_after_a_broken_file(tmp_path: Path) -> None:
    model = create_model("c2d_tiny_nl1", num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    nl.save_model(model, tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    for place in (4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "m.safetensors").write_bytes(whole[:place])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load_weights(model, tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_python_3_pickles_of_every_protocol_are_read(tmp_path: Path) -> None:
    """People read the authors' files and save them again."""
    state = {name: tensor.numpy() for name, tensor in caffe2_block().items()}
    state["big_endian_w"] = state["nonlocal_conv3_1_g_w"].astype(">f4")
    state["columns_w"] = torch.randn(70, 80).numpy().T
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps(state, protocol=protocol))
        read = read_state_dict(tmp_path / "m.pkl")
        assert set(read) == set(state)
        for name, tensor in read.items():
            assert torch.equal(tensor, torch.from_numpy(state[name].astype("f4"))), (protocol, name)
            assert tensor.is_contiguous()


def test_a_zip_whose_directory_leads_nowhere_is_refused(whole_files: dict[str, bytes], scratch: Path) -> None:
    """Each byte of the pointer to the zip's directory in turn: offsets out of the file, several disks."""
    whole = whole_files["zip.pth"]
    path = scratch / "directory.pth"
    path.write_bytes(whole)
    expected = nl.load_model(path).state_dict()
    refused: list[tuple[int, bool]] = []
    for byte in range(20):
        content = bytearray(whole)
        content[whole.index(b"PK\x06\x07") + byte] ^= 0xFF
        path.write_bytes(bytes(content))
        try:
            state = nl.load_model(path).state_dict()
        except ValueError as error:
            refused.append((byte, str(path) in str(error)))
        else:  # the zip has a second pointer, which is then followed
            assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert set(refused) >= {(byte, True) for byte in (16, 17, 18, 19)}  # the number of disks
    assert all(named for _, named in refused)
