"""Row filters: conditions are parsed, never evaluated."""

from __future__ import annotations

import pytest

from nonlocal_nn.data.where import RowFilter

COLUMNS = ("path", "set", "sequence", "label")
ROW = {"path": "a b.mp4", "set": "1", "sequence": "07", "label": "hand shake"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("set==1", True),
        ("set == 2", False),
        ("set != 2", True),
        ("sequence == 7", True),  # numbers are equal as numbers
        ("sequence in 1,2,7", True),
        ("sequence in (1, 2)", False),
        ("sequence not in [1, 2]", True),
        ("sequence not in 7", False),
        ("label == 'hand shake'", True),
        ('label in "hand shake", hug and set == 1', True),
        ("set == 1 and sequence in 1,2 and label != hug", False),
        ("label == 'and'", False),
    ],
)
def test_conditions(text: str, kept: bool) -> None:
    assert RowFilter(text, COLUMNS)(ROW) is kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends too early"),
        ("speed == 1", "no column 'speed'.*path, set, sequence, label"),
        ("set", "ends too early"),
        ("set == ", "ends too early"),
        ("set = 1", "cannot read '= 1'"),
        ("set > 1", "'>' is no operator"),
        ("set == 1 or set == 2", "`and` was expected, not 'or'"),
        ("set in (1, 2", "ends too early"),
        ("set in (1]", "not closed"),
        ("set == 1 and", "ends too early"),
        ("__import__('os').system('true')", "no operator"),
        ("set not 1", "'not 1' is no operator"),
    ],
)
def test_anything_else_is_refused_with_the_way_to_write_it(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        RowFilter(text, COLUMNS)
    assert repr(text) in str(caught.value)
