"""State dicts from files, by readers that cannot run code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_WRAPPERS = ("state_dict", "model", "model_state")
_PREFIXES = ("module.",)  # DataParallel's


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file by name, on the CPU.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "resnet.pth"
    >>> torch.save({"state_dict": {"module.fc.bias": torch.zeros(3)}}, path)
    >>> list(read_state_dict(path))
    ['fc.bias']

    A dictionary around them ("state_dict", "model", "model_state") and DataParallel's prefix "module." are
    taken off.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read without running code, is damaged, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    content: Any
    if path.suffix == ".safetensors":
        try:
            content = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than tensors, or is not a file of torch.save; reading it could run "
                "code, so it is not read. Save the state dict alone: torch.save(model.state_dict(), ...)"
            ) from error
        except OSError:
            raise
        except Exception as error:  # a damaged file can end in any error the reader's byte code meets
            raise ValueError(
                f"{path} is damaged or not a file of torch.save: {_first_line(error)}"
            ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors by name")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors; its keys are {', '.join(map(str, list(content)[:8]))}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
