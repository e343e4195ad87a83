"""From rows to words: what a table of a few rows says."""

from __future__ import annotations

from pathlib import Path

import pytest

from nonlocal_nn.experiments.report import (
    Row,
    compare,
    console_tables,
    draw,
    markdown,
    read_rows,
    write_rows,
)
from nonlocal_nn.experiments.tables import get_table
from tests.experiments.conftest import TINY

BETTER = [90.0, 87.5, 95.0, 91.0, 88.0]


def _row(variant: str, seed: int, right: float, part: str = "", quartets: int = 40) -> Row:
    return Row(
        variant=variant,
        seed=seed,
        part=part,
        videos=160,
        right=100,
        quartets=quartets,
        quartets_right=right if quartets else 0.0,
        quartets_tied=100.0 if right == 50.0 else 0.0,
        parameters=8266,
        macs=6_230_144,
        steps=30,
        train_seconds=6.0,
    )


@pytest.fixture
def rows() -> list[Row]:
    both = [("C2D", [50.0] * 5), ("block", BETTER)]
    whole = [_row(name, seed, right) for name, figures in both for seed, right in enumerate(figures)]
    parts = [_row(row.variant, row.seed, row.figure, part="38 px, 0 frames") for row in whole]
    return whole + parts


def test_rows_come_back_from_their_file(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(rows, tmp_path / "t.csv")
    assert read_rows(tmp_path / "t.csv") == rows


def test_the_page_says_figures_interval_and_word(rows: list[Row]) -> None:
    text = markdown(TINY, rows)
    assert "| C2D | 71.8 | 50.0 (100), 50.0 (100), 50.0 (100), 50.0 (100), 50.0 (100) | 50.0 | 0.0 |" in text
    sees = "25 pixels, 1 frame; blocks: all of space and time"
    assert (
        f"| block | 72.7 | 90.0, 87.5, 95.0, 91.0, 88.0 | 90.3 | 3.0 | 62.5 | 90.3 | {sees} | 8,266 |" in text
    )
    assert "- block - C2D: +40.3 [+36.6, +44.0], 5 of 5 seeds, p 0.0625 (Holm 0.0625)" in text
    assert "; the paper +0.9: **agrees**" in text
    assert "5 seeds find a difference of 1.7 standard deviations" in text
    shown = console_tables(TINY, rows)
    assert any(isinstance(part, str) and "**agrees**" in part for part in shown)


def test_a_grid_that_was_cut_off_compares_the_seeds_it_has(rows: list[Row]) -> None:
    some = [row for row in rows if not (row.variant == "block" and row.seed > 1)]
    (one,) = compare(TINY, some)
    assert one.found is not None
    assert one.found.seeds == 2
    (none,) = compare(TINY, [row for row in rows if row.variant == "C2D"])
    assert none.found is None
    assert "block" not in markdown(TINY, [row for row in rows if row.variant == "C2D"]).split("|---")[1]


def test_rows_without_quartets_count_videos(rows: list[Row]) -> None:
    text = markdown(TINY, [_row("C2D", seed, 0.0, quartets=0) for seed in range(2)])
    assert "videos right, %, by seed" in text
    assert "| C2D | 71.8 | 62.5, 62.5 | 62.5 | 0.0 | 25 pixels, 1 frame | 8,266 |" in text


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_figures_are_drawn(tmp_path: Path, rows: list[Row], suffix: str) -> None:
    file = draw(TINY, rows, tmp_path / f"t.{suffix}")
    assert file.stat().st_size > 5000
    table = get_table("distance")
    apart = [
        _row(variant.name, seed, 50.0 + seed, part=f"{p} px, {f} frames")
        for variant in table.variants
        for seed in range(2)
        for p, f in table.question_of(variant).distances
    ]
    from nonlocal_nn.commands.ablate import reach_of

    ends = reach_of(table)
    assert ends["C2D, in space"] == (34, "pixels")
    assert ends["I3D, in time"] == (6, "frames")
    assert ends["NL C2D, in time"] == (0.0, "frames")
    assert draw(table, apart, tmp_path / f"d.{suffix}", ends).stat().st_size > 5000
