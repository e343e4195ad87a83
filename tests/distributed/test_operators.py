"""Positions split over 2 and 4 gloo processes; and that one process is the plain operator."""

from __future__ import annotations

import pytest
import torch

from nonlocal_nn import functional
from tests import ranks
from tests.distributed import operator_cases
from tests.ops.operands import NAMES, inputs


@pytest.fixture(scope="module", params=[2, 4], ids=["2 processes", "4 processes"])
def outcomes(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    return ranks.outcomes(operator_cases, request.param)


@pytest.mark.parametrize("case", ranks.case_names(operator_cases))
def test_on_every_rank(outcomes: dict[str, list[str]], case: str) -> None:
    failed = [f"rank {rank}:\n{said}" for rank, said in enumerate(outcomes[case]) if said]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_group_it_is_the_plain_operator(name: str) -> None:
    arguments = inputs(name, 2, 6, 5, 3, 4)
    ours, plain = (getattr(module, name)(*arguments) for module in (functional.sharded, functional))
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_group_no_key_is_an_error(name: str) -> None:
    queries = torch.zeros(1, 2) if name == "concatenation" else torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="at least one key is needed"):
        getattr(functional.sharded, name)(queries, queries[:, :0], torch.zeros(1, 0, 4))
