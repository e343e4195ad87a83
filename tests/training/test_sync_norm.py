"""Starts the ranks of sync_norm_cases.py."""

from __future__ import annotations

import pytest

from tests import ranks
from tests.training import sync_norm_cases


@pytest.mark.parametrize("world", [2, 3])
def test_norms_over_all_processes(world: int) -> None:
    found = ranks.outcomes(sync_norm_cases, world)
    assert found == {name: [""] * world for name in ranks.case_names(sync_norm_cases)}
