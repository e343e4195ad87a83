"""Reading weights never runs code, and what is no state dict is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nonlocal_nn.checkpoints.safe_read import read_state_dict

STATE = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [STATE, {"state_dict": STATE, "epoch": 3}, {"model": {f"module.{name}": t for name, t in STATE.items()}}],
)
def test_reads_plain_and_wrapped_state_dicts(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    state = read_state_dict(tmp_path / "w.pth")
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())


def test_reads_the_old_format_and_safetensors(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "w.safetensors")
    assert (
        set(read_state_dict(tmp_path / "old.pth"))
        == set(read_state_dict(tmp_path / "w.safetensors"))
        == set(STATE)
    )


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("trap-was-sprung"),)


def test_code_in_a_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(1), "trap": Trap()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth holds more than tensors.*could run code"):
        read_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "trap-was-sprung").exists()


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        read_state_dict(tmp_path / "absent.pth")
    for name, content in {"text": b"hello", "empty": b"", "zip": b"PK\x03\x04broken"}.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.pth "):
            read_state_dict(path)
    path = tmp_path / "cut.pth"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut.pth is damaged"):
        read_state_dict(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        read_state_dict(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds no tensors; its keys are epoch"):
        read_state_dict(path)
    (tmp_path / "w.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_state_dict(tmp_path / "w.safetensors")
