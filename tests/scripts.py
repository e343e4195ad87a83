"""Python files of the project that belong to no package, as modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]


def load_script(place: str) -> ModuleType:
    """The module of a file, such as "docs/draw_architecture.py"."""
    file = REPOSITORY / place
    spec = importlib.util.spec_from_file_location(f"{file.stem}_of_the_project", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
