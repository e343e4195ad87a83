"""Pickles of numpy arrays, as Caffe2 models are, read without running anything.

A pickle is a program. Python's own reader calls whatever that program names; the reader here is a machine of
its own that knows numbers, strings, lists, tuples, dictionaries and the handful of names numpy's arrays are
made of. It imports nothing and calls nothing, so a file that names anything else is refused, not run.

>>> import tempfile
>>> from pathlib import Path
>>> path = Path(tempfile.mkdtemp()) / "model.pkl"
>>> with path.open("wb") as file:
...     pickle.dump({"conv1_w": np.ones((2, 3), dtype="f4")}, file, protocol=2)
>>> arrays = find_arrays(read_pickle(path), path)
>>> arrays["conv1_w"].shape, arrays["conv1_w"].read(path).sum()
((2, 3), np.float32(6.0))

Sizes are bounded by the file: an array is its shape and the place of its bytes in the file, and the two must
agree before a byte is read or memory taken. The bytes are read once, into the array, when they are wanted.
"""

from __future__ import annotations

import codecs
import math
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAX_STEPS = 2_000_000
"""A model of ten thousand arrays takes a quarter of this; a bomb of empty lists takes more."""

_SMALL = 1 << 12  # longer byte strings stay in the file until an array wants them
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: dict[str, str] = {
    **{f"{module}._reconstruct": "reconstruct" for module in _MODULES},
    **{f"{module}.scalar": "scalar" for module in _MODULES},
    "numpy.core.numeric._frombuffer": "frombuffer",
    "numpy._core.numeric._frombuffer": "frombuffer",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",
    "__builtin__.bytes": "bytes",
    "builtins.bytes": "bytes",
    "collections.OrderedDict": "OrderedDict",
}
_DTYPES = {
    f"{kind}{size}" for kind, sizes in {"f": "248", "i": "1248", "u": "1248"}.items() for size in sizes
}
_DTYPES.add("b1")


class PickleError(ValueError):
    """What is wrong with a pickle, without the path."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that the pickle mentions; it stands for itself and is never looked up."""

    kind: str


@dataclass(frozen=True, slots=True)
class _Span:
    """A long byte string that is still in the file. `utf8`: latin1 text written as UTF-8 (Python 3 does)."""

    offset: int
    length: int
    utf8: bool = False


class _Type:
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
        self._bytes: bytes | _Span | None = None
        self._fortran = False

    def describe(self, shape: object, dtype: object, fortran: object, raw: object) -> None:
        if not isinstance(shape, tuple) or len(shape) > 32 or not all(_is_size(size) for size in shape):
            raise PickleError("it describes an array whose shape is not a tuple of sizes")
        if not isinstance(dtype, _Type):
            raise PickleError("it describes an array without a plain numeric dtype")
        if not isinstance(raw, (bytes, _Span)):
            raise PickleError("it describes an array whose values are not a string of bytes")
        self.shape, self.dtype, self._bytes, self._fortran = shape, dtype.numpy(), raw, bool(fortran)
        length = raw.length if isinstance(raw, _Span) else len(raw)
        wanted = math.prod(shape) * self.dtype.itemsize
        # As UTF-8 a byte of latin1 takes one or two; the exact length is seen when the bytes are read.
        most = 2 * wanted if isinstance(raw, _Span) and raw.utf8 else wanted
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
        if isinstance(self._bytes, _Span):
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


def read_pickle(path: str | Path) -> Any:
    """What the pickle describes; every array in it is a `PickledArray`.

    Raises:
        PickleError: it is cut off, is no pickle, or names something that arrays are not made of.
    """
    with Path(path).open("rb") as file:
        return _Machine(file, os.fstat(file.fileno()).st_size).run()


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


