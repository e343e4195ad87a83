"""State dicts from files, by readers that cannot run code.

What a file is, its first bytes say, not its name: a zip or pickle of torch.save, safetensors, or a Python 2
pickle of numpy arrays (Caffe2).
"""

from __future__ import annotations

import math
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nonlocal_nn._files import BLOCK_OPTIONS_KEY, utf8_path
from nonlocal_nn.checkpoints.pickle_machine import read_pickle
from nonlocal_nn.checkpoints.pickled_arrays import PickledArray, PickleError, find_arrays

# Keys under which a checkpoint keeps the weights, beside the optimizer's state and such; averaged weights
# (EMA) are taken only where there are no others.
_WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "net", "network", "weights", "params")
_AVERAGED = ("params_ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema")
# What DataParallel, torch.compile, DeepSpeed and FSDP put into names.
_WRAPPED = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.")

# A pickle of torch.save before its zip files starts with this number.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Caffe2 keeps the optimiser's state among the weights.
_NOT_WEIGHTS = ("_momentum", "_momentum_1", "_adagrad_sq_sum")
_NOT_WEIGHT_NAMES = ("lr", "model_iter", "optimizer_iteration")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt, .pyth, .pkl or .safetensors file by name, on the CPU.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "resnet.pth"
    >>> torch.save({"state_dict": {"module.fc.bias": torch.zeros(3)}}, path)
    >>> list(read_state_dict(path))
    ['fc.bias']

    A dictionary around them ("state_dict", "model", "model_state", "blobs") and DataParallel's prefix
    "module." are taken off; the optimiser's state that Caffe2 keeps beside the weights is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read without running code, is damaged, holds no tensors, or tensors larger
            than the file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file of weights")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    kind = _kind(path)
    if kind == "pickle":
        tensors = _read_arrays(path)
    else:
        tensors = _tensors(_read_safetensors(path) if kind == "safetensors" else _read_torch(path), path)
    return _checked(tensors, path)


