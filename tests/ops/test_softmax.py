"""How products are made (MKL or oneDNN, any layout), torch's flash kernel, and torch's transformations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.func import grad, jacrev, vmap

from nonlocal_nn import functional
from nonlocal_nn.ops import dispatch, equation
from nonlocal_nn.ops.cpu import gemm
from tests.ops.operands import NAMES, inputs, values_and_gradients


@pytest.fixture(params=["mkl", "onednn"])
def library(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, thresholds: Callable[..., None]
) -> Iterator[str]:
    """Both libraries, whatever processor this is."""
    gemm._onednn_linear.cache_clear()
    monkeypatch.setattr(gemm, "_is_wide_amd", lambda: request.param == "onednn")
    thresholds(onednn_multiplications=50, onednn_longest_sum=10)
    assert (gemm._onednn_linear() is not None) == (request.param == "onednn")
    yield request.param
    gemm._onednn_linear.cache_clear()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("budget", [0, 3000, None])
def test_both_libraries_agree_with_the_reference(batch, transposed, budget):
    shapes = [(batch, 61, 24), (batch, 43, 24), (batch, 43, 20)]
    made = [torch.randn(b, c, n).mT if transposed else torch.randn(b, n, c) for b, n, c in shapes]
    arguments = tuple(x.requires_grad_() for x in made)
    dy = torch.randn(batch, 61, 20)
    ours = values_and_gradients(lambda *x: functional.gaussian(*x, 0.2, memory_budget=budget), arguments, dy)
    theirs = values_and_gradients(lambda *x: equation.gaussian(*x, 0.2), arguments, dy)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dot_product", "concatenation"])
@pytest.mark.parametrize("transposed", [(), (0,), (1, 2), (0, 1, 2), (3,), (0, 1, 2, 3)])
def test_any_layout_in_memory_agrees_with_the_reference(name, transposed):
    made = [*(x.detach() for x in inputs(name, 2, 61, 43, 9, 8)), torch.randn(2, 61, 8).double()]
    *arguments, dy = (
        x.mT.contiguous().mT if index in transposed and x.dim() == 3 else x for index, x in enumerate(made)
    )
    arguments = tuple(x.requires_grad_() for x in arguments)
    ours = values_and_gradients(getattr(functional, name), arguments, dy)
    theirs = values_and_gradients(getattr(equation, name), arguments, dy)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_added_up_over_chunks(transposed):
    left, right = torch.randn(1, 90, 30), torch.randn(1, 90, 40)
    if transposed:
        left, right = (x.mT.contiguous().mT for x in (left, right))
    target = torch.full((1, 30, 40), torch.nan)
    for rows in (slice(0, 50), slice(50, 51), slice(51, 90)):
        gemm.add_product(target, left[:, rows].mT, right[:, rows].mT, first=rows.start == 0)
    torch.testing.assert_close(target, left.mT @ right, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("library")
def test_products_ignore_what_lies_in_their_buffers():
    left, right = torch.randn(2, 9, 5), torch.randn(2, 8, 5)
    made = gemm.product(left, right, torch.full((2, 9, 8), torch.nan))
    torch.testing.assert_close(made, left @ right.mT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("keys", "channels"), [(9, 4), (4, 9)])
@pytest.mark.parametrize("backward", [False, True])
def test_results_lie_in_memory_as_maps_do(name, keys, channels, backward):
    *positions, g = inputs(name, 3, 12, keys, 5, channels)
    positions = [x.detach().mT.contiguous().mT.requires_grad_(backward) for x in positions]
    g = g.detach().mT.contiguous().mT.requires_grad_(backward)
    y = getattr(functional, name)(*positions, g)
    assert y.mT.is_contiguous()
    torch.testing.assert_close(y, getattr(equation, name)(*positions, g))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (1, 1, 1)])
def test_vmap_and_its_gradients(name, in_dims):
    function, plain = getattr(functional, name), getattr(equation, name)
    once = [x.detach() for x in inputs(name, 2, 33, 21, 3, 4)]
    arguments = [
        x if dim is None else torch.stack([x, x + 0.5, 2 * x], dim=dim)
        for x, dim in zip(once, in_dims, strict=True)
    ]

    def losses(f):
        return lambda *x: f(*x).sin().sum()

    torch.testing.assert_close(
        vmap(function, in_dims)(*arguments), vmap(plain, in_dims)(*arguments), rtol=1e-9, atol=1e-9
    )
    ours = vmap(grad(losses(function), argnums=(0, 1, 2)), in_dims)(*arguments)
    theirs = vmap(grad(losses(plain), argnums=(0, 1, 2)), in_dims)(*arguments)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_jacobians_and_second_derivatives_by_torch_func(name):
    function, plain = getattr(functional, name), getattr(equation, name)
    arguments = [x.detach() for x in inputs(name, 1, 5, 4, 3, 2)]
    torch.testing.assert_close(jacrev(function)(*arguments), jacrev(plain)(*arguments))

    def twice(f):
        return jacrev(jacrev(lambda x: f(x, *arguments[1:]).sin().sum()))(arguments[0])

    torch.testing.assert_close(twice(function), twice(plain))


@pytest.mark.usefixtures("library")
def test_strided_matrices_multiply_as_dense_ones():
    wide = torch.randn(1, 300, 2 * 256)
    left, right = torch.randn(1, 200, 256), wide[:, :, 100:356]
    exact = (left.double() @ right.double().mT)[0]
    for made in (gemm.product(left, right), gemm.product(left, right, longest_sum=100)):
        torch.testing.assert_close(made[0].double(), exact, rtol=1e-4, atol=1e-4)
    columns = gemm.product(left, wide[:, :256, 7:307].mT)
    torch.testing.assert_close(columns, left @ wide[:, :256, 7:307], rtol=1e-4, atol=1e-4)


def test_shorter_sums_of_logits_are_more_exact():
    if not gemm.uses_onednn(torch.zeros(1), 1000, 1000, 1000):
        pytest.skip("MKL multiplies here, and cuts its sums itself")
    torch.manual_seed(0)
    left, right = torch.randn(1, 500, 512), torch.randn(1, 500, 512)
    exact = left.double() @ right.double().mT
    errors = [
        (gemm.product(left, right, longest_sum=longest) - exact).square().mean().item()
        for longest in (None, dispatch.THRESHOLDS.onednn_longest_sum)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_torch_flash_kernel_for_long_rows_agrees_with_the_reference(monkeypatch, thresholds):
    """Where oneDNN is not the faster library: torch's own kernel, in inference alone."""
    gemm._onednn_linear.cache_clear()
    monkeypatch.setattr(gemm, "_is_wide_amd", lambda: False)
    thresholds(cpu_flash_keys=40)
    theta, phi, g = (x.detach() for x in inputs("gaussian", 2, 30, 50, 8, 8))
    real, seen = torch.nn.functional.scaled_dot_product_attention, []

    def attention(*args, **options):
        seen.append(args[0].shape)
        return real(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    torch.testing.assert_close(functional.gaussian(theta, phi, g, 0.3), equation.gaussian(theta, phi, g, 0.3))
    assert seen == [(2, 1, 30, 8)]
    theta.requires_grad_()
    functional.gaussian(theta, phi, g)
    functional.gaussian(theta.detach()[:, :, :4], phi[:, :, :4], g)
    assert len(seen) == 1
    gemm._onednn_linear.cache_clear()
