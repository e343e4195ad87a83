"""The ways the softmax average is computed: rows or tiles, MKL or oneDNN, and torch's transformations."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.func import grad, jacrev, vmap

from nonlocal_nn.ops import dot_product as bracket
from nonlocal_nn.ops import equation as reference
from nonlocal_nn.ops import pairwise
from nonlocal_nn.ops.cpu import gemm as products
from nonlocal_nn.ops.cpu import softmax_rows, softmax_symmetric, softmax_tiles
from nonlocal_nn.ops.cpu import workspace as memory
from tests.ops.operands import NAMES, inputs, values_and_gradients


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_tiles, "FEW_KEYS", 2)
    monkeypatch.setattr(softmax_tiles, "FEW_KEYS_ONEDNN", 2)
    monkeypatch.setattr(softmax_tiles, "FEW_KEYS_UNEQUAL", 2)
    monkeypatch.setattr(softmax_tiles, "TILE", (4, 7))


@pytest.mark.usefixtures("small_tiles")
@given(
    batch=st.integers(1, 3),
    queries=st.integers(4, 30),
    keys=st.integers(2, 30),
    d=st.integers(1, 9),
    channels=st.integers(1, 9),
    scale=st.sampled_from([1.0, 0.3]),
    wanted=st.sampled_from([(0,), (1,), (2,), (0, 1, 2)]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiles_agree_with_the_reference(batch, queries, keys, d, channels, scale, wanted):
    torch.manual_seed(0)
    arguments = tuple(
        x if index in wanted else x.detach()
        for index, x in enumerate(inputs("gaussian", batch, queries, keys, d, channels))
    )
    assert softmax_tiles.suits(*arguments)
    dy = torch.randn(batch, queries, channels, dtype=torch.float64)
    results = []
    for function in (partial(pairwise.gaussian, memory_budget=0), reference.gaussian):
        y = function(*arguments, scale)
        results.append([y, *torch.autograd.grad(y, [arguments[index] for index in wanted], dy)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.fixture
def tiles_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_tiles, "FEW_KEYS_ONEDNN", softmax_tiles.FEW_KEYS)


@pytest.mark.usefixtures("tiles_early")
def test_tiles_of_real_size_stay_close_to_float64():
    theta, phi, g = (x.detach() for x in inputs("gaussian", 1, 1500, 5000, 48, 48, torch.float32))
    theta *= 48**-0.5
    arguments = tuple(x.requires_grad_() for x in (theta, phi, g))
    assert softmax_tiles.suits(*arguments)
    dy = torch.randn(1, 1500, 48)
    ours = values_and_gradients(partial(pairwise.gaussian, memory_budget=0), arguments, dy)
    doubles = tuple(x.detach().double().requires_grad_() for x in arguments)
    exact = values_and_gradients(reference.gaussian, doubles, dy.double())
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, exact, strict=True)]
    assert errors[0] <= 2e-6
    assert max(errors[1:]) <= 2e-5


@pytest.mark.usefixtures("tiles_early")
def test_tiles_with_logits_of_ten_thousand():
    theta, phi, g = (x.detach() for x in inputs("gaussian", 1, 600, 4200, 16, 16, torch.float32))
    arguments = tuple(x.requires_grad_() for x in (theta * 2500, phi, g))
    assert (arguments[0] @ arguments[1].mT).abs().max() > 1e4
    ours = values_and_gradients(
        partial(pairwise.gaussian, memory_budget=0), arguments, torch.ones(1, 600, 16)
    )
    assert all(x.isfinite().all() for x in ours)


@pytest.fixture(params=["mkl", "onednn half width", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, as_if_large: None) -> str:
    """Both libraries, whatever processor this is."""
    products._onednn_linear.cache_clear()
    family = {"mkl": None, "onednn half width": 25, "onednn": 26}[request.param]
    monkeypatch.setattr(products, "_amd_avx512_family", lambda: family)
    monkeypatch.setattr(products, "SMALL", 50)
    monkeypatch.setattr(softmax_rows, "HALF_WIDTH_PRODUCT", 50)
    assert (products._onednn_linear() is not None) == (family is not None)
    yield request.param
    products._onednn_linear.cache_clear()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("budget", [0, 3000, None])
def test_both_libraries_agree_with_the_reference(batch, transposed, budget):
    shapes = [(batch, 61, 24), (batch, 43, 24), (batch, 43, 20)]
    made = [torch.randn(b, c, n).mT if transposed else torch.randn(b, n, c) for b, n, c in shapes]
    arguments = tuple(x.requires_grad_() for x in made)
    dy = torch.randn(batch, 61, 20)
    ours = values_and_gradients(lambda *x: pairwise.gaussian(*x, 0.2, memory_budget=budget), arguments, dy)
    theirs = values_and_gradients(lambda *x: reference.gaussian(*x, 0.2), arguments, dy)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("transposed", [(), (0,), (1, 2), (0, 1, 2), (3,), (0, 1, 2, 3)])
def test_both_libraries_agree_with_the_reference_on_dot_products(transposed):
    shapes = [(2, 61, 9), (2, 43, 9), (2, 43, 8), (2, 61, 8)]
    made = [
        torch.randn(b, c, n).mT if index in transposed else torch.randn(b, n, c)
        for index, (b, n, c) in enumerate(shapes)
    ]
    *arguments, dy = made
    arguments = tuple(x.requires_grad_() for x in arguments)
    ours = values_and_gradients(lambda *x: bracket.DotProductSum.apply(*x)[0], arguments, dy)
    theirs = values_and_gradients(reference.dot_product, arguments, dy)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_added_up_over_chunks_for_each_entry_of_the_batch(transposed):
    left, right = torch.randn(3, 90, 30), torch.randn(3, 90, 40)
    if transposed:
        left, right = (x.mT.contiguous().mT for x in (left, right))
    made = products.SumOfProducts(torch.full((3, 30, 40), torch.nan))
    for some in (slice(0, 2), slice(2, 3)):
        for rows in (slice(0, 50), slice(50, 51), slice(51, 90)):
            made.add(some, left[some, rows], right[some, rows])
    torch.testing.assert_close(made.result(), left.mT @ right, rtol=1e-4, atol=1e-4)
    assert torch.equal(products.SumOfProducts(right[:0]).result(), right[:0])
    assert products.SumOfProducts(right).result().eq(0).all()


@pytest.mark.usefixtures("library")
def test_products_ignore_what_lies_in_their_buffers():
    left, right = torch.randn(2, 9, 5), torch.randn(2, 8, 5)
    made = products.product(left, right, torch.full((2, 9, 8), torch.nan))
    torch.testing.assert_close(made, left @ right.mT)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("keys", "channels"), [(9, 4), (4, 9)])
@pytest.mark.parametrize("backward", [False, True])
def test_results_lie_in_memory_as_maps_do(name, keys, channels, backward):
    *positions, g = inputs(name, 3, 12, keys, 5, channels)
    positions = [x.detach().mT.contiguous().mT.requires_grad_(backward) for x in positions]
    g = g.detach().mT.contiguous().mT.requires_grad_(backward)
    y = getattr(pairwise, name)(*positions, g)
    assert y.mT.is_contiguous()
    torch.testing.assert_close(y, getattr(reference, name)(*positions, g))


def test_scratch_holds_what_is_written_and_dies_with_its_views():
    like = torch.zeros(1, dtype=torch.float64)
    large = memory.scratch((3, 1000, 500), like)  # 12 MB: huge pages where there are any
    assert large.shape == (3, 1000, 500)
    assert large.dtype == torch.float64
    large.fill_(2)
    view = large[1, 5:7]
    del large
    assert view.sum() == 2000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (1, 1, 1)])
def test_vmap_and_its_gradients(name, in_dims):
    function, plain = getattr(pairwise, name), getattr(reference, name)
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
    function, plain = getattr(pairwise, name), getattr(reference, name)
    arguments = [x.detach() for x in inputs(name, 1, 5, 4, 3, 2)]
    torch.testing.assert_close(jacrev(function)(*arguments), jacrev(plain)(*arguments))

    def twice(f):
        return jacrev(jacrev(lambda x: f(x, *arguments[1:]).sin().sum()))(arguments[0])

    torch.testing.assert_close(twice(function), twice(plain))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that come to the symmetric form."""
    seen = []
    real = softmax_symmetric.forward

    def forward(x, g, scale):
        seen.append(tuple(x.shape))
        return real(x, g, scale)

    monkeypatch.setattr(softmax_symmetric, "forward", forward)
    return seen


