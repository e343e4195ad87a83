"""Arrays as the pickle that Python 2 would write of them: byte strings, protocol 2, old names of numpy.

Python 3 writes text for names and numpy's new module paths, which Caffe2's own code cannot read.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_KINDS = "fiub"


def write_arrays(
    path: str | Path, arrays: Mapping[str, np.ndarray[Any, Any]], key: str | None = None
) -> None:
    """Write arrays by name, as Python 2 would, so that Caffe2's own code reads them.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.pkl"
    >>> write_arrays(path, {"conv1_w": np.ones((2, 3), dtype="f4")}, key="blobs")
    >>> with path.open("rb") as file:
    ...     pickle.load(file, encoding="latin1")["blobs"]["conv1_w"].shape
    (2, 3)

    key: the entry of an outer dictionary that holds them, such as "blobs"; None: no outer dictionary.
    """
    with Path(path).open("wb") as file:
        file.write(pickle.PROTO + b"\x02")
        if key is not None:
            file.write(pickle.EMPTY_DICT + _string(key.encode("ascii")))
        file.write(pickle.EMPTY_DICT)
        for name, array in arrays.items():
            file.write(_string(name.encode("ascii")))
            _write_array(file, np.ascontiguousarray(array).reshape(array.shape))
            file.write(pickle.SETITEM)
        file.write((pickle.SETITEM if key is not None else b"") + pickle.STOP)


def _write_array(file: BinaryIO, array: np.ndarray[Any, Any]) -> None:
    code = array.dtype.str.lstrip("<>=|")
    if array.dtype.kind not in _KINDS or array.nbytes >= 1 << 31:
        raise ValueError(f"an array of dtype {array.dtype} and {array.nbytes} bytes cannot be written")
    order = ">" if array.dtype.str.startswith(">") else "|" if array.dtype.itemsize == 1 else "<"
    file.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
    file.write(pickle.GLOBAL + b"numpy\nndarray\n" + _integer(0) + pickle.TUPLE1 + _string(b"b"))
    file.write(pickle.TUPLE3 + pickle.REDUCE)
    file.write(pickle.MARK + _integer(1) + pickle.MARK)
    for size in array.shape:
        file.write(_integer(size))
    file.write(pickle.TUPLE + pickle.GLOBAL + b"numpy\ndtype\n" + _string(code.encode("ascii")))
    file.write(pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3 + pickle.REDUCE)
    file.write(pickle.MARK + _integer(3) + _string(order.encode("ascii")) + pickle.NONE * 3)
    file.write(_integer(-1) + _integer(-1) + _integer(0) + pickle.TUPLE + pickle.BUILD)
    file.write(pickle.NEWFALSE + pickle.BINSTRING + struct.pack("<i", array.nbytes))
    file.write(array.reshape(-1).view(np.uint8).data if array.size else b"")
    file.write(pickle.TUPLE + pickle.BUILD)


def _string(raw: bytes) -> bytes:
    return pickle.SHORT_BINSTRING + struct.pack("<B", len(raw)) + raw


def _integer(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)
