"""Large buffers: their memory is reused, never by two at once, and bounded."""

from __future__ import annotations

import mmap
import sys
import threading

import pytest
import torch

from nonlocal_nn.ops.cpu import workspace
from nonlocal_nn.ops.cpu.workspace import buffer

pytestmark = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(mmap, "MADV_FREE")),
    reason="large buffers are the C library's own here",
)

LIKE = torch.zeros(1)
LARGE = (3, 1024, 1024)  # 12 MB


@pytest.fixture(autouse=True)
def no_idle_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_idle", [])


def test_a_buffer_holds_what_is_written_and_lives_as_long_as_its_views() -> None:
    large = buffer((3, 1000, 500), torch.zeros(1, dtype=torch.float64))  # 12 MB: huge pages if there are any
    assert large.shape == (3, 1000, 500)
    assert large.dtype == torch.float64
    large.fill_(2)
    view = large[1, 5:7]
    del large
    assert view.sum() == 2000


def test_memory_of_an_ended_tensor_is_reused() -> None:
    first = buffer(LARGE, LIKE)
    address = first.data_ptr()
    assert workspace._idle_bytes() == 0
    part = first[1:]  # the memory is in use for as long as a view of it is
    del first
    second = buffer(LARGE, LIKE)
    assert second.data_ptr() != address
    del part
    assert workspace._idle_bytes() == 12 * 2**20
    third = buffer((2, 1024, 1024), LIKE)  # smaller, but more than half
    assert third.data_ptr() == address
    assert workspace._idle_bytes() == 0


def test_a_buffer_more_than_twice_as_large_is_left_for_others() -> None:
    large = buffer((16, 1024, 1024), LIKE)
    address = large.data_ptr()
    del large
    small = buffer((7, 1024, 1024), LIKE)
    assert small.data_ptr() != address
    assert buffer((8, 1024, 1024), LIKE).data_ptr() == address


def test_the_smallest_that_fits_is_taken() -> None:
    several = [buffer((size, 1024, 1024), LIKE) for size in (4, 2, 3)]
    addresses = [one.data_ptr() for one in several]
    del several
    assert buffer((2, 1024, 1024), LIKE).data_ptr() == addresses[1]
    four = buffer((4, 1024, 1024), LIKE)
    assert four.data_ptr() == addresses[0]


def test_no_more_lies_idle_than_an_operator_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "free_bytes", lambda _: 8 * 50 * 2**20)
    several = [buffer((5, 1024, 1024), LIKE) for _ in range(4)]
    addresses = {one.data_ptr() for one in several[2:]}
    while several:
        del several[0]  # the oldest go first
    assert workspace._idle_bytes() == 40 * 2**20
    again = [buffer((5, 1024, 1024), LIKE) for _ in range(2)]
    assert {one.data_ptr() for one in again} == addresses


def test_a_kernel_that_cannot_free_lazily_gets_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_FREE")
    large = buffer(LARGE, LIKE)
    large.fill_(1)
    del large
    assert workspace._idle_bytes() == 0


def test_threads_never_share_a_buffer() -> None:
    failures = []

    def work(number: int) -> None:
        for turn in range(40):
            mine = buffer((2 + (number + turn) % 3, 1024, 512), LIKE)
            mine.fill_(number)
            if mine.amin() != number or mine.amax() != number:
                failures.append((number, turn))
            del mine

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_weights_kept_for_the_backward_pass_are_not_overwritten() -> None:
    """Two forward passes, then their backward passes: what the first kept is still its own."""
    from nonlocal_nn.functional import gaussian
    from nonlocal_nn.ops import equation

    torch.manual_seed(0)
    sets = [[torch.randn(1, 1100, 4).requires_grad_() for _ in range(3)] for _ in range(2)]
    for _ in range(2):  # the second time in memory of the first
        outputs = [gaussian(*one, memory_budget=1 << 40) for one in sets]
        for y, one in zip(outputs, sets, strict=True):
            found = torch.autograd.grad(y.sin().sum(), one)
            wanted = torch.autograd.grad(equation.gaussian(*one).sin().sum(), one)
            for mine, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        del outputs, y
        assert workspace._idle_bytes() > 0
