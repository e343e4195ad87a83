"""A block split over 2 and 4 gloo processes is the block."""

from __future__ import annotations

import pytest
import torch

from nonlocal_nn import NonLocalBlock
from tests import ranks
from tests.blocks import sharded_cases


@pytest.fixture(scope="module", params=[2, 4], ids=["2 processes", "4 processes"])
def outcomes(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    return ranks.outcomes(sharded_cases, request.param)


@pytest.mark.parametrize("case", ranks.case_names(sharded_cases))
def test_on_every_rank(outcomes: dict[str, list[str]], case: str) -> None:
    failed = [f"rank {rank}:\n{said}" for rank, said in enumerate(outcomes[case]) if said]
    assert not failed, "\n".join(failed)


def test_no_group_changes_nothing() -> None:
    block = NonLocalBlock(4, temporal_groups=2, norm=None)
    torch.nn.init.normal_(block.W_z.weight)
    x = torch.randn(1, 4, 2, 4, 4)
    before = block(x)
    assert torch.equal(block.shard_over(None)(x), before)
