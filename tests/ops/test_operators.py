"""The fast forms against the sums as written: values, gradients, second derivatives, bad input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nonlocal_nn import functional
from nonlocal_nn.ops import equation
from nonlocal_nn.ops.cpu import workspace
from tests.ops.operands import NAMES, inputs, values_and_gradients


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch, thresholds: Callable[..., None]) -> None:
    """Several chunks, the last of them incomplete, at sizes a test can afford."""
    thresholds(cpu_chunk_bytes=500, chunk_rows=1, concatenation_chunk_bytes=2000, concatenation_block=4)
    monkeypatch.setattr(workspace, "ALWAYS_BYTES", 2000)
    monkeypatch.setattr(workspace, "BUDGET_SHARE", 2**40)


def assert_agrees_with_the_reference(name: str, arguments: tuple[torch.Tensor, ...], atol: float) -> None:
    """Values and gradients."""
    first, *_, g = arguments
    dy = torch.randn(first.shape[0], first.shape[1], g.shape[2], dtype=torch.float64)
    fast = values_and_gradients(getattr(functional, name), arguments, dy)
    plain = values_and_gradients(getattr(equation, name), arguments, dy)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=atol)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", NAMES)
@given(
    batch=st.integers(0, 3),
    queries=st.integers(0, 40),
    keys=st.integers(1, 40),
    d=st.integers(1, 9),
    channels=st.integers(1, 35),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_agrees_with_the_reference(name, batch, queries, keys, d, channels, seed):
    torch.manual_seed(seed)
    arguments = inputs(name, batch, queries, keys, d, channels)
    assert_agrees_with_the_reference(name, arguments, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("queries", "keys"), [(1100, 1100), (1100, 275), (70, 3000), (9, 12)])
def test_agrees_with_the_reference_at_sizes_of_real_maps(name, queries, keys):
    arguments = inputs(name, 2, queries, keys, 24, 20)
    assert_agrees_with_the_reference(name, arguments, atol=1e-10)


def test_scale_multiplies_the_logits():
    theta, phi, g = inputs("gaussian", 2, 7, 5, 3, 4)
    dy = torch.randn(2, 7, 4, dtype=torch.float64)
    fast = values_and_gradients(lambda *args: functional.gaussian(*args, 0.3), (theta, phi, g), dy)
    scaled = values_and_gradients(lambda t, p, v: equation.gaussian(t * 0.3, p, v), (theta, phi, g), dy)
    for ours, theirs in zip(fast, scaled, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives_of_small_maps(name):
    function = getattr(functional, name)
    for sizes in ((2, 3, 2, 5, 4), (2, 7, 5, 3, 2)):  # the dot product's two orders
        assert torch.autograd.gradcheck(function, inputs(name, *sizes))
        assert torch.autograd.gradgradcheck(function, inputs(name, *sizes))


@pytest.mark.parametrize("name", NAMES)
@given(
    batch=st.integers(0, 3),
    queries=st.integers(0, 40),
    keys=st.integers(1, 40),
    d=st.integers(1, 9),
    channels=st.integers(1, 35),
)
@settings(max_examples=40)
def test_small_maps_agree_with_the_reference(name, batch, queries, keys, d, channels):
    torch.manual_seed(0)
    arguments = inputs(name, batch, queries, keys, d, channels)
    assert_agrees_with_the_reference(name, arguments, atol=1e-11)


def test_keeping_the_weights_changes_no_bit(thresholds):
    arguments = inputs("gaussian", 5, 30, 20, 32, 24, torch.float32)
    dy = torch.randn(5, 30, 24)
    thresholds(cpu_chunk_bytes=5000, chunk_rows=1)  # two batch entries at a time
    kept, recomputed = (
        values_and_gradients(partial(functional.gaussian, memory_budget=budget), arguments, dy)
        for budget in (10**6, 0)
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    arguments = inputs(name, 2, 7, 5, 3, 2)
    assert torch.autograd.gradcheck(getattr(functional, name), arguments)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name):
    assert torch.autograd.gradgradcheck(getattr(functional, name), inputs(name, 2, 7, 5, 3, 2))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_second_derivatives_of_gaussian_where_one_input_needs_them(wanted):
    arguments = tuple(
        value if index == wanted else value.detach()
        for index, value in enumerate(inputs("gaussian", 1, 4, 3, 2, 2))
    )

    def second(function):
        (first,) = torch.autograd.grad(function(*arguments).sin().sum(), arguments[wanted], create_graph=True)
        return torch.autograd.grad(first.square().sum(), arguments[wanted])[0]

    torch.testing.assert_close(second(functional.gaussian), second(equation.gaussian))


@pytest.mark.usefixtures("small_chunks")
def test_third_derivatives_of_gaussian():
    arguments = inputs("gaussian", 1, 9, 30, 2, 2)

    def third(function):
        (first,) = torch.autograd.grad(function(*arguments).sin().sum(), arguments[0], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), arguments[0], create_graph=True)
        return torch.autograd.grad(second.square().sum(), arguments)

    for ours, theirs in zip(third(functional.gaussian), third(equation.gaussian), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_create_graph_alone_gives_the_same_gradients():
    arguments = inputs("gaussian", 1, 4, 3, 2, 2)
    once = torch.autograd.grad(functional.gaussian(*arguments).sum(), arguments)
    kept = torch.autograd.grad(functional.gaussian(*arguments).sum(), arguments, create_graph=True)
    for a, b in zip(once, kept, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_one_input_needs_a_gradient(name, wanted):
    arguments = inputs(name, 1, 600, 600, 3, 2)
    alone = tuple(value if i == wanted else value.detach() for i, value in enumerate(arguments))
    (gradient,) = torch.autograd.grad(getattr(functional, name)(*alone).square().sum(), alone[wanted])
    all_of_them = torch.autograd.grad(getattr(functional, name)(*arguments).square().sum(), arguments)
    torch.testing.assert_close(gradient, all_of_them[wanted])


@pytest.mark.parametrize("name", NAMES)
def test_order_of_positions_does_not_matter(name):
    theta, phi, g = (value.detach() for value in inputs(name, 1, 601, 600, 3, 5))
    function = getattr(functional, name)
    queries, keys = torch.randperm(601), torch.randperm(600)
    torch.testing.assert_close(function(theta[:, queries], phi, g), function(theta, phi, g)[:, queries])
    torch.testing.assert_close(function(theta, phi[:, keys], g[:, keys]), function(theta, phi, g))


def test_gaussian_weights_sum_to_one():
    theta, phi, _ = inputs("gaussian", 2, 700, 600, 3, 1)
    y = functional.gaussian(theta, phi, torch.ones(2, 600, 1, dtype=torch.float64))
    torch.testing.assert_close(y, torch.ones_like(y))


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_on_repeated_runs(name):
    arguments = inputs(name, 2, 700, 600, 8, 5, torch.float32)
    dy = torch.randn(2, 700, 5)
    first, second = (values_and_gradients(getattr(functional, name), arguments, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("module", [functional, equation])
@pytest.mark.parametrize("name", ["gaussian", "dot_product"])
@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((5, 3), (1, 4, 3), (1, 4, 2)), r"rank 3, got theta \(5, 3\), phi \(1, 4, 3\), g \(1, 4, 2\)"),
        (((2, 5, 3), (1, 4, 3), (1, 4, 2)), r"agree in batch and channels, got theta \(2, 5, 3\)"),
        (((1, 5, 6), (1, 4, 3), (1, 4, 2)), r"agree in batch and channels, got theta \(1, 5, 6\)"),
        (((1, 5, 3), (1, 4, 3), (1, 7, 2)), r"one row for each key of phi, got .* g \(1, 7, 2\)"),
        (((1, 5, 3), (1, 0, 3), (1, 0, 2)), r"at least one key .* phi \(1, 0, 3\)"),
    ],
)
def test_wrong_shapes_are_named(module, name, shapes, words):
    with pytest.raises(ValueError, match=words):
        getattr(module, name)(*map(torch.zeros, shapes))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("module", [functional, equation])
@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((1, 5, 3), (1, 4), (1, 4, 2)), r"expected a \(batch, queries\).* got a \(1, 5, 3\)"),
        (((2, 5), (1, 4), (1, 4, 2)), r"agree in batch, got a \(2, 5\), b \(1, 4\)"),
        (((1, 5), (1, 4), (1, 7, 2)), r"one row for each key of b, got .* g \(1, 7, 2\)"),
        (((1, 5), (1, 0), (1, 0, 2)), r"at least one key .* b \(1, 0\)"),
    ],
)
def test_wrong_shapes_of_scores_are_named(module, shapes, words):
    with pytest.raises(ValueError, match=words):
        module.concatenation(*map(torch.zeros, shapes))


@pytest.mark.parametrize("name", NAMES)
def test_mixed_or_whole_number_dtypes_are_named(name):
    first, second, third = inputs(name, 1, 4, 4, 2, 2)
    function = getattr(functional, name)
    with pytest.raises(ValueError, match=r"share one floating-point dtype, got .*float32.*float64"):
        function(first.float(), second, third)


@pytest.mark.usefixtures("without_shape_checks")
def test_whole_numbers_are_refused():
    whole = torch.ones(1, 3, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"floating-point dtype, got theta torch\.int64"):
        functional.gaussian(whole, whole, whole)


def test_a_budget_below_zero_is_named():
    theta, phi, g = inputs("gaussian", 1, 4, 3, 2, 2)
    with pytest.raises(ValueError, match=r"memory_budget=-5: give a number of bytes"):
        functional.gaussian(theta, phi, g, memory_budget=-5)


def test_weights_that_would_be_denormal_products_have_no_gradient():
    theta = torch.full((1, 3, 1), 50.0, requires_grad=True)
    phi = torch.tensor([[[0.0], [1.0]]], requires_grad=True)  # the first key weighs e^-50 = 2e-22
    g = torch.randn(1, 2, 4, requires_grad=True)
    dg = torch.autograd.grad(functional.gaussian(theta, phi, g).sum(), g)[0]
    assert dg[0, 0].count_nonzero() == 0
    torch.testing.assert_close(dg[0, 1], torch.full((4,), 3.0))
