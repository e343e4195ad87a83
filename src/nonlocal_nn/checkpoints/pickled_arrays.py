"""Numpy arrays in pickle files, as Caffe2 keeps its models: read late, and written as Python 2 would.

Reading: an array is its shape and the place of its bytes in the file until its values are wanted. The two
must agree before a byte is read or memory taken; the bytes are read once, into the array.

Writing: byte strings, protocol 2 and numpy's old module names. Python 3's own pickle has text for names and
numpy's new modules, which Caffe2's code cannot read.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PLAIN_TYPES = {
    f"{kind}{size}" for kind, sizes in {"f": "248", "i": "1248", "u": "1248"}.items() for size in sizes
}
PLAIN_TYPES.add("b1")

_WRITTEN_KINDS = "fiub"


class PickleError(ValueError):
    """What is wrong with a pickle, without the path."""


@dataclass(frozen=True, slots=True)
class Span:
    """A long byte string that is still in the file. `utf8`: latin1 text written as UTF-8 (Python 3 does)."""

    offset: int
    length: int
    utf8: bool = False


class ArrayType:
    """A numpy dtype being described: first its code, then its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code if self.code != "b1" else "?")


class PickledArray:
    """An array that is still in its file: shape, dtype, and where its bytes are."""

    __slots__ = ("_bytes", "_fortran", "dtype", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype("<f4")
        self._bytes: bytes | Span | None = None
        self._fortran = False

    def describe(self, shape: object, dtype: object, fortran: object, raw: object) -> None:
        if not isinstance(shape, tuple) or len(shape) > 32 or not all(_is_size(size) for size in shape):
            raise PickleError("it describes an array whose shape is not a tuple of sizes")
        if not isinstance(dtype, ArrayType):
            raise PickleError("it describes an array without a plain numeric dtype")
        if not isinstance(raw, (bytes, Span)):
            raise PickleError("it describes an array whose values are not a string of bytes")
        self.shape, self.dtype, self._bytes, self._fortran = shape, dtype.numpy(), raw, bool(fortran)
        length = raw.length if isinstance(raw, Span) else len(raw)
        wanted = math.prod(shape) * self.dtype.itemsize
        # As UTF-8 a byte of latin1 takes one or two; the exact length is seen when the bytes are read.
        most = 2 * wanted if isinstance(raw, Span) and raw.utf8 else wanted
        if not wanted <= length <= most:
            raise PickleError(f"an array of shape {shape} needs {wanted} bytes and has {length}")

    def read(self, path: str | Path) -> np.ndarray[Any, Any]:
        """The values, in the machine's byte order, in memory of their own.

        Raises:
            PickleError: the file no longer holds them, or never did.
        """
        if self._bytes is None:
            raise PickleError("it has an array that is named but never described")
        native = self.dtype.newbyteorder("=")
        array = np.empty(self.shape[::-1] if self._fortran else self.shape, dtype=self.dtype)
        if isinstance(self._bytes, Span):
            with Path(path).open("rb") as file:
                file.seek(self._bytes.offset)
                if self._bytes.utf8:
                    raw = _latin1(file.read(self._bytes.length))
                    _fill(array, raw)
                elif array.size and file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                    raise PickleError("the file ends inside an array")
        else:
            _fill(array, self._bytes)
        return (array.T if self._fortran else array).astype(native, order="C", copy=False)


def find_arrays(content: Any, path: str | Path) -> dict[str, PickledArray]:
    """The arrays by name, those of the entry "blobs" where there is one (Caffe2).

    Raises:
        PickleError: there are none.
    """
    if isinstance(content, dict) and isinstance(content.get("blobs"), dict):
        content = content["blobs"]
    if not isinstance(content, dict):
        raise PickleError(f"it holds a {type(content).__name__}, not a dictionary of arrays by name")
    arrays = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, PickledArray)}
    if not arrays:
        raise PickleError(f"no arrays are in {Path(path).name}")
    return arrays


def described_array(shape: object, dtype: object, fortran: bool, raw: object) -> PickledArray:
    array = PickledArray()
    array.describe(shape, dtype, fortran, as_bytes(raw))
    return array


def as_bytes(raw: object) -> object:
    if not isinstance(raw, str):
        return raw
    try:
        return raw.encode("latin1")
    except UnicodeEncodeError as error:
        raise PickleError("it has an array whose values are text, not bytes") from error


def _latin1(raw: bytes) -> bytes:
    try:
        return raw.decode("utf-8").encode("latin1")
    except UnicodeError as error:
        raise PickleError("it has an array whose values are text, not bytes") from error


def _fill(array: np.ndarray[Any, Any], raw: bytes) -> None:
    if len(raw) != array.nbytes:
        raise PickleError(f"an array of shape {array.shape} needs {array.nbytes} bytes and has {len(raw)}")
    array[...] = np.frombuffer(raw, dtype=array.dtype).reshape(array.shape)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 48


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
    if array.dtype.kind not in _WRITTEN_KINDS or array.nbytes >= 1 << 31:
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
