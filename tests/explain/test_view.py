"""What a call gives wins, and the rest of the view stays."""

from __future__ import annotations

from dataclasses import fields

from nonlocal_nn.explain.view import View

GIVEN = {"block": "res3", "query": (1, 2, 3), "frames": [0, 2], "arrows": 5, "show": "heat"}


def test_each_option_overrides_itself_alone():
    assert list(GIVEN) == [field.name for field in fields(View)]
    for view in (View(), View("res4", "grid", 4, 7, "both")):
        assert view.override() == view
        assert view.override(**GIVEN) == View(**GIVEN)
        for name, value in GIVEN.items():
            changed = view.override(**{name: value})
            assert vars(changed) == {**vars(view), name: value}