def is_safetensors(path: str | Path) -> bool:
    """Whether the file is one, by its first bytes or, as it may be damaged, by its name."""
    return _kind(Path(path)) == "safetensors"


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PK\x03\x04") or start.startswith(_OLD_TORCH):
        return "torch"
    if path.suffix == ".safetensors" or (
        len(start) > 8 and struct.unpack("<Q", start[:8])[0] < path.stat().st_size and start[8:9] == b"{"
    ):
        return "safetensors"
    return "pickle" if start[:1] in (b"\x80", b"(", b"}") else "torch"


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(utf8_path(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, or is not a file of torch.save; reading it could run "
            f"code, so it is not read ({_refused(error)}). Save the state dict alone: "
            "torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # a damaged file can end in any error the reader's byte code meets
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the system's error about the file itself; without a name, a wrong offset in it
        raise ValueError(f"{path} is damaged or not a file of torch.save: {_first_line(error)}") from error


def _check_zip(path: Path) -> None:
    """torch.save does not compress: what would unpack to more than the file is a zip bomb."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError):
        return  # torch's own reader says what is wrong with it
    size = path.stat().st_size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"{path} is a compressed zip file; torch.save makes none, so it is not read")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError(f"{path} announces contents larger than the file; it is damaged or hostile")


def _read_arrays(path: Path) -> dict[str, Tensor]:
    try:
        found = find_arrays(read_pickle(path), path)
        wanted = {name: array for name, array in found.items() if not _is_optimizer_state(name)}
        size = sum(math.prod(array.shape) * array.dtype.itemsize for array in wanted.values())
        if size > _most_bytes(path):
            raise PickleError("its arrays are larger than the file; it is damaged or hostile")
        return {name: _to_tensor(array, path) for name, array in wanted.items()}
    except PickleError as error:
        raise ValueError(f"{path} cannot be read as a pickle of arrays: {error}") from error
    except (ValueError, MemoryError, OverflowError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from error


def _is_optimizer_state(name: str) -> bool:
    return name in _NOT_WEIGHT_NAMES or name.endswith(_NOT_WEIGHTS)


def _to_tensor(array: PickledArray, path: Path) -> Tensor:
    values = array.read(path)
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:
        values = values.astype("i8")  # torch computes little with wide unsigned numbers; no weight is one
    return torch.from_numpy(values)


class StateDict(dict[str, Tensor]):
    """Tensors by name, and what the state dict said of our own blocks.

    Attributes:
        block_options: by the name of a block, what `NonLocalBlock.header` gave when it was saved.
    """

    def __init__(self, tensors: Mapping[str, Tensor], block_options: Mapping[str, Any]) -> None:
        super().__init__(tensors)
        self.block_options = dict(block_options)


def without_first_name(state: StateDict | Mapping[str, Tensor]) -> StateDict | None:
    """The state dict without the first part of all names, if it is the same in all; else None.

    >>> list(without_first_name(StateDict({"net.fc.weight": torch.zeros(1)}, {})))
    ['fc.weight']
    """
    firsts = {name.partition(".")[0] for name in state}
    if len(firsts) != 1 or not all("." in name for name in state):
        return None
    start = f"{firsts.pop()}."
    options = getattr(state, "block_options", {})
    return StateDict(
        {name.removeprefix(start): tensor for name, tensor in state.items()},
        {name.removeprefix(start): said for name, said in options.items()},
    )


def _weights_in(content: Any, path: Path) -> Any:
    """What lies inside the dictionaries around the weights, however many there are."""
    while isinstance(content, Mapping):
        inside = [key for key in (*_WRAPPERS, *_AVERAGED) if _may_hold_weights(content.get(key))]
        if not inside:
            break
        if len(inside) > 1:
            warnings.warn(
                f"{path} holds several sets of weights, {', '.join(inside)}; {inside[0]!r} is read",
                stacklevel=5,
            )
        content = content[inside[0]]
    return content


def _may_hold_weights(content: Any) -> bool:
    return isinstance(content, Mapping) and any(isinstance(x, Tensor | Mapping) for x in content.values())


def _plain_name(name: str) -> str:
    """The name without what wrappers put into it, at its start or within."""
    for part in _WRAPPED[1:]:
        name = name.replace(part, "")
    return name


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    content = _weights_in(content, path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors by name")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors; its keys are {', '.join(map(str, list(content)[:8]))}")
    about = getattr(content, "_metadata", None)
    options = {
        str(name): said[BLOCK_OPTIONS_KEY]
        for name, said in (about.items() if isinstance(about, Mapping) else ())
        if isinstance(said, Mapping) and isinstance(said.get(BLOCK_OPTIONS_KEY), Mapping)
    }
    tensors = _renamed(tensors, path)
    options = {_plain_name(f"{name}."): said for name, said in options.items()}
    while all(name.startswith(_WRAPPED[0]) for name in tensors):
        tensors = {name.removeprefix(_WRAPPED[0]): tensor for name, tensor in tensors.items()}
        options = {name.removeprefix(_WRAPPED[0]): said for name, said in options.items()}
    return StateDict(tensors, {name.removesuffix("."): said for name, said in options.items()})


def _renamed(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if plain.setdefault(_plain_name(name), tensor) is not tensor:
            raise ValueError(
                f"{path}: two tensors are {_plain_name(name)} without what wrappers add to names"
            )
    return plain


def _checked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, if they are dense and no larger than the file can hold.

    A tensor's sizes and strides are only numbers in a file: one element, repeated by strides of 0, can claim
    to be a matrix that fills the memory as soon as it is copied.
    """
    room = _most_bytes(path)
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(f"{path}: tensor {name} is no dense array of plain numbers")
        size = math.prod(tensor.shape) * tensor.element_size()
        room -= size
        if size > tensor.untyped_storage().nbytes() or room < 0:
            raise ValueError(
                f"{path}: tensor {name} of shape {tuple(tensor.shape)} is larger than the file; "
                "it is damaged or hostile"
            )
    return tensors


def _most_bytes(path: Path) -> int:
    """What its tensors may take: a few names for one tensor are usual, thousands would fill the memory."""
    return 4 * path.stat().st_size + (1 << 20)


def _refused(error: BaseException) -> str:
    """The name that torch refused, from its long message."""
    text = str(error)
    for mark in ("GLOBAL ", "Unsupported global: GLOBAL ", "Unsupported class ", "Unsupported operand "):
        if mark in text:
            return f"it names {text.partition(mark)[2].split()[0]}"
    return _first_line(error)[:120]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
