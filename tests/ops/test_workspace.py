"""Scratch memory: lent again, never to two at once, and bounded."""

from __future__ import annotations

import mmap
import sys
import threading

import pytest
import torch

from nonlocal_nn.ops.cpu import workspace as memory
from nonlocal_nn.ops.cpu.workspace import scratch

pytestmark = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(mmap, "MADV_FREE")),
    reason="large buffers are the C library's own here",
)

LIKE = torch.zeros(1)
LARGE = (3, 1024, 1024)  # 12 MB


@pytest.fixture(autouse=True)
def no_idle_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_idle", memory._Idle())


def test_memory_of_an_ended_tensor_is_lent_again() -> None:
    first = scratch(LARGE, LIKE)
    address = first.data_ptr()
    assert memory._idle.bytes() == 0
    part = first[1:]  # the memory is in use for as long as a view of it is
    del first
    second = scratch(LARGE, LIKE)
    assert second.data_ptr() != address
    del part
    assert memory._idle.bytes() == 12 * 2**20
    third = scratch((2, 1024, 1024), LIKE)  # smaller, but more than half
    assert third.data_ptr() == address
    assert memory._idle.bytes() == 0


def test_a_buffer_more_than_twice_as_large_is_left_for_others() -> None:
    large = scratch((16, 1024, 1024), LIKE)
    address = large.data_ptr()
    del large
    small = scratch((7, 1024, 1024), LIKE)
    assert small.data_ptr() != address
    assert scratch((8, 1024, 1024), LIKE).data_ptr() == address


def test_the_smallest_that_fits_is_taken() -> None:
    buffers = [scratch((size, 1024, 1024), LIKE) for size in (4, 2, 3)]
    addresses = [buffer.data_ptr() for buffer in buffers]
    del buffers
    assert scratch((2, 1024, 1024), LIKE).data_ptr() == addresses[1]
    four = scratch((4, 1024, 1024), LIKE)
    assert four.data_ptr() == addresses[0]


def test_no_more_lies_idle_than_an_operator_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: 8 * 50 * 2**20)
    buffers = [scratch((5, 1024, 1024), LIKE) for _ in range(4)]
    addresses = {buffer.data_ptr() for buffer in buffers[2:]}
    while buffers:
        del buffers[0]  # the oldest go first
    assert memory._idle.bytes() == 40 * 2**20
    again = [scratch((5, 1024, 1024), LIKE) for _ in range(2)]
    assert {buffer.data_ptr() for buffer in again} == addresses


def test_a_kernel_that_cannot_free_lazily_gets_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_FREE")
    buffer = scratch(LARGE, LIKE)
    buffer.fill_(1)
    del buffer
    assert memory._idle.bytes() == 0


def test_threads_never_share_a_buffer() -> None:
    failures = []

    def work(number: int) -> None:
        for turn in range(40):
            buffer = scratch((2 + (number + turn) % 3, 1024, 512), LIKE)
            buffer.fill_(number)
            if buffer.amin() != number or buffer.amax() != number:
                failures.append((number, turn))
            del buffer

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not memory._idle._lent


@pytest.mark.usefixtures("as_if_large")
def test_weights_kept_for_the_backward_pass_are_not_overwritten() -> None:
    """Two forward passes, then their backward passes: what the first kept is still its own."""
    from nonlocal_nn.ops import equation as reference
    from nonlocal_nn.ops.pairwise import gaussian

    torch.manual_seed(0)
    sets = [[torch.randn(1, 1100, 4).requires_grad_() for _ in range(3)] for _ in range(2)]
    for _ in range(2):  # the second time in memory of the first
        outputs = [gaussian(*one, memory_budget=1 << 40) for one in sets]
        for y, one in zip(outputs, sets, strict=True):
            found = torch.autograd.grad(y.sin().sum(), one)
            wanted = torch.autograd.grad(reference.gaussian(*one).sin().sum(), one)
            for mine, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        del outputs, y
        assert memory._idle.bytes() > 0
