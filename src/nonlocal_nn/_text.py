"""Text files that people and spreadsheets write, as lines: their encoding is told by their first bytes."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "as_file_name",
    "first_bytes_are_text",
    "lines_of",
    "plain_lines",
    "printable",
    "read_lines",
    "read_text",
]

_MARKS = (  # the longer marks first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: str | Path) -> str:
    r"""The text of a file: UTF-8, or UTF-16 or UTF-32 as spreadsheets write it ("Unicode text").

    Bytes that are no UTF-8 come out as Python writes them in file names (surrogates), so that a path in the
    text still names its file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "list.txt").write_text("a.mp4\t0\n", encoding="utf-16")
    ...     read_text(Path(folder) / "list.txt")
    'a.mp4\t0\n'

    Raises:
        ValueError: the file is no text.
    """
    data = Path(path).read_bytes()
    encoding = _encoding(data[:4096])
    if encoding is None:
        raise ValueError(f"{path}: not a text file (it has zero bytes)")
    try:
        # Line ends as they stand: csv needs them, and `read_lines` knows all kinds.
        return data.decode(encoding, errors="surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: begins as {encoding}, but is damaged at byte {error.start}") from None


def printable(text: str) -> str:
    r"""The text with a mark for each byte of a file name that is no UTF-8, for pictures and pages.

    >>> printable("caf\udce9.mp4")
    'caf\ufffd.mp4'
    """
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


def as_file_name(text: str) -> str:
    """A name in a text, as the file system's encoding writes it: not UTF-8 in the C locale.

    >>> as_file_name("list.txt")
    'list.txt'
    """
    return text if text.isascii() else os.fsdecode(text.encode("utf-8", errors="surrogateescape"))


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file, without their ends; see `read_text`."""
    return list(plain_lines(path))


def plain_lines(path: str | Path) -> Iterator[str]:
    """`read_lines`, one after the other."""
    return (line.rstrip("\r\n") for line in lines_of(read_text(path)))


_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")


def lines_of(text: str) -> Iterator[str]:
    r"""The lines of a text with their ends (\n, \r\n or \r); a list of them takes twice its memory.

    >>> list(lines_of("a\r\nb\n\nc"))
    ['a\r\n', 'b\n', '\n', 'c']
    """
    return (match[0] for match in _LINE.finditer(text))


def first_bytes_are_text(path: str | Path) -> bool:
    """Whether a file looks like text in one of these encodings."""
    with Path(path).open("rb") as file:
        return _encoding(file.read(4096)) is not None


def _encoding(data: bytes) -> str | None:
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    if b"\0" not in data:
        return "utf-8"
    # UTF-16 without a mark: every second byte of plain letters is zero.
    even, odd = data[0::2].count(0), data[1::2].count(0)
    if len(data) >= 4 and odd > 0.4 * len(data) / 2 and even == 0:
        return "utf-16-le"
    if len(data) >= 4 and even > 0.4 * len(data) / 2 and odd == 0:
        return "utf-16-be"
    return None
