"""What all tests share: the files to test on, seeds, threads, and hypothesis' settings.

Shapes are checked too: `--jaxtyping-packages` in pyproject.toml makes every call of an annotated function of
the operators, blocks and models compare its tensors with the shapes that its signature draws.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# Before torch is imported: its threads would fight with those of the other workers (pytest -n).
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no real files at ../shared/{name}; other tests show the same on files that they make")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real videos and images beside the project; the test is skipped where there is none."""
    return _shared_folder("data")


@pytest.fixture(scope="session")
def shared_checkpoints() -> Path:
    """The folder of checkpoints beside the project; the test is skipped where there is none."""
    return _shared_folder("checkpoints")


@pytest.fixture(autouse=True)
def _same_seed_for_every_test() -> None:
    """A test's random numbers do not depend on which tests ran before it."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Annotated shapes are not compared, so that the library's own words about wrong ones are heard."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def thresholds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Other sizes at which the operators choose and cut: thresholds(cpu_chunk_bytes=500)."""
    from nonlocal_nn.ops import dispatch

    def change(**sizes: int) -> None:
        monkeypatch.setattr(dispatch, "THRESHOLDS", dataclasses.replace(dispatch.THRESHOLDS, **sizes))

    return change
