"""No tensor of queries x keys elements is made, forward or backward: every tensor that is made is seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nonlocal_nn.ops import hinge_sums, pairwise, reference, softmax_rows
from tests.ops.largest_tensor import LargestTensor
from tests.ops.operands import NAMES, inputs


def largest_bytes(function, arguments: tuple[Tensor, ...]) -> int:
    with LargestTensor() as largest:
        function(*arguments).sum().backward()
    return largest.bytes


CHUNK = 64_000
CASES = [(1600, 1600), (1600, 400), (100, 25_600), (25_600, 100)]


@pytest.fixture
def stated_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_rows, "CPU_CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(hinge_sums, "CHUNK_BYTES", CHUNK)


@pytest.mark.usefixtures("stated_chunk")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("queries", "keys"), CASES)
def test_no_tensor_grows_with_queries_times_keys(name, queries, keys):
    d, channels, float32 = 8, 8, 4
    arguments = inputs(name, 1, queries, keys, d, channels, torch.float32)
    rows = max(queries, keys)  # indices are int64, as wide as two floats
    linear = rows * max(d, channels, 2 * 2) * float32 + 32 * channels * float32  # and one padded block
    one_row = rows * float32 * hinge_sums.BLOCK if name == "concatenation" else rows * float32
    assert largest_bytes(getattr(pairwise, name), arguments) <= max(linear, CHUNK, one_row)


@pytest.mark.parametrize("name", NAMES)
def test_the_measurement_sees_the_plain_form(name):
    arguments = inputs(name, 1, 1600, 1600, 8, 8, torch.float32)
    assert largest_bytes(getattr(reference, name), arguments) >= 1600 * 1600 * 4


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
            y = getattr(pairwise, name)(*arguments)
        assert y.requires_grad
        return sum(sizes.values())

    assert 0 < kept(4000) <= 2.1 * kept(2000)
