"""The job array, on submitit's own local executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from nonlocal_nn.experiments.cells import Cell, rendered_cells
from nonlocal_nn.experiments.slurm import SlurmOptions, _Job, fill_on_slurm
from tests.experiments.conftest import TINY

submitit = pytest.importorskip("submitit")

OPTIONS = SlurmOptions(partition=None, minutes=5, threads=1, gpu=False)


def finish(cell: Cell) -> None:
    """Stands for training and testing."""
    if cell.variant == "block":
        raise ValueError("no block here\nand more lines")
    (cell.folder / "test").mkdir(parents=True)
    (cell.folder / "results.json").write_text('{"parameters": 1, "train_seconds": 1.0}')
    (cell.folder / "test" / "results.json").write_text('{"videos": 3}')


def test_cells_are_worked_through_and_failures_come_back(tmp_path: Path) -> None:
    cells = rendered_cells(TINY, (0,), tmp_path, "cpu")
    failures = fill_on_slurm(cells, finish, tmp_path, OPTIONS, at_once=2, cluster="local")
    assert [failure.cell.variant for failure in failures] == ["block"]
    assert "no block here" in failures[0].reason
    assert "\n" not in failures[0].reason
    assert cells[0].results() == {"videos": 3, "parameters": 1, "train_seconds": 1.0}
    before = sorted((tmp_path / "slurm").iterdir())
    assert fill_on_slurm(cells[:1], finish, tmp_path, OPTIONS, at_once=2, cluster="local") == []
    assert sorted((tmp_path / "slurm").iterdir()) == before  # nothing was left to submit


def test_a_preempted_job_is_the_same_call_again(tmp_path: Path) -> None:
    cell = rendered_cells(TINY, (0,), tmp_path, "cpu")[0]
    again = _Job().checkpoint(finish, cell)
    assert (again.function.__class__, again.args) == (_Job, (finish, cell))