@pytest.mark.usefixtures("as_if_large")
@given(
    batch=st.integers(1, 3),
    positions=st.integers(2, 40),
    d=st.integers(1, 9),
    channels=st.integers(1, 9),
    scale=st.sampled_from([1.0, 0.3]),
    offset=st.sampled_from([0.0, 3.0]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_symmetric_half_agrees_with_the_reference(
    monkeypatch, batch, positions, d, channels, scale, offset
):
    with monkeypatch.context() as patch:
        patch.setattr(softmax_symmetric, "FEW", 2)
        patch.setattr(softmax_symmetric, "TILE", 7)
        seen = counted(patch)
        torch.manual_seed(0)
        x = torch.randn(batch, positions, d, dtype=torch.float64) + offset
        x *= min(1.0, 6.0 / x.norm(dim=2).max().item())
        g = torch.randn(batch, positions, channels, dtype=torch.float64)
        y = pairwise.gaussian(x, x, g, scale)
    assert seen == [(batch, positions, d)]
    torch.testing.assert_close(y, reference.gaussian(x, x, g, scale), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("spread", [0.1, 27.5])
def test_the_symmetric_half_in_real_size_stays_close_to_float64(monkeypatch, spread):
    seen = counted(monkeypatch)
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(2, 2000, 300), dim=2)
    x *= (2 * torch.linspace(1.0, 1.0 + spread, 2000)).sqrt()[:, None]
    g = torch.randn(2, 2000, 70)
    y = pairwise.gaussian(x, x, g)
    assert len(seen) == 1
    exact = reference.gaussian(x.double(), x.double(), g.double())
    error = ((y.double() - exact).abs().max() / exact.abs().max()).item()
    plain = ((reference.gaussian(x, x, g).double() - exact).abs().max() / exact.abs().max()).item()
    assert error < max(3e-6, 2 * plain)
    assert torch.equal(y, pairwise.gaussian(x, x, g))
    half = pairwise.gaussian(x.bfloat16(), (rounded := x.bfloat16()), g.bfloat16())
    assert len(seen) == 2  # two tensors: whole rows
    assert half.dtype == torch.bfloat16
    same = pairwise.gaussian(rounded, rounded, g.bfloat16())
    assert len(seen) == 3
    torch.testing.assert_close(same, half, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("as_if_large")
def test_sizes_too_far_apart_take_whole_rows(monkeypatch):
    seen = counted(monkeypatch)
    x, g = torch.rand(1, 1100, 4), torch.rand(1, 1100, 2)
    x[0, 7] = 50.0
    torch.testing.assert_close(pairwise.gaussian(x, x, g), reference.gaussian(x, x, g))
    x[0, 7] = float("nan")
    assert pairwise.gaussian(x, x, g).isnan().any()
    x[0, 7] = 0.0
    pairwise.gaussian(x, x, g, memory_budget=10_000)
    assert not seen
    pairwise.gaussian(x, x, g, memory_budget=0)
    assert len(seen) == 1


@pytest.mark.parametrize("uses", [1, 5, 100])  # enough to rearrange nothing, the one or both
def test_strided_matrices_and_prepared_ones_multiply_alike(uses):
    wide = torch.randn(1, 300, 2 * 256)
    left, right = torch.randn(1, 200, 256), wide[:, :, 100:356]
    exact = (left.double() @ right.double().mT)[0]
    bias = torch.randn(300)
    prepared = products.Right(right, rows=200, uses=uses, longest_sum=100)
    rows = slice(0, 1)
    for made in (
        products.product(left, right),
        prepared.product(rows, left),
        prepared.product(rows, left[:, :3]),  # too few rows for what was prepared
        products.product(left, right, bias=bias) - bias,
        prepared.product(rows, left, bias=bias) - bias,
    ):
        torch.testing.assert_close(made[0].double(), exact[: made.shape[1]], rtol=1e-4, atol=1e-4)
    columns = products.Right(wide[:, :256, 7:307].mT, rows=200, uses=uses)
    torch.testing.assert_close(columns.product(rows, left), left @ wide[:, :256, 7:307], rtol=1e-4, atol=1e-4)


def test_shorter_sums_of_logits_are_more_exact():
    if not products.uses_onednn(torch.zeros(1), 1000, 1000, 1000):
        pytest.skip("MKL multiplies here, and cuts its sums itself")
    torch.manual_seed(0)
    left, right = torch.randn(1, 500, 512), torch.randn(1, 500, 512)
    exact = left.double() @ right.double().mT
    errors = [
        (products.Right(right, 500, 100, longest).product(slice(0, 1), left) - exact).square().mean().item()
        for longest in (None, softmax_rows.LONGEST_SUM)
    ]
    assert errors[1] < 0.5 * errors[0]
