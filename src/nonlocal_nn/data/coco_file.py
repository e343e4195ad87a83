"""A COCO json as it lies on the disk: read and told from what else ends in .json, and its images found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nonlocal_nn.data.errors import Problem

__all__ = ["Places", "load_json"]


def load_json(file: Path) -> dict[str, Any]:
    """What a json of objects holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON, or something else: results, captions, panoptic segments.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        # Not bytes, text and objects of a large file at once, as json.load has them.
        text: Any = file.read_bytes()
        text = text.decode(json.detect_encoding(text), "surrogatepass")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if isinstance(values, list):
        raise ValueError(f"{file} is a list, as a detector's results are; give the json with the annotations")
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds {type(values).__name__}, no annotations in COCO's form")
    for name in ("images", "annotations", "categories"):
        found = values.get(name)
        if name in values and not isinstance(found, list):
            raise ValueError(f"{file}: its {name!r} is no list but {type(found).__name__}")
    annotations = values.get("annotations", [])
    first = next((one for one in annotations if isinstance(one, dict)), {})
    kinds = (("caption", "captions"), ("segments_info", "panoptic segments"))
    for key, what in kinds:
        if key in first:
            raise ValueError(f"{file} holds {what}; detection needs a json of instances or keypoints")
    for name in ("images", "annotations", "categories"):
        if not values.get(name):
            hint = " (a test set without truth? `detect predict` needs no json)" if name[0] == "a" else ""
            raise ValueError(f"{file} has no {name!r}; COCO's json has images, annotations, categories{hint}")
    return values


class Places:
    """The image files below a folder, by their names; looked through when a path does not exist as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, list[str]] | None = None

    def find(self, name: str) -> str | Problem:
        """The file of a `file_name`, or why there is none."""
        plain = self.folder / name
        try:
            if plain.is_file():
                return str(plain)
        except OSError as error:
            return Problem(name, f"cannot be looked for: {error.strerror}")
        if self._by_name is None:
            self._by_name = {}
            for folder, _, files in os.walk(self.folder):
                for file in files:
                    self._by_name.setdefault(file, []).append(f"{folder}{os.sep}{file}")
        found = self._by_name.get(name.replace("\\", "/").rpartition("/")[2], [])
        if len(found) == 1:
            return found[0]
        if found:
            return Problem(name, f"{len(found)} files have this name: {', '.join(sorted(found)[:2])} ...")
        return Problem(name, f"no such image in {self.folder} or below")
