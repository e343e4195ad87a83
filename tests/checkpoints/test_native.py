"""Our checkpoint file: there and back, whole or not at all, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nonlocal_nn.checkpoints import native
from nonlocal_nn.checkpoints.native import read_checkpoint, write_checkpoint

TENSORS = {"a": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7)}


def test_tensors_and_header_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "m.safetensors"
    turned = torch.arange(6.0).view(2, 3).T  # not contiguous
    write_checkpoint(path, TENSORS | {"turned": turned}, {"classes": ["é", "b"], "none": None})
    tensors, header = read_checkpoint(path)
    assert header == {"classes": ["é", "b"], "none": None}
    assert set(tensors) == {"a", "steps", "turned"}
    assert torch.equal(tensors["turned"], turned)
    assert tensors["steps"].dtype == torch.int64
    assert [file.name for file in path.parent.iterdir()] == ["m.safetensors"]


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, TENSORS, {"z": 1, "a": 2})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    write_checkpoint(path, TENSORS, {"version": "old"})

    def full_disk(tensors: object, file: str, metadata: object) -> None:
        Path(file).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(native, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(path, TENSORS, {"version": "new"})
    assert read_checkpoint(path)[1] == {"version": "old"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors: it is no run folder, or"):
        read_checkpoint(tmp_path)
    write_checkpoint(tmp_path / "model.safetensors", TENSORS, {"from": "run"})
    assert read_checkpoint(tmp_path)[1] == {"from": "run"}


def test_what_is_not_our_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file; give a .safetensors file or a run folder"):
        read_checkpoint(tmp_path / "absent.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("hello, this is not a model")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_checkpoint(text)
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    write_checkpoint(whole, TENSORS, {})
    cut.write_bytes(whole.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_checkpoint(cut)
    cut.write_bytes(b"")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_checkpoint(cut)
    save_file(TENSORS, whole)
    with pytest.raises(ValueError, match="was not written by save_model"):
        read_checkpoint(whole)
    for header in ("{", json.dumps([1])):
        save_file(TENSORS, whole, metadata={"nonlocal_nn": header})
        with pytest.raises(ValueError, match="of its header"):
            read_checkpoint(whole)
