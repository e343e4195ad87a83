"""Cells: named by what decides them, found again, folded by a column."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nonlocal_nn.experiments.cells import Labelled, folds_of, labelled_cells, rendered_cells
from nonlocal_nn.training.config import DataConfig, TrainConfig
from tests.experiments.conftest import QUESTION, TINY


def _keys(table: object = TINY, root: str = "a", seeds: tuple[int, ...] = (0, 1)) -> list[str]:
    return [cell.key for cell in rendered_cells(table, seeds, Path(root), "cpu")]  # type: ignore[arg-type]


def test_keys_depend_on_what_decides_the_figures_and_on_nothing_else() -> None:
    assert len(set(_keys())) == 4
    assert _keys() == _keys(root="b/c") == _keys(replace(TINY, title="other", name="other"))
    for other in (
        replace(TINY, steps=31),
        replace(TINY, question=replace(QUESTION, seed=1)),
        replace(TINY, variants=tuple(replace(v, clips=2) for v in TINY.variants)),
        replace(TINY, variants=tuple(replace(v, options={"base_width": 3}) for v in TINY.variants)),
    ):
        assert not set(_keys()) & set(_keys(other))


def test_seeds_are_the_outer_loop() -> None:
    cells = rendered_cells(TINY, (3, 5), Path("grid"), "cpu")
    assert [(cell.seed, cell.variant) for cell in cells] == [
        (3, "C2D"),
        (3, "block"),
        (5, "C2D"),
        (5, "block"),
    ]


def test_a_cell_is_finished_when_its_test_is(tmp_path: Path) -> None:
    cell = rendered_cells(TINY, (0,), tmp_path, "cpu")[0]
    assert cell.results() is None
    (cell.folder / "test").mkdir(parents=True)
    (cell.folder / "results.json").write_text(json.dumps({"parameters": 1, "train_seconds": 2.0}))
    assert cell.results() is None
    (cell.folder / "test" / "results.json").write_text("{half")
    assert cell.results() is None
    (cell.folder / "test" / "results.json").write_text(json.dumps({"videos": 3}))
    assert cell.results() == {"videos": 3, "parameters": 1, "train_seconds": 2.0}


def _labels(folder: Path) -> Path:
    rows = [f"{n}.mp4,x,{place}" for n, place in enumerate("aaaabbbccdef")]
    path = folder / "labels.csv"
    path.write_text("path,label,place\n" + "\n".join(rows) + "\n")
    return path


def test_folds_are_even_and_keep_values_together(tmp_path: Path) -> None:
    folds = folds_of(_labels(tmp_path), "place", 3)
    assert sorted(value for fold in folds for value in fold) == list("abcdef")
    assert folds == (("a",), ("b", "e"), ("c", "d", "f"))
    assert folds == folds_of(_labels(tmp_path), "place", 3)
    with pytest.raises(ValueError, match="folds = 7: column 'place' has 6 values"):
        folds_of(_labels(tmp_path), "place", 7)
    with pytest.raises(ValueError, match="no column 'scene' to fold by; its columns are path, label, place"):
        folds_of(_labels(tmp_path), "scene", 3)


def test_every_fold_is_tested_by_a_network_that_has_not_seen_it(tmp_path: Path) -> None:
    path = _labels(tmp_path)
    labelled = Labelled(
        path=path,
        fold_by="place",
        folds=folds_of(path, "place", 3),
        recipe=TrainConfig(out="", data=DataConfig(train="", crop=96)),
        clips=2,
        crops=1,
        short_side=None,
    )
    cells = labelled_cells(TINY, (0,), tmp_path, labelled)
    assert len({cell.key for cell in cells}) == len(cells) == 6
    for cell in cells:
        assert cell.train.data.train_where == f"place not in {cell.fold}"
        assert cell.test.where == f"place in {cell.fold}"
        assert cell.train.data.crop == 96
        assert cell.train.seed == 0
