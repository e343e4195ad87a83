"""The benchmarks are scripts beside the package: their folder goes on the path, as when one of them runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))


@pytest.fixture(scope="session")
def scripts() -> Path:
    """Where they are."""
    return FOLDER
