"""Rows in half precision against float64: in torch's operations, by the interpreter, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nonlocal_nn.ops import equation as reference
from nonlocal_nn.ops.gpu import half_rows
from nonlocal_nn.ops.gpu.available import available
from tests.ops.operands import values_and_gradients
from tests.ops.triton_children import DEVICES, runner

Run = Callable[..., Any]
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module", params=["torch", *DEVICES])
def device(request: pytest.FixtureRequest) -> str:
    if request.param != "torch":
        pytest.importorskip("triton", reason="Triton is not made for this system")
    return request.param


@pytest.fixture(scope="module")
def run(device: str) -> Iterator[Run]:
    """run("forward", theta, phi, g, ...) and the same for "backward"; results are on the CPU."""
    if device == "torch":
        assert not available(torch.device("cpu"))
        yield lambda name, *arguments, **options: getattr(half_rows, name)(*arguments, **options)
        return
    yield from runner("nonlocal_nn.ops.gpu.half_rows", device)


def operands(
    batch: int, queries: int, keys: int, d: int, channels: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """theta, phi, g and dy."""
    shapes = [(batch, queries, d), (batch, keys, d), (batch, keys, channels), (batch, queries, channels)]
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def all_of(
    run: Run,
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    dy: Tensor,
    scale: float,
    wanted: tuple[bool, bool, bool] = (True, True, True),
    **options: int,
) -> list[Tensor]:
    """y, dtheta, dphi, dg."""
    y, statistics = run("forward", theta, phi, g, scale, None, **options)
    return [y, *run("backward", dy, theta, phi, g, y, statistics, scale, wanted, None, **options)]


def exact(theta: Tensor, phi: Tensor, g: Tensor, dy: Tensor, scale: float) -> list[Tensor]:
    leaves = tuple(x.double().requires_grad_() for x in (theta, phi, g))
    return values_and_gradients(lambda *x: reference.gaussian(*x, scale), leaves, dy.double())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "d", "channels", "chunk_bytes"),
    [(2, 37, 29, 19, 21, 1000), (3, 5, 50, 40, 7, 10**6), (1, 3, 1030, 16, 9, 100), (2, 20, 1, 5, 3, 8)],
)
def test_never_further_from_float64_than_the_plain_form(
    run, device, dtype, batch, queries, keys, d, channels, chunk_bytes
):
    theta, phi, g, dy = operands(batch, queries, keys, d, channels, dtype)
    scale = d**-0.5
    ours = all_of(run, theta, phi, g, dy, scale, chunk_bytes=chunk_bytes)
    leaves = tuple(x.clone().requires_grad_() for x in (theta, phi, g))
    plain = values_and_gradients(lambda *x: reference.gaussian(*x, scale), leaves, dy)
    allowed = 2 if device == "interpreter" and dtype == torch.bfloat16 else 1  # cut off, not rounded
    for mine, theirs, truth in zip(ours, plain, exact(theta, phi, g, dy, scale), strict=True):
        assert mine.dtype == dtype
        slack = 2e-6 * max(1.0, float(truth.norm()))  # one key: gradients of logits are zero but for rounding
        assert (mine.double() - truth).norm() <= allowed * (theirs.double() - truth).norm() + slack


def test_many_keys_lose_no_weights_in_float16(run):
    theta, phi, g, dy = operands(1, 3, 20_000, 4, 4, torch.float16)
    ours = all_of(run, theta * 0, phi, g, dy, 1.0)  # every weight is 5e-5, below float16's normal range
    truth = exact(theta * 0, phi, g, dy, 1.0)
    for mine, true in zip(ours, truth, strict=True):
        assert (mine.double() - true).norm() <= 2e-3 * true.norm()


@pytest.mark.parametrize("dtype", HALVES)
def test_large_logits_keep_their_differences(run, dtype):
    theta, phi, g, dy = operands(1, 20, 30, 4, 4, dtype)
    theta[..., 0] = phi[..., 0] = 100  # every logit is 1e4 and a little
    ours = all_of(run, theta, phi, g, dy, 1.0)
    truth = exact(theta, phi, g, dy, 1.0)
    assert (ours[0].double() - truth[0]).norm() <= 1e-2 * truth[0].norm()


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_one_gradient_is_asked_for(run, wanted):
    arguments = operands(2, 9, 13, 8, 6, torch.bfloat16)
    everything = all_of(run, *arguments, 0.3, chunk_bytes=200)
    some = all_of(run, *arguments, 0.3, wanted, chunk_bytes=200)
    for want, mine, all_of_them in zip(wanted, some[1:], everything[1:], strict=True):
        assert torch.equal(mine, all_of_them) if want else mine is None


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_nothing_in_gives_nothing_out(run, batch, queries):
    arguments = operands(batch, queries, 4, 3, 2, torch.float16)
    ours = all_of(run, *arguments, 1.0)
    assert [x.shape for x in ours] == [x.shape for x in (arguments[3], *arguments[:3])]
    assert all(x.count_nonzero() == 0 for x in ours)


def test_nan_is_not_hidden(run):
    theta, phi, g, _ = operands(1, 6, 2000, 5, 3, torch.bfloat16)
    theta[0, 2, 1] = torch.nan
    y, _ = run("forward", theta, phi, g, 1.0, None)
    assert torch.equal(y.isnan(), reference.gaussian(theta, phi, g).isnan())


def test_channels_first_inputs_give_channels_first_results(run):
    theta, phi, g, dy = operands(2, 12, 15, 8, 6, torch.float16)
    first = [x.mT.contiguous().mT for x in (theta, phi, g, dy)]
    ours, same = all_of(run, *first, 0.5), all_of(run, theta, phi, g, dy, 0.5)
    for mine, theirs in zip(ours, same, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)
    assert ours[0].mT.is_contiguous()


def test_a_memory_budget_makes_chunks_smaller():
    theta, phi, g, _ = operands(1, 64, 32, 8, 8, torch.bfloat16)
    y, _ = half_rows.forward(theta, phi, g, 1.0, 12 * 32)  # one row
    whole, _ = half_rows.forward(theta, phi, g, 1.0, None)
    torch.testing.assert_close(y, whole)
    assert len(list(half_rows._chunks(theta, phi, 12 * 32, None))) == 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the form is chosen on a GPU alone")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("without_shape_checks")
def test_the_operator_uses_it_on_a_gpu(compiled):
    from nonlocal_nn.ops import softmax

    theta, phi, g, dy = (x.cuda() for x in operands(2, 300, 200, 512, 512, torch.bfloat16))
    leaves = tuple(x.requires_grad_() for x in (theta, phi, g))
    function = torch.compile(softmax.gaussian) if compiled else softmax.gaussian
    ours = values_and_gradients(lambda *x: function(*x, 0.05), leaves, dy)
    truth = exact(theta.detach(), phi.detach(), g.detach(), dy, 0.05)
    for mine, true in zip(ours, truth, strict=True):
        assert (mine.double() - true).norm() <= 1e-2 * true.norm()
