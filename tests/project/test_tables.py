"""The tables on the page are those of the csv files beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FILES = sorted((DOCS / "tables").glob("*.csv"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_page_has_what_the_csv_says(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    sys.modules.pop("write_tables", None)
    import write_tables  # type: ignore[import-not-found]

    page = (DOCS / "results.md").read_text(encoding="utf-8")
    assert write_tables.written()[file.stem] in page


def test_there_are_tables() -> None:
    assert {"2a", "2b", "2c", "2d", "2e", "2f", "2g", "distance"} <= {file.stem for file in FILES}
