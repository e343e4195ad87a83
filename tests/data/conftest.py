"""Files that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.made_videos import broken_files, write_video


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty numbered frames, H.264 with B-frames, a key frame every twelve."""
    return write_video(tmp_path_factory.mktemp("video") / "sixty.mp4", 60, options={"g": "12", "bf": "2"})


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory, video: Path) -> dict[str, tuple[Path, str]]:
    return broken_files(tmp_path_factory.mktemp("broken") / "files", video)
