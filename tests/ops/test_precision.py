"""Rounding: against float64, for far-apart and huge values, in half precision and under autocast."""

from __future__ import annotations

import pytest
import torch

from nonlocal_nn import functional
from nonlocal_nn.ops import equation
from tests.ops.operands import NAMES, inputs, values_and_gradients


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_close_to_float64(name):
    first, second, third = (x.detach() for x in inputs(name, 1, 3136, 3136, 64, 32, torch.float32))
    if name == "gaussian":  # logits of variance 1: float32 rounds larger ones more, in any form
        first *= 64**-0.5
    arguments = tuple(x.requires_grad_() for x in (first, second, third))
    dy = torch.randn(1, 3136, 32)
    ours = values_and_gradients(getattr(functional, name), arguments, dy)
    exact_arguments = tuple(value.detach().double().requires_grad_() for value in arguments)
    exact = values_and_gradients(getattr(equation, name), exact_arguments, dy.double())
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, exact, strict=True)]
    assert errors[0] <= 2e-6
    assert max(errors[1:]) <= 2e-5


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_concatenation_does_not_cancel_where_a_and_b_are_far_from_zero(offset, dtype):
    a = (torch.randn(1, 900, dtype=torch.float64) * 50 + offset).to(dtype)
    b = (torch.randn(1, 800, dtype=torch.float64) * 50 - offset).to(dtype)
    g = torch.rand(1, 800, 4, dtype=dtype)
    ours = functional.concatenation(a, b, g)
    # a + b is exact here (Sterbenz), so the plain sum is the truth up to its own rounding.
    exact = equation.concatenation(a.double(), b.double(), g.double())
    tolerance = 2e-6 if dtype == torch.float32 else 2e-14
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance * exact.max().item())


def test_concatenation_keeps_small_sums_beside_huge_ones():
    a = torch.tensor([[1.0, 3e20, -3e20, 5.0]])
    b = torch.tensor([[-4.0, -1e20, 1e-3]]).repeat(1, 300)
    g = torch.rand(1, 900, 3)
    exact = equation.concatenation(a.double(), b.double(), g.double())
    torch.testing.assert_close(functional.concatenation(a, b, g).double(), exact, rtol=2e-6, atol=0)


def test_concatenation_is_exactly_zero_where_no_key_is_active():
    a, b, g = torch.full((1, 700), -2.0), torch.ones(1, 600), torch.randn(1, 600, 2)
    assert functional.concatenation(a, b, g).count_nonzero() == 0
    tied = functional.concatenation(torch.full((1, 700), -1.0), b, g)  # a + b = 0: ReLU is 0
    assert tied.count_nonzero() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", [0, 1])
def test_nan_is_not_hidden(name, which):
    arguments = [value.detach() for value in inputs(name, 1, 700, 600, 3, 2)]
    arguments[which][0, 5] = torch.nan
    ours, plain = (getattr(module, name)(*arguments).isnan() for module in (functional, equation))
    assert plain.any()
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_never_further_from_float64_than_the_plain_form(name, dtype):
    arguments = tuple(value.detach().requires_grad_() for value in inputs(name, 1, 700, 600, 16, 8, dtype))
    dy = torch.randn(1, 700, 8).to(dtype)
    ours = values_and_gradients(getattr(functional, name), arguments, dy)
    plain = values_and_gradients(getattr(equation, name), arguments, dy)
    doubles = tuple(value.detach().double().requires_grad_() for value in arguments)
    exact = values_and_gradients(getattr(equation, name), doubles, dy.double())
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - truth).norm() <= (theirs.double() - truth).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_logits_of_ten_thousand_keep_their_differences(dtype):
    theta, phi, g, dy = (torch.randn(1, 300, 4).to(dtype) for _ in range(4))
    theta[..., 0] = phi[..., 0] = 100  # every logit is 1e4 and a little
    ours = values_and_gradients(functional.gaussian, tuple(x.requires_grad_() for x in (theta, phi, g)), dy)
    doubles = tuple(value.detach().double().requires_grad_() for value in (theta, phi, g))
    exact = values_and_gradients(equation.gaussian, doubles, dy.double())
    for mine, truth in zip(ours, exact, strict=True):
        # float32 rounds logits of 1e4 by up to 5e-4, bfloat16 rounds results by up to 4e-3
        error = (mine.double() - truth).abs().max() / truth.abs().max()
        assert error <= (4e-3 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_key_may_have_all_the_weight(dtype):
    theta, phi = (torch.tensor([[[100.0], [-100.0]]], dtype=dtype).requires_grad_() for _ in range(2))
    g = torch.randn(1, 2, 3).to(dtype).requires_grad_()
    dy = torch.randn(1, 2, 3).to(dtype)
    y, dtheta, dphi, dg = values_and_gradients(functional.gaussian, (theta, phi, g), dy)
    assert torch.equal(y, g)
    assert torch.equal(dg, dy)
    assert max(dtheta.float().abs().max(), dphi.float().abs().max()) < 1e-30


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing_inside(name):
    arguments = inputs(name, 1, 700, 600, 16, 8, torch.float32)
    dy = torch.randn(1, 700, 8)
    outside = values_and_gradients(getattr(functional, name), arguments, dy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = getattr(functional, name)(*arguments)
    gradients = torch.autograd.grad(y, arguments, dy)
    for inside, plain in zip((y, *gradients), outside, strict=True):
        assert torch.equal(inside, plain)


def test_gradients_of_positions_over_themselves_are_rounded_once():
    x, g = (torch.randn(1, 60, 8, dtype=torch.bfloat16) for _ in range(2))
    dy = torch.randn(1, 60, 8, dtype=torch.bfloat16)
    x.requires_grad_()
    wide = x.detach().float().requires_grad_()
    (dx,) = torch.autograd.grad(functional.gaussian(x, x, g), x, dy)
    (exact,) = torch.autograd.grad(equation.gaussian(wide, wide, g.float()), wide, dy.float())
    torch.testing.assert_close(dx.float(), exact, rtol=2**-8, atol=1e-5)
