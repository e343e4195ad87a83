"""The tables are whole: every network can be built, every comparison names rows, figures are the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nonlocal_nn.data.long_range import ties_from
from nonlocal_nn.experiments.cells import rendered_cells
from nonlocal_nn.experiments.tables import TABLES, Table, get_table
from nonlocal_nn.models.build import build_model
from nonlocal_nn.models.reach import reach


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_row_can_be_built_and_is_compared_with_another(table: Table) -> None:
    names = [variant.name for variant in table.variants]
    assert len(set(names)) == len(names)
    for pair in table.comparisons:
        assert set(pair) <= set(names)
        assert pair[0] != pair[1]
    for variant in table.variants:
        if table.images is not None:
            frames, side = variant.spec.frames, table.images.side
        else:
            question = table.question_of(variant)
            assert variant.clip_frames <= question.frames
            frames, side = variant.clip_frames, question.side_pixels
        with torch.device("meta"):
            model = build_model(variant.spec.replace(num_classes=2)).eval()
        assert model(torch.empty(1, 3, frames, side, side, device="meta")).shape == (1, 2)


def test_baselines_cannot_see_what_is_far() -> None:
    for name in ("2a", "2b", "2d", "2e", "2f"):
        table = get_table(name)
        first = table.variants[0]
        seen = reach(first.spec).end
        assert table.question is not None
        for pixels, frames in table.question.distances:
            assert pixels >= ties_from(seen.pixels, table.question.token_pixels) or frames >= ties_from(
                seen.frames, 2
            )


def test_figures_of_the_paper() -> None:
    assert [v.paper for v in get_table("2a").variants] == [71.8, 72.5, 72.7, 72.9, 72.8]
    assert [v.paper for v in get_table("2d").variants] == [71.8, 72.9, 73.1, 73.8]
    assert get_table("2d").paper_difference("spacetime", "space") == 0.9
    assert get_table("2f").paper_difference("NL I3D", "I3D") == 1.6
    assert get_table("scale").paper_difference("scaled", "unscaled") is None


def test_tables_share_their_cells() -> None:
    cells = {
        (name, cell.variant): cell.key
        for name, table in TABLES.items()
        if table.images is None
        for cell in rendered_cells(TABLES[name], [0], Path("grid"), "cpu")
    }
    assert len({cells[name, "C2D"] for name in ("2a", "2b", "2d", "2e", "2f")}) == 1
    same = [("2a", "embedded gaussian"), ("2b", "res3"), ("2d", "spacetime"), ("2e", "NL C2D")]
    assert len({cells[name] for name in [*same, ("scale", "unscaled"), ("groups", "one group")]}) == 1
    assert cells["2c", "C2D"] != cells["2a", "C2D"]
    assert max(len({cells[c] for c in cells if c[0] == name}) for name in TABLES) <= 5  # with 5 seeds: 25


def test_an_unknown_table_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no table is called '2z'; the tables are 2a, 2b"):
        get_table("2z")
