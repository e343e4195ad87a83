"""Arrays still in a pickle file: what they are is known, their bytes stay there until they are wanted.

Sizes are bounded by the file: an array is its shape and the place of its bytes in the file, and the two must
agree before a byte is read or memory taken. The bytes are read once, into the array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PLAIN_TYPES = {
    f"{kind}{size}" for kind, sizes in {"f": "248", "i": "1248", "u": "1248"}.items() for size in sizes
}
PLAIN_TYPES.add("b1")


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
