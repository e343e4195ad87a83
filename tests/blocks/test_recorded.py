"""Blocks written down as programs, and derivatives in forward mode: any size, any thread."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import nonlocal_nn as nl
from nonlocal_nn.ops.cpu import workspace

FUNCTIONS = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
OPTIONS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"dims": 1}, (19,)),
    ({"dims": 2}, (12, 14)),
    ({"dims": 2, "subsample": False}, (9, 11)),
    ({"dims": 2, "subsample_at": "input", "scale": True}, (12, 14)),
    ({"dims": 3}, (4, 6, 8)),
    ({"dims": 3, "span": "space"}, (4, 6, 8)),
    ({"dims": 3, "span": "time"}, (4, 6, 8)),
    ({"dims": 3, "temporal_groups": 2, "norm": None}, (4, 6, 8)),
]


def _block(pairwise: str = "embedded_gaussian", **options: Any) -> nl.NonLocalBlock:
    if pairwise == "concatenation":
        options.pop("scale", None)  # of a product, which it does not have
    torch.manual_seed(0)
    block = nl.NonLocalBlock(6, pairwise=pairwise, **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.eval()


def _traced(block: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes are compared, and that trace is old
        return torch.jit.trace(block, x)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("options", "shape"), OPTIONS)
@pytest.mark.parametrize("pairwise", FUNCTIONS)
def test_a_traced_block_takes_other_sizes(
    pairwise: str, options: dict[str, Any], shape: tuple[int, ...], gradients: bool
) -> None:
    block = _block(pairwise, **options)
    with torch.set_grad_enabled(gradients):
        traced = _traced(block, torch.randn(2, 6, *shape))
    for batch, more in ((2, 0), (1, 4), (3, 2)):
        x = torch.randn(batch, 6, shape[0], *(size + more for size in shape[1:]))
        if len(shape) == 1:
            x = torch.randn(batch, 6, shape[0] + more)
        torch.testing.assert_close(traced(x), block(x), rtol=1e-4, atol=1e-5)
    if gradients:
        x = torch.randn(2, 6, *shape)
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        traced(one).sin().sum().backward()
        block(two).sin().sum().backward()
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("side", [20, 48])  # 48: buffers of huge pages in eager mode
def test_a_traced_block_is_right_in_every_thread(side: int) -> None:
    block = _block(dims=2, subsample=False)
    with torch.no_grad():
        traced = _traced(block, torch.randn(1, 6, side, side))
        clips = [torch.randn(1, 6, side, side) for _ in range(4)]
        wanted = [block(x) for x in clips]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.allclose(traced(clips[number]), wanted[number], atol=1e-4):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_function_of_ones_own_is_traced() -> None:
    function = nl.PairwiseFunction("euclid", lambda t, p: (-(torch.cdist(t, p) ** 2)).softmax(dim=2))
    block = _block(function, dims=2)  # type: ignore[arg-type]
    traced = _traced(block, torch.randn(1, 6, 40, 40))
    x = torch.randn(1, 6, 12, 20)
    torch.testing.assert_close(traced(x), block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("options", "shape"), OPTIONS)
@pytest.mark.parametrize("pairwise", FUNCTIONS)
def test_an_exported_block_takes_other_batches_and_sizes(
    pairwise: str, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    block = _block(pairwise, **options)
    dynamic = {0: torch.export.Dim.DYNAMIC, len(shape) + 1: torch.export.Dim.DYNAMIC}
    for example in (2, 300):  # 300 maps are more than 65,536 numbers
        program = torch.export.export(block, (torch.randn(example, 6, *shape),), dynamic_shapes=(dynamic,))
        for batch, more in ((2, 0), (3, 2), (310, 4)):
            x = torch.randn(batch, 6, *shape[:-1], shape[-1] + more)
            torch.testing.assert_close(program.module()(x), block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pairwise", FUNCTIONS)
def test_forward_mode_is_the_derivative(pairwise: str) -> None:
    block = _block(pairwise, dims=2).double()
    x, direction = torch.randn(2, 1, 6, 6, 4, dtype=torch.float64)
    _, along = torch.func.jvp(block, (x,), (direction,))
    step = 1e-6
    with torch.no_grad():
        wanted = (block(x + step * direction) - block(x - step * direction)) / (2 * step)
    torch.testing.assert_close(along, wanted, rtol=1e-5, atol=1e-6)
    with forward_ad.dual_level():
        y = forward_ad.unpack_dual(block(forward_ad.make_dual(x, direction)))
        torch.testing.assert_close(y.tangent, along)


@pytest.mark.parametrize("pairwise", FUNCTIONS)
def test_jacfwd_and_hessian(pairwise: str) -> None:
    block = _block(pairwise, dims=1).double()
    x = torch.randn(1, 6, 4, dtype=torch.float64)
    rows = torch.func.jacfwd(block)(x)
    torch.testing.assert_close(rows, torch.func.jacrev(block)(x))
    curvature = torch.func.hessian(lambda x: block(x).sin().sum())(x)
    wanted = torch.autograd.functional.hessian(lambda x: block(x).sin().sum(), x)
    torch.testing.assert_close(curvature, wanted)


@pytest.mark.parametrize("positions", [64, 2000])
@pytest.mark.parametrize("pairwise", FUNCTIONS)
def test_saved_tensors_may_be_changed_where_torch_allows_it(pairwise: str, positions: int) -> None:
    block = _block(pairwise, dims=1)
    x = torch.randn(1, 6, positions, requires_grad=True)
    (wanted,) = torch.autograd.grad(block(x).mul(2).sum(), x)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        y = block(x)
        y.mul_(2)
        (found,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("budget", [None, 0, 1 << 40])
@pytest.mark.parametrize("positions", [1, 64, 2000])
@pytest.mark.parametrize("pairwise", ["gaussian", "dot_product", "concatenation"])
def test_a_result_may_be_changed_in_place(pairwise: str, positions: int, budget: int | None) -> None:
    width = () if pairwise == "concatenation" else (8,)
    operands = [
        torch.randn(1, positions, *width),
        torch.randn(1, positions, *width),
        torch.randn(1, positions, 8),
    ]
    options = {"memory_budget": budget} if pairwise == "gaussian" else {}
    gradients = []
    for in_place in (False, True):
        inputs = [x.clone().requires_grad_() for x in operands]
        y = getattr(nl.functional, pairwise)(*inputs, **options)
        y = y.mul_(2) if in_place else y * 2
        gradients.append(torch.autograd.grad(y.sin().sum(), inputs))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("free", [0, 2**20, 2**45])
def test_what_is_saved_does_not_depend_on_the_memory_that_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    block = _block(dims=1, subsample=False)
    x = torch.randn(1, 6, 3300, requires_grad=True)  # p takes 44 MB
    y = checkpoint(block, x, use_reentrant=False)
    monkeypatch.setattr(workspace, "free_bytes", lambda _: free)
    y.sum().backward()  # makes y again
    assert x.grad is not None
