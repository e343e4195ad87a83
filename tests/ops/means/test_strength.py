"""Noise that is estimated, and what follows from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn.ops.means.noise import estimate_sigma
from nonlocal_nn.ops.means.strength import rule

RNG = np.random.default_rng(0)
SIGMA = 0.1


def _clean(side: int = 64) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    return 0.5 + 0.2 * np.sin(9 * x) + 0.3 * (y > 0.4)


def _rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (20, 21, 22), (9, 8), (3, 5), (12, 11, 10, 9)])
def test_sigma_is_scikit_images(shape: tuple[int, ...]) -> None:
    restoration = pytest.importorskip("skimage.restoration")
    pytest.importorskip("pywt")
    image = RNG.random(shape)
    found = estimate_sigma(torch.from_numpy(image)[None, None])
    assert float(found[0]) == pytest.approx(restoration.estimate_sigma(image), rel=1e-9)
    colour = RNG.random((31, 30, 3))
    found = estimate_sigma(torch.from_numpy(colour).movedim(-1, 0)[None])
    theirs = restoration.estimate_sigma(colour, channel_axis=-1, average_sigmas=True)
    assert float(found[0]) == pytest.approx(theirs, rel=1e-9)


def test_sigma_of_noise_and_of_nothing() -> None:
    noise = SIGMA * torch.randn(3, 2, 128, 128, generator=torch.Generator().manual_seed(0))
    assert estimate_sigma(noise) == pytest.approx([SIGMA] * 3, rel=0.05)
    assert float(estimate_sigma(torch.full((1, 1, 16, 16), 0.3))[0]) < 1e-7


def test_automatic_is_what_the_rule_says() -> None:
    noisy = _clean() + RNG.normal(scale=SIGMA, size=(64, 64))
    size, factor = rule(SIGMA, 1)
    expected = nl.denoise_nl_means(noisy, size, 5, factor * SIGMA, sigma=SIGMA)
    found = nl.denoise_nl_means(noisy, "auto", 5, "auto", sigma=SIGMA)
    np.testing.assert_allclose(found, expected)
    sigma = float(estimate_sigma(torch.from_numpy(noisy)[None, None])[0])
    by_itself = nl.denoise_nl_means(noisy, "auto", 5, "auto", sigma="auto")
    size, factor = rule(sigma, 1)
    np.testing.assert_allclose(by_itself, nl.denoise_nl_means(noisy, size, 5, factor * sigma, sigma=sigma))
    assert _rmse(by_itself, _clean()) < 0.5 * SIGMA


def test_least_risk_is_near_the_best_h() -> None:
    clean = _clean()
    noisy = clean + RNG.normal(scale=SIGMA, size=clean.shape)
    tried = [factor * SIGMA for factor in (0.2, 0.4, 0.6, 0.8, 1.0)]
    errors = [_rmse(nl.denoise_nl_means(noisy, 5, 5, h, sigma=SIGMA), clean) for h in tried]
    sure = _rmse(nl.denoise_nl_means(noisy, 5, 5, "sure", sigma=SIGMA), clean)
    assert sure <= 1.03 * min(errors)
    assert sure < 0.9 * max(errors)


def test_every_image_of_a_batch_has_its_own_noise() -> None:
    clean = _clean(32)
    images = np.stack([clean + RNG.normal(scale=s, size=clean.shape) for s in (0.02, 0.2)])
    together = nl.denoise_nl_means(images, "auto", 4, "auto", sigma="auto", batch_dims=1)
    for image, found in zip(images, together, strict=True):
        np.testing.assert_allclose(found, nl.denoise_nl_means(image, "auto", 4, "auto", sigma="auto"))


def test_whole_numbers_as_they_are_follow_the_same_rule() -> None:
    eight = np.clip(255 * (_clean(32) + RNG.normal(scale=0.05, size=(32, 32))), 0, 255).astype(np.uint8)
    scaled = nl.denoise_nl_means(eight, "auto", 4, "auto", sigma="auto")
    kept = nl.denoise_nl_means(eight, "auto", 4, "auto", sigma="auto", preserve_range=True)
    np.testing.assert_allclose(kept, 255 * scaled, atol=2e-2)
    flat = np.full((16, 16), 7, dtype=np.uint8)
    assert (nl.denoise_nl_means(flat, "auto", 4, "auto", sigma="auto", preserve_range=True) == 7).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"h": "auto"}, "sigma = 0: 'auto' and 'sure' of other options follow from it"),
        ({"h": "sure"}, "sigma = 0: .* give it, or 'auto'"),
        ({"patch_size": "auto"}, "sigma = 0"),
        ({"h": "much"}, "h = 'much': numbers, or 'auto' or 'sure'"),
        ({"sigma": "sure"}, "sigma = 'sure': numbers, or 'auto'"),
        ({"h": "auto", "sigma": np.ones((8, 8))}, "sigma has the shape"),
        ({"h": "auto", "sigma": 0.1, "compatibility": "scikit-image"}, "compatibility takes numbers"),
    ],
)
def test_what_cannot_follow_is_refused(
    options: dict[str, Any], reason: str, without_shape_checks: None
) -> None:
    with pytest.raises(ValueError, match=reason):
        nl.denoise_nl_means(RNG.random((8, 8)), **options)
