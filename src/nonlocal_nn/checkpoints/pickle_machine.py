"""Pickles of numpy arrays, as Caffe2 models are, read without running anything.

A pickle is a program. Python's own reader calls whatever that program names; the reader here is a machine of
its own that knows numbers, strings, lists, tuples, dictionaries and the handful of names numpy's arrays are
made of. It imports nothing and calls nothing, so a file that names anything else is refused, not run.

>>> import tempfile
>>> import numpy as np
>>> from pathlib import Path
>>> path = Path(tempfile.mkdtemp()) / "model.pkl"
>>> with path.open("wb") as file:
...     pickle.dump({"conv1_w": np.ones((2, 3), dtype="f4")}, file, protocol=2)
>>> from nonlocal_nn.checkpoints.pickled_arrays import find_arrays
>>> arrays = find_arrays(read_pickle(path), path)
>>> arrays["conv1_w"].shape, arrays["conv1_w"].read(path).sum()
((2, 3), np.float32(6.0))

No size in the file is trusted: the bytes must be there before memory is taken for it.
"""

from __future__ import annotations

import codecs
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nonlocal_nn.checkpoints.pickled_arrays import (
    PLAIN_TYPES,
    ArrayType,
    PickledArray,
    PickleError,
    Span,
    as_bytes,
    described_array,
)

MAX_STEPS = 2_000_000
"""A model of ten thousand arrays takes a quarter of this; a pickle bomb (millions of empty lists) more."""

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


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that the pickle mentions; it stands for itself and is never looked up."""

    kind: str


def read_pickle(path: str | Path) -> Any:
    """What the pickle describes; every array in it is a `PickledArray`.

    Raises:
        PickleError: it is cut off, is no pickle, or names something that arrays are not made of.
    """
    with Path(path).open("rb") as file:
        return _Machine(file, os.fstat(file.fileno()).st_size).run()


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

    def span(self, count: int, utf8: bool = False) -> Span:
        offset = self.file.tell()
        if count < 0 or count > self.size - offset:
            raise PickleError(f"it announces {count} bytes where the file has fewer left")
        self.file.seek(offset + count)
        return Span(offset, count, utf8)

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
            case "dtype", (str(code), *_) if code.lstrip("<>=|") in PLAIN_TYPES:
                made = ArrayType(code.lstrip("<>=|"))
                made.order = ">" if code.startswith(">") else "<"
                self.push(made)
            case "dtype", (code, *_):
                raise PickleError(f"it has an array of dtype {str(code)[:40]!r}; weights are plain numbers")
            case "encode", (str() | Span() as text, "latin1" | "latin-1"):
                self.push(text)
            case "bytes", ():
                self.push("")
            case "scalar", (ArrayType(), str() as raw):
                self.push(described_array((), arguments[0], False, raw))
            case "frombuffer", (str() | Span() as raw, ArrayType() as dtype, tuple() as shape, str(order)):
                self.push(described_array(shape, dtype, order == "F", raw))
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
            target.describe(shape, dtype, fortran, as_bytes(raw))
        elif isinstance(target, ArrayType) and isinstance(state, tuple) and len(state) >= 2:
            if state[1] not in ("<", ">", "|", "="):
                raise PickleError("it has a dtype without a byte order")
            if any(part not in (None, -1, 0, ()) for part in state[2:7]):
                raise PickleError("it has a dtype with fields; weights are plain numbers")
            target.order = ">" if state[1] == ">" else "<"
        else:
            raise PickleError("its program sets the state of something that is no array")


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
