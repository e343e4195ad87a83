"""The picture of the architecture is the one that docs/draw_architecture.py draws from today's imports."""

from __future__ import annotations

import doctest
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import load_script

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "draw_architecture.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("docs/draw_architecture.py")


def test_the_picture_is_up_to_date(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0, "run: python docs/draw_architecture.py"


def test_an_old_picture_is_found_and_written_anew(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.svg"
    for text in (None, "an older one"):
        if text is not None:
            picture.write_text(text)
        assert script.main(["--check", "--out", str(picture)]) == 1
        assert "python docs/draw_architecture.py" in capsys.readouterr().err
    assert script.main(["--out", str(picture)]) == 0
    assert picture.read_bytes() == script.PICTURE.read_bytes()


def test_every_arrow_is_an_import_and_none_follows_from_others(script: ModuleType) -> None:
    graph = script.read_graph()
    arrows = graph.imports | graph.by_name
    assert ("checkpoints", "models") in graph.imports
    assert ("cli", "commands") in graph.by_name
    assert script.reduce(set(arrows)) == arrows


def test_its_examples_run(script: ModuleType) -> None:
    found = doctest.testmod(script)
    assert found.attempted > 0
    assert found.failed == 0


def test_arrows_point_down_and_boxes_do_not_overlap(script: ModuleType) -> None:
    graph = script.read_graph()
    x, paths = script.place(graph)
    assert all(path[0][1] < path[-1][1] for path in paths.values())
    for number, row in enumerate(graph.rows):
        places = sorted(x[room, number] for room in row)
        assert all(b - a >= script.BOX_WIDTH for a, b in pairwise(places))
