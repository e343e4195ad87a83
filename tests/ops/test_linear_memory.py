"""No tensor of queries x keys elements is made, forward or backward: every tensor that is made is seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from nonlocal_nn import functional
from nonlocal_nn.ops import dispatch, equation
from nonlocal_nn.ops.cpu import gemm
from tests.ops.largest_tensor import LargestTensor
from tests.ops.operands import NAMES, inputs


def largest_bytes(function, arguments: tuple[Tensor, ...]) -> int:
    gemm.uses_onednn(torch.zeros(1), 1000, 1000, 1000)  # whose first call prepares the allocator
    with LargestTensor() as largest:
        function(*arguments).sum().backward()
    return largest.bytes


def without_keeping(name: str):
    """The function, told to keep nothing for its backward pass."""
    function = getattr(functional, name)
    return partial(function, memory_budget=0) if name == "gaussian" else function


CHUNK = 64_000
CASES = [(1600, 1600), (1600, 400), (100, 25_600), (25_600, 100)]


@pytest.fixture
def stated_chunk(thresholds: Callable[..., None]) -> None:
    thresholds(cpu_chunk_bytes=CHUNK, chunk_rows=1, concatenation_chunk_bytes=CHUNK)


@pytest.mark.usefixtures("stated_chunk")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("queries", "keys"), CASES)
def test_no_tensor_grows_with_queries_times_keys(name, queries, keys):
    d, channels, float32 = 8, 8, 4
    arguments = inputs(name, 1, queries, keys, d, channels, torch.float32)
    rows = max(queries, keys)  # indices are int64, as wide as two floats
    linear = rows * max(d, channels, 2 * 2) * float32 + 32 * channels * float32  # and one padded block
    one_row = (
        rows * float32 * dispatch.THRESHOLDS.concatenation_block
        if name == "concatenation"
        else rows * float32
    )
    assert largest_bytes(without_keeping(name), arguments) <= max(linear, CHUNK, one_row)


@pytest.mark.parametrize("name", NAMES)
def test_the_measurement_sees_the_plain_form(name):
    arguments = inputs(name, 1, 1600, 1600, 8, 8, torch.float32)
    assert largest_bytes(getattr(equation, name), arguments) >= 1600 * 1600 * 4


@pytest.mark.usefixtures("stated_chunk")
@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_for_the_backward_pass_doubles_with_the_positions(name):
    def kept(positions: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        arguments = inputs(name, 1, positions, positions, 8, 8, torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = without_keeping(name)(*arguments)
        assert y.requires_grad
        return sum(sizes.values())

    assert 0 < kept(4000) <= 2.1 * kept(2000)


@pytest.mark.parametrize("budget", [100_000, 1_000_000])
def test_buffers_follow_from_the_budget(budget):
    arguments = inputs("gaussian", 1, 1500, 1500, 8, 8, torch.float32)
    largest = largest_bytes(partial(functional.gaussian, memory_budget=budget), arguments)
    assert budget / 4 < largest <= budget / 2


def test_weights_that_fit_the_budget_are_kept():
    arguments = inputs("gaussian", 1, 500, 500, 8, 8, torch.float32)
    matrix = 500 * 500 * 4
    assert largest_bytes(partial(functional.gaussian, memory_budget=2 * matrix), arguments) == matrix
    assert largest_bytes(partial(functional.gaussian, memory_budget=3 * matrix // 2), arguments) < matrix
