"""Our own checkpoint file: safetensors, with what describes the network in its header; no code to run.

>>> import tempfile, torch
>>> from pathlib import Path
>>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
>>> write_checkpoint(path, {"fc.weight": torch.ones(2, 3)}, {"spec": "...", "classes": ["hug", "kick"]})
>>> tensors, header = read_checkpoint(path)
>>> tensors["fc.weight"].shape, header["classes"]
(torch.Size([2, 3]), ['hug', 'kick'])
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nonlocal_nn._files import utf8_path, write_whole

MODEL_FILE = "model.safetensors"
"""The finished model in a run folder."""

# One entry holds all: safetensors keeps no order among several, and equal models should give equal files.
_HEADER = "nonlocal_nn"


def write_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a header (anything JSON can hold) to `path`, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_HEADER: json.dumps(dict(header), sort_keys=True)}
    write_whole(Path(path), lambda partial: save_file(plain, utf8_path(partial), metadata=metadata))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write_checkpoint` wrote, or of the run folder it is in.

    Raises:
        FileNotFoundError: no such file, or a folder without model.safetensors.
        ValueError: the file is damaged, is no safetensors file, or was not written by this library.
    """
    path = checkpoint_file(path)
    tensors, header = read_any_checkpoint(path)
    if header is None:
        raise ValueError(
            f"{path} is a safetensors file, but its header has no {_HEADER!r} entry that names its "
            "network; it was not written by save_model"
        )
    return tensors, header


def read_any_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors and header of any safetensors file; no header if this library did not write it.

    Raises:
        ValueError: as `read_checkpoint`.
    """
    try:
        with safe_open(utf8_path(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if _HEADER not in metadata:
        return tensors, None
    try:
        header = json.loads(metadata[_HEADER])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: the {_HEADER!r} entry of its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the {_HEADER!r} entry of its header must be a JSON object")
    return tensors, header


def checkpoint_file(path: str | Path) -> Path:
    """The file itself, or the model.safetensors of a run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            raise FileNotFoundError(
                f"{path} holds no {MODEL_FILE}: it is no run folder, or its run is not finished"
            )
        return path / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a .safetensors file or a run folder")
    return path