class _Machine:
    """The pickle machine: a stack, a memo, and one step for each opcode."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        steps = _STEPS
        for _ in range(MAX_STEPS):
            opcode = self.file.read(1)
            if not opcode:
                raise PickleError("it ends before it is complete")
            if opcode == pickle.STOP:
                return self.pop()
            step = steps.get(opcode)
            if step is None:
                raise PickleError(f"it has opcode {opcode!r}, which no file of arrays needs")
            step(self)
        raise PickleError(f"it takes more than {MAX_STEPS} steps")

    def take(self, count: int) -> bytes:
        if count < 0 or count > self.size - self.file.tell():
            raise PickleError(f"it announces {count} bytes where the file has fewer left")
        return self.file.read(count)

    def number(self, code: str) -> int:
        value: int = struct.unpack(code, self.take(struct.calcsize(code)))[0]
        return value

    def line(self) -> bytes:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise PickleError("it ends inside a line")
        return line[:-1]

    def span(self, count: int, utf8: bool = False) -> _Span:
        offset = self.file.tell()
        if count < 0 or count > self.size - offset:
            raise PickleError(f"it announces {count} bytes where the file has fewer left")
        self.file.seek(offset + count)
        return _Span(offset, count, utf8)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("its program takes a value that is not there")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    def above_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("its program takes a mark that is not there")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError(f"its program recalls value {index}, which it never kept")
        self.push(self.memo[index])

    def bytestring(self, count: int) -> None:
        """Python 2's str, Python 3's bytes: text where it is short, else it stays in the file."""
        self.push(self.take(count).decode("latin1") if count <= _SMALL else self.span(count))

    def text(self, count: int) -> None:
        if count > _SMALL:
            self.push(self.span(count, utf8=True))
            return
        try:
            self.push(self.take(count).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise PickleError("it has text that is not UTF-8") from error

    def integer(self, raw: bytes, base10: bool) -> None:
        if len(raw) > 20:
            raise PickleError(f"it has a whole number of {len(raw)} bytes or digits")
        try:
            self.push(int(raw.rstrip(b"L")) if base10 else int.from_bytes(raw, "little", signed=True))
        except ValueError as error:
            raise PickleError(f"{raw!r} is not a whole number") from error

    def named(self, module: object, name: object) -> None:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise PickleError(
                f"it names {full[:100]}, which no weights need; reading it as Python does could run code, so "
                "it is not read"
            )
        self.push(_Name(_ALLOWED[full]))

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("its program sets entries of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise PickleError(f"it has a dictionary with a {type(key).__name__} as a key")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise PickleError("its program appends to something that is no list")
        target.extend(items)

    def reduce(self) -> None:
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise PickleError("its program calls something that has no name")
        match name.kind, arguments:
            case "reconstruct", (_Name("ndarray"), tuple(), _):
                self.push(PickledArray())
            case "dtype", (str(code), *_) if code.lstrip("<>=|") in _DTYPES:
                made = _Type(code.lstrip("<>=|"))
                made.order = ">" if code.startswith(">") else "<"
                self.push(made)
            case "dtype", (code, *_):
                raise PickleError(f"it has an array of dtype {str(code)[:40]!r}; weights are plain numbers")
            case "encode", (str() | _Span() as text, "latin1" | "latin-1"):
                self.push(text)
            case "bytes", ():
                self.push("")
            case "scalar", (_Type(), str() as raw):
                self.push(_array((), arguments[0], False, raw))
            case "frombuffer", (str() | _Span() as raw, _Type() as dtype, tuple() as shape, str(order)):
                self.push(_array(shape, dtype, order == "F", raw))
            case "OrderedDict", ():
                self.push({})
            case "OrderedDict", (list(pairs),) if all(
                isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs
            ):
                self.push({})
                self.set_items([value for pair in pairs for value in pair])
            case _:
                raise PickleError(f"it calls {name.kind} with arguments that no array needs")

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, PickledArray) and isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, fortran, raw = state
            target.describe(shape, dtype, fortran, _as_bytes(raw))
        elif isinstance(target, _Type) and isinstance(state, tuple) and len(state) >= 2:
            if state[1] not in ("<", ">", "|", "="):
                raise PickleError("it has a dtype without a byte order")
            if any(part not in (None, -1, 0, ()) for part in state[2:7]):
                raise PickleError("it has a dtype with fields; weights are plain numbers")
            target.order = ">" if state[1] == ">" else "<"
        else:
            raise PickleError("its program sets the state of something that is no array")


def _array(shape: object, dtype: object, fortran: bool, raw: object) -> PickledArray:
    array = PickledArray()
    array.describe(shape, dtype, fortran, _as_bytes(raw))
    return array


def _as_bytes(raw: object) -> object:
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


def _quoted(machine: _Machine) -> None:
    line = machine.line().strip()
    if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
        raise PickleError("it has a string without quotes")
    try:
        machine.push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))
    except ValueError as error:
        raise PickleError("it has a string with a broken escape") from error


def _unicode_line(machine: _Machine) -> None:
    try:
        machine.push(machine.line().decode("raw-unicode-escape"))
    except UnicodeDecodeError as error:
        raise PickleError("it has text with a broken escape") from error


def _int_line(machine: _Machine) -> None:
    line = machine.line()
    if line in (b"00", b"01"):
        machine.push(line == b"01")
    else:
        machine.integer(line, base10=True)


def _float_line(machine: _Machine) -> None:
    try:
        machine.push(float(machine.line()))
    except ValueError as error:
        raise PickleError("it has a number that cannot be read") from error


def _take_tuple(count: int) -> Any:
    def step(m: _Machine) -> None:
        values = [m.pop() for _ in range(count)][::-1]
        m.push(tuple(values))

    return step


def _dict(m: _Machine) -> None:
    items = m.above_mark()
    m.push({})
    m.set_items(items)


def _remember(m: _Machine, index: int) -> None:
    m.memo[index] = m.top()


def _names(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    m.named(module, name)


def _global(m: _Machine) -> None:
    module = m.line().decode("latin1")
    m.named(module, m.line().decode("latin1"))


def _set_item(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _decimal(line: bytes) -> int:
    if not line.isdigit() or len(line) > 9:
        raise PickleError(f"{line[:20]!r} is not a memo number")
    return int(line)


_STEPS: dict[bytes, Any] = {
    pickle.PROTO: lambda m: m.take(1),
    pickle.FRAME: lambda m: m.take(8),
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.POP: lambda m: m.pop() if m.stack[m.marks[-1] if m.marks else 0 :] else m.above_mark(),
    pickle.POP_MARK: lambda m: m.above_mark(),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.INT: _int_line,
    pickle.LONG: lambda m: m.integer(m.line(), base10=True),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.integer(m.take(m.number("<B")), base10=False),
    pickle.LONG4: lambda m: m.integer(m.take(m.number("<i")), base10=False),
    pickle.FLOAT: _float_line,
    pickle.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    pickle.STRING: _quoted,
    pickle.SHORT_BINSTRING: lambda m: m.bytestring(m.number("<B")),
    pickle.BINSTRING: lambda m: m.bytestring(m.number("<i")),
    pickle.SHORT_BINBYTES: lambda m: m.bytestring(m.number("<B")),
    pickle.BINBYTES: lambda m: m.bytestring(m.number("<I")),
    pickle.BINBYTES8: lambda m: m.bytestring(m.number("<Q")),
    pickle.BYTEARRAY8: lambda m: m.bytestring(m.number("<Q")),
    pickle.UNICODE: _unicode_line,
    pickle.SHORT_BINUNICODE: lambda m: m.text(m.number("<B")),
    pickle.BINUNICODE: lambda m: m.text(m.number("<I")),
    pickle.BINUNICODE8: lambda m: m.text(m.number("<Q")),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.LIST: lambda m: m.push(m.above_mark()),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.above_mark()),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE: lambda m: m.push(tuple(m.above_mark())),
    pickle.TUPLE1: _take_tuple(1),
    pickle.TUPLE2: _take_tuple(2),
    pickle.TUPLE3: _take_tuple(3),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.DICT: _dict,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: lambda m: m.set_items(m.above_mark()),
    pickle.PUT: lambda m: _remember(m, _decimal(m.line())),
    pickle.BINPUT: lambda m: _remember(m, m.number("<B")),
    pickle.LONG_BINPUT: lambda m: _remember(m, m.number("<I")),
    pickle.MEMOIZE: lambda m: _remember(m, len(m.memo)),
    pickle.GET: lambda m: m.recall(_decimal(m.line())),
    pickle.BINGET: lambda m: m.recall(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _names,
    pickle.REDUCE: lambda m: m.reduce(),
    pickle.BUILD: lambda m: m.build(),
}
