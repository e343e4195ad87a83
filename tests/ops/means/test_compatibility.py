"""scikit-image's results, every mode it has, borders included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn.ops.means.compatibility import fast_exp

RNG = np.random.default_rng(0)
SHAPES: list[tuple[tuple[int, ...], int | None]] = [
    ((13, 12), None),
    ((13, 12, 3), -1),
    ((2, 13, 12), 0),
    ((9, 8, 7), None),
    ((8, 7, 6, 2), -1),
    ((6, 5, 6, 5), None),
    ((5, 4, 5, 4, 2), -1),
]
OPTIONS = [(5, 3, 0.2, 0.0), (7, 4, 0.1, 0.05), (3, 2, 0.05, 0.02), (1, 2, 0.3, 0.0), (4, 2, 0.3, 0.1)]


@pytest.mark.parametrize(("shape", "channel"), SHAPES)
@pytest.mark.parametrize("fast", [True, False])
def test_against_the_installed_version(shape: tuple[int, ...], channel: int | None, fast: bool) -> None:
    restoration = pytest.importorskip("skimage.restoration")
    image = RNG.random(shape)
    axes = len(shape) - (channel is not None)
    for size, far, h, sigma in OPTIONS:
        words: dict[str, Any] = {"channel_axis": channel, "sigma": sigma}
        args = (size, far, h, fast)
        if not fast and (axes == 4 or (axes == 3 and channel is not None) or size == 1):
            with pytest.raises(ValueError, match="scikit-image has it for"):
                nl.denoise_nl_means(image, *args, compatibility="scikit-image", **words)
            continue
        expected = restoration.denoise_nl_means(image, *args, **words)
        found = nl.denoise_nl_means(image, *args, compatibility="scikit-image", **words)
        np.testing.assert_allclose(found, expected.reshape(shape), atol=1e-9)


def test_figures_that_need_no_other_library() -> None:
    assert fast_exp(np.array([0.0]))[0] == pytest.approx(0.971, abs=1e-3)
    at = -np.linspace(0, 5, 2001)
    ratio = fast_exp(at) / np.exp(at)
    assert ratio.min() == pytest.approx(0.96, abs=0.005)
    assert ratio.max() == pytest.approx(1.02, abs=0.005)
    image = RNG.random((12, 12))
    one = nl.denoise_nl_means(image, 1, 2, 0.001, compatibility="scikit-image")
    assert one[5, 5] == pytest.approx(image[3:8, 3:8].mean())  # a box mean, whatever h is


def test_what_it_cannot_do_is_said() -> None:
    image = torch.rand(8, 8, requires_grad=True)
    for options, reason in (
        ({}, "has no gradient"),
        ({"guide": image}, "takes numbers, no guide"),
        ({"patch_size": (3, 5)}, "one for all axes"),
        ({"h": torch.ones(8, 8)}, r"h has the shape \\(8, 8\\)"),
    ):
        target = image if not options else image.detach()
        with pytest.raises(ValueError, match=reason.replace("\\\\", "\\")):
            nl.denoise_nl_means(target, compatibility="scikit-image", **options)  # type: ignore[arg-type]
