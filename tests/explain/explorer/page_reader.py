"""The explorer's page read in Python, by its file alone: what the page's own script must arrive at."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PageReader(HTMLParser):
    """Elements of a page, as a browser's parser would find them: (tag, attributes, text)."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path = path
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.is_inside = False
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), ""))
        self.is_inside = True

    def handle_endtag(self, tag: str) -> None:
        self.is_inside = False

    def handle_data(self, data: str) -> None:
        if self.is_inside:
            tag, attributes, text = self.elements[-1]
            self.elements[-1] = (tag, attributes, text + data)

    def texts(self, tag: str) -> list[str]:
        return [text for found, _, text in self.elements if found == tag]

    def by_id(self, name: str) -> str:
        (text,) = [text for _, attributes, text in self.elements if attributes.get("id") == name]
        return text

    @property
    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.by_id("page-data")))

    def block(self, name: str) -> BlockReader:
        (found,) = [block for block in self.data["blocks"] if block["name"] == name]
        return BlockReader(found, self)


class BlockReader:
    """The weights of one block, as they are stored."""

    def __init__(self, about: dict[str, Any], page: PageReader) -> None:
        self.about = about
        self.arrays: dict[str, NDArray[Any]] = {}
        for name, array in about["arrays"].items():
            raw = zlib.decompress(base64.b64decode(page.by_id(array["id"])), wbits=-15)
            flat = np.frombuffer(raw, np.dtype(array["dtype"]).newbyteorder("<"))
            values = flat.reshape(-1, array["row"])
            self.arrays[name] = values.cumsum(axis=0, dtype=values.dtype) if array["differences"] else values

    @property
    def rows(self) -> NDArray[np.float64]:
        """All rows: (stored query positions, keys)."""
        if self.about["top"] is None:
            rows = self._values("")
        else:
            rows = self._rest()
            np.put_along_axis(rows, self._positions(""), self._values(""), axis=1)
        if self.about["leaders"]:
            leaders = self._values("lead_")
            least = np.abs(leaders).min(axis=1, keepdims=True)
            rows = rows.clip(-least, least)
            np.put_along_axis(rows, self.leaders, leaders, axis=1)
        return rows

    @property
    def leaders(self) -> NDArray[np.int64]:
        """The keys of the largest weights of each row, in the order of their positions."""
        return self._positions("lead_")

    def _values(self, prefix: str) -> NDArray[np.float64]:
        scale, codes = self.arrays[f"{prefix}scale"].astype(float), self.arrays[f"{prefix}codes"]
        if prefix == "lead_":
            root = codes / self.about["leaderSteps"]
        else:
            root = codes / self.about["steps"] - (1 if self.about["signed"] else 0)
        return np.asarray(scale[:, :1] + scale[:, 1:] * root * np.abs(root))

    def _positions(self, prefix: str) -> NDArray[np.int64]:
        gaps = self.arrays[f"{prefix}gap_low"].astype(int) + 256 * self.arrays[f"{prefix}gap_high"].astype(
            int
        )
        return np.asarray(gaps.cumsum(axis=1))

    def _rest(self) -> NDArray[np.float64]:
        """Each cell's sum, spread over those of its keys that are not stored by themselves."""
        frames, height, width = self.about["keys"]["shape"]
        sums = self._values("rest_")
        cell = np.zeros((frames, height, width), int)
        down, across = (np.array_split(np.arange(n), min(n, self.about["cells"])) for n in (height, width))
        starts = [
            [i * n // len(parts) for i in range(len(parts))] for n, parts in ((height, down), (width, across))
        ]
        row = np.searchsorted(starts[0], np.arange(height), side="right") - 1
        column = np.searchsorted(starts[1], np.arange(width), side="right") - 1
        cell[:] = (np.arange(frames)[:, None, None] * len(down) + row[:, None]) * len(across) + column
        flat = cell.ravel()
        is_open = np.ones((len(sums), len(flat)), bool)
        np.put_along_axis(is_open, self._positions(""), False, axis=1)
        counts = np.stack([np.bincount(flat, weights=line, minlength=sums.shape[1]) for line in is_open])
        return np.asarray((sums / np.maximum(counts, 1))[:, flat])


def policy(page: PageReader) -> dict[str, list[str]]:
    """The page's content security policy, by directive."""
    (text,) = [
        attributes["content"]
        for tag, attributes, _ in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert text is not None
    return {words[0]: words[1:] for words in (re.split(r"\s+", part.strip()) for part in text.split(";"))}
