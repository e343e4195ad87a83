"""Blockwise, with the largest other weight, and for magnitudes: against the equation, and what holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nonlocal_nn as nl
from nonlocal_nn.ops.means import reference
from nonlocal_nn.ops.means.arguments import one_of
from nonlocal_nn.ops.means.blockwise import blockwise_means

RNG = np.random.default_rng(0)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_blockwise_is_the_equation(data: st.DataObject) -> None:
    axes = data.draw(st.integers(2, 3))
    shape = data.draw(st.lists(st.integers(1, (6, 4)[axes - 2]), min_size=axes, max_size=axes))
    sizes = data.draw(st.lists(st.sampled_from([1, 3, 5]), min_size=axes, max_size=axes))
    distances = data.draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    image = rng.random((*shape, data.draw(st.integers(1, 3))))
    mask = rng.random(shape) > 0.3 if data.draw(st.booleans()) else None
    h = data.draw(st.sampled_from([0.005, 0.2]))
    own, blockwise, fast = (data.draw(st.booleans()) for _ in range(3))
    expected = reference.denoise(
        image,
        sizes,
        distances,
        h=h,
        sigma=0.1,
        gaussian=not fast,
        mask=mask,
        blockwise=blockwise,
        own_max=own,
    )
    for requires_grad in (False, True):  # two ways to the same numbers
        found = nl.denoise_nl_means(
            torch.tensor(image, requires_grad=requires_grad),
            sizes,
            distances,
            h,
            fast,
            0.1,
            channel_axis=-1,
            mask=None if mask is None else torch.tensor(mask),
            variant="blockwise" if blockwise else "textbook",
            own_weight="max" if own else 1,
        )
        np.testing.assert_allclose(found.detach(), expected, atol=1e-10)


@pytest.mark.parametrize("own_max", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(own_max: bool, masked: bool) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    h = (torch.rand(2, 4, 3, dtype=torch.float64) + 0.3).requires_grad_()
    sigma = (0.1 * torch.rand(2, 4, 3, dtype=torch.float64)).requires_grad_()
    kernels = [torch.tensor(reference.patch_kernel((3,), False))] * 2
    mask = torch.rand(2, 4, 3) > 0.2 if masked else None

    def run(x: torch.Tensor, h: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return blockwise_means(x, x, h, sigma, kernels, (2, 1), mask, own_max=own_max)

    assert torch.autograd.gradcheck(run, (x, h, sigma))


def test_the_largest_other_weight_does_not_vanish_in_single_precision() -> None:
    image = RNG.random((9, 9))
    given = {"h": 1e-3, "own_weight": "max", "variant": "blockwise"}
    single = nl.denoise_nl_means(image.astype(np.float32), 3, 2, **given)
    expected = reference.denoise(image[..., None], (3, 3), (2, 2), h=1e-3, own_max=True, blockwise=True)
    assert np.isfinite(single).all()
    assert np.abs(single - expected[..., 0]).max() < 0.05  # h of 1e-3 turns rounding into weights
    np.testing.assert_allclose(nl.denoise_nl_means(image, 3, 2, **given), expected[..., 0], atol=1e-9)


@pytest.mark.parametrize("own_weight", [1, "max"])
def test_a_constant_stays_and_adding_one_adds_it(own_weight: object) -> None:
    options = {"h": 0.2, "sigma": 0.1, "variant": "blockwise", "own_weight": own_weight}
    np.testing.assert_allclose(nl.denoise_nl_means(np.full((7, 6), 0.3), 5, 3, **options), 0.3, atol=1e-12)
    image = RNG.random((8, 7))
    plain = nl.denoise_nl_means(image, 3, 3, **options)
    np.testing.assert_allclose(nl.denoise_nl_means(image + 2, 3, 3, **options), plain + 2, atol=1e-10)
    np.testing.assert_allclose(nl.denoise_nl_means(image.T, 3, 3, **options), plain.T, atol=1e-12)
    np.testing.assert_allclose(nl.denoise_nl_means(image[::-1], 3, 3, **options), plain[::-1], atol=1e-12)


def test_magnitudes_are_averaged_as_squares() -> None:
    image = 0.2 + RNG.random((8, 7))
    mask = RNG.random((8, 7)) > 0.2
    found = nl.denoise_nl_means(image, 3, 3, 0.5, sigma=0.1, noise="rician", mask=mask)
    squares = reference.denoise(
        (image**2)[..., None], (3, 3), (3, 3), h=0.5, sigma=0.1, guide=image[..., None], mask=mask
    )
    expected = np.sqrt(np.maximum(squares[..., 0] - 2 * 0.1**2, 0))
    np.testing.assert_allclose(found, np.where(mask, expected, image), atol=1e-12)


def test_the_mean_of_magnitudes_of_noise_is_right() -> None:
    truth, sigma = 0.3, 0.2
    parts = truth + sigma * RNG.normal(size=(64, 64)) + 1j * sigma * RNG.normal(size=(64, 64))
    magnitude = np.abs(parts)
    rician = nl.denoise_nl_means(magnitude, 3, 10, 5.0, sigma=sigma, noise="rician").mean()
    plain = nl.denoise_nl_means(magnitude, 3, 10, 5.0, sigma=sigma).mean()
    assert abs(rician - truth) < 0.01 < abs(plain - truth)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"own_weight": True}, "own_weight = True: 1 or 'max'"),
        ({"noise": "rician"}, "sigma = 0 with noise='rician'"),
        ({"noise": "rician", "sigma": "auto"}, "hold for gaussian noise"),
        ({"variant": "blockwise", "compatibility": "scikit-image"}, "scikit-image has nothing else"),
    ],
)
def test_what_cannot_be(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        nl.denoise_nl_means(RNG.random((8, 8)), 3, 2, **options)  # type: ignore[arg-type]


def test_a_word_that_is_no_choice() -> None:
    assert one_of("variant", "blockwise", ("textbook", "blockwise")) == "blockwise"
    with pytest.raises(ValueError, match="variant = 'blocks': 'textbook' or 'blockwise'"):
        one_of("variant", "blocks", ("textbook", "blockwise"))
