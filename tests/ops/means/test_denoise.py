"""Non-local means against its equation, and what must be true of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import nonlocal_nn as nl
from nonlocal_nn.ops.means import denoise, reference
from nonlocal_nn.ops.means.shifts import half_of_shifts, mirror_padded, nl_means

RNG = np.random.default_rng(0)


def _kernels(sizes: Sequence[int], gaussian: bool) -> list[Tensor]:
    return [torch.tensor(reference.patch_kernel((size,), gaussian)) for size in sizes]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_shift_form_is_the_equation(data: st.DataObject) -> None:
    axes = data.draw(st.integers(2, 4))
    shape = data.draw(st.lists(st.integers(1, (7, 4, 3)[axes - 2]), min_size=axes, max_size=axes))
    sizes = data.draw(st.lists(st.sampled_from([1, 3, 5, 7]), min_size=axes, max_size=axes))
    distances = data.draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes))
    channels, gaussian = data.draw(st.integers(1, 4)), data.draw(st.booleans())
    h, sigma = data.draw(st.sampled_from([0.01, 0.1, 1.0])), data.draw(st.sampled_from([0.0, 0.05, 0.3]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    image, every_h = rng.random((*shape, channels)), h * (0.5 + rng.random(shape))
    for strength in (h, every_h):
        expected = reference.denoise(image, sizes, distances, h=strength, sigma=sigma, gaussian=gaussian)
        found = nl.denoise_nl_means(
            image, sizes, distances, strength, fast_mode=not gaussian, sigma=sigma, channel_axis=-1
        )
        np.testing.assert_allclose(found, expected, atol=1e-10)
        single = nl.denoise_nl_means(
            image.astype(np.float32), sizes, distances, strength, not gaussian, sigma, channel_axis=-1
        )
        assert single.dtype == np.float32
        if h > 0.01:
            np.testing.assert_allclose(single, expected, atol=1e-5)


@pytest.mark.parametrize("every", [False, True])
def test_gradients_by_image_guide_h_and_sigma(every: bool) -> None:
    torch.manual_seed(0)
    shape = (2, 4, 3) if every else ()
    x, guide = torch.rand(2, 2, 4, 3, dtype=torch.float64), torch.rand(2, 1, 4, 3, dtype=torch.float64)
    h, sigma = (torch.rand(shape, dtype=torch.float64) + 0.2, 0.2 * torch.rand(shape, dtype=torch.float64))
    inputs = [tensor.requires_grad_() for tensor in (x, guide, h, sigma)]
    kernels = _kernels((3, 5), True)
    assert torch.autograd.gradcheck(lambda x, g, h, s: nl_means(x, g, h, s, kernels, (2, 1)), inputs)
    assert torch.autograd.gradcheck(lambda x, h, s: nl_means(x, x, h, s, kernels, (2, 1)), [x, h, sigma])


def test_shifts_and_their_opposites_are_all_there_once() -> None:
    for shape, far in (((5, 4), (2, 3)), ((1, 6), (3, 2)), ((2, 3, 2), (1, 1, 1))):
        half = list(half_of_shifts(shape, far))
        both = {*half, *(tuple(-s for s in shift) for shift in half)}
        assert len(both) == 2 * len(half)
        reach = [min(f, n - 1) for f, n in zip(far, shape, strict=True)]
        assert len(both) == np.prod([2 * r + 1 for r in reach]) - 1


def _filter(image: Any, **options: Any) -> Any:
    return nl.denoise_nl_means(image, 3, (2, 3), **{"h": 0.3, **options})


def test_what_must_be_true() -> None:
    image = RNG.random((9, 11))
    y = _filter(image, sigma=0.1)
    np.testing.assert_allclose(_filter(np.full((9, 11), 0.7)), 0.7)
    np.testing.assert_allclose(_filter(image + 5, sigma=0.1), y + 5)
    np.testing.assert_allclose(_filter(4 * image, h=1.2, sigma=0.4), 4 * y)
    np.testing.assert_allclose(_filter(image[::-1], sigma=0.1), y[::-1])
    np.testing.assert_allclose(_filter(image[:, ::-1], sigma=0.1), y[:, ::-1])
    turned = nl.denoise_nl_means(image.T, 3, (3, 2), 0.3, sigma=0.1)
    np.testing.assert_allclose(turned, y.T)
    np.testing.assert_allclose(_filter(image, h=1e-6), image)
    far = _filter(image, h=1e9)
    for p in np.ndindex(9, 11):
        box = image[max(0, p[0] - 2) : p[0] + 3, max(0, p[1] - 3) : p[1] + 4]
        assert far[p] == pytest.approx(box.mean())
    assert (y >= image.min()).all()
    assert (y <= image.max()).all()


def test_axes_come_back_as_they_went_in() -> None:
    for shape, channel in (((1, 40), None), ((12, 10, 1), -1), ((3, 9, 8), 0), ((4, 3, 5, 2), None)):
        image = RNG.random(shape)
        y = nl.denoise_nl_means(image, 3, 2, 0.3, channel_axis=channel)
        assert y.shape == shape
    colour = RNG.random((3, 9, 8))
    np.testing.assert_allclose(
        nl.denoise_nl_means(colour, 3, 2, 0.3, channel_axis=0),
        np.moveaxis(nl.denoise_nl_means(np.moveaxis(colour, 0, 1), 3, 2, 0.3, channel_axis=1), 1, 0),
    )
    images = RNG.random((2, 3, 9, 8))
    batch = nl.denoise_nl_means(images, 3, 2, 0.3, batch_dims=2)
    np.testing.assert_allclose(batch[1, 2], nl.denoise_nl_means(images[1, 2], 3, 2, 0.3))
    together = nl.denoise_nl_means(images, 3, 2, 0.3, batch_dims=1, channel_axis=1)
    np.testing.assert_allclose(together[1], nl.denoise_nl_means(images[1], 3, 2, 0.3, channel_axis=0))


def test_sizes_of_each_axis_and_even_ones() -> None:
    image = RNG.random((4, 9, 8))
    flat = nl.denoise_nl_means(image, (1, 4, 4), (2, 2, 2), 0.3)
    expected = reference.denoise(image[..., None], (1, 5, 5), (2, 2, 2), h=0.3)[..., 0]
    np.testing.assert_allclose(flat, expected)


def test_numbers_of_every_kind() -> None:
    eight = RNG.integers(0, 256, (9, 8), dtype=np.uint8)
    y = nl.denoise_nl_means(eight, 3, 2, 0.3)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, nl.denoise_nl_means(eight / 255, 3, 2, 0.3), atol=1e-6)
    sixteen = eight.astype(np.uint16) * 257
    np.testing.assert_allclose(nl.denoise_nl_means(sixteen, 3, 2, 0.3), y, atol=1e-6)
    kept = nl.denoise_nl_means(eight, 3, 2, 0.3 * 255, preserve_range=True)
    np.testing.assert_allclose(kept, 255 * y, atol=3e-4)
    wide = nl.denoise_nl_means(eight.astype(np.uint32), 3, 2, 0.3 * 255, preserve_range=True)
    assert wide.dtype == np.float64
    half = nl.denoise_nl_means((eight / 255).astype(np.float16), 3, 2, 0.3)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, y, atol=2e-3)
    signed = nl.denoise_nl_means(eight.astype(np.int16), 3, 2, 0.3 * 255, preserve_range=True)
    np.testing.assert_allclose(signed, kept)


@pytest.mark.parametrize(
    ("shape", "sizes", "distances"),
    [
        ((1, 20, 300), (7, 7), (11, 11)),
        ((3, 150, 17), (5, 3), (2, 30)),
        ((2, 5, 9, 8), (3, 5, 3), (2, 2, 2)),
        ((1, 3, 2, 7, 6), (3, 1, 3, 3), (1, 1, 2, 2)),
        ((1, 2, 3), (7, 7), (5, 5)),
        ((2, 1, 1), (3, 3), (1, 1)),
    ],
)
def test_the_kernel_is_the_shift_form_with_the_same_bits_for_any_number_of_threads(
    shape: tuple[int, ...], sizes: tuple[int, ...], distances: tuple[int, ...]
) -> None:
    pytest.importorskip("numba")
    from nonlocal_nn.ops.means.kernel import nl_means_planes

    x = torch.from_numpy(RNG.random((1, *shape)).astype(np.float32))
    guide = torch.from_numpy(RNG.random((1, 2, *shape[1:])).astype(np.float32))
    kernels = [kernel.float() for kernel in _kernels(sizes, False)]
    for other, h, sigma in ((x, 0.3, 0.0), (x, 0.05, 0.2), (guide, 0.2, 0.1)):
        padded = mirror_padded(other, kernels)[0].numpy()
        one, two, three = (
            nl_means_planes(x[0].numpy(), padded, sizes, distances, h, sigma, threads)
            for threads in (1, 2, 3)
        )
        assert np.array_equal(one, two)
        assert np.array_equal(one, three)
        strength, noise = (torch.tensor(v, dtype=torch.float64) for v in (h, sigma))
        all_alike = _kernels(sizes, False)
        expected = nl_means(x.double(), other.double(), strength, noise, all_alike, distances)
        np.testing.assert_allclose(one, expected[0], atol=1e-5)


def test_without_numba_torch_does_it_and_says_once_how_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    image = RNG.random((256, 256)).astype(np.float32)
    expected = nl.denoise_nl_means(image, 3, 2, 0.3)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    denoise._say_how_to_be_faster.cache_clear()
    with pytest.warns(UserWarning, match=r"nonlocal-nn\[denoise\]"):
        found = nl.denoise_nl_means(image, 3, 2, 0.3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tensors_stay_tensors_with_gradients() -> None:
    image = torch.rand(9, 8, requires_grad=True)
    h = torch.tensor(0.3, requires_grad=True)
    y = nl.denoise_nl_means(image, 3, 2, h)
    assert y.dtype == torch.float32
    y.square().sum().backward()
    assert image.grad is not None
    assert h.grad is not None
    assert image.grad.isfinite().all()
    array = nl.denoise_nl_means(image.detach().numpy(), 3, 2, 0.3)
    np.testing.assert_allclose(y.detach().numpy(), array, atol=1e-6)


def test_a_guide_gives_the_weights() -> None:
    image, guide = RNG.random((9, 8)), RNG.random((9, 8))
    y = nl.denoise_nl_means(image, 3, 2, 0.3, guide=guide)
    expected = reference.denoise(image[..., None], (3, 3), (2, 2), h=0.3, guide=guide[..., None])
    np.testing.assert_allclose(y, expected[..., 0])


def test_a_mask_leaves_pixels_out() -> None:
    image, mask = RNG.random((9, 8, 2)), RNG.random((9, 8)) > 0.3
    mask[:4, :4] = False  # whole patches without a pixel
    holes = np.where(mask[..., None], image, np.nan)
    for gaussian in (False, True):
        expected = reference.denoise(image, (3, 3), (2, 3), h=0.3, sigma=0.1, gaussian=gaussian, mask=mask)
        found = nl.denoise_nl_means(holes, 3, (2, 3), 0.3, not gaussian, 0.1, channel_axis=-1, mask=mask)
        np.testing.assert_allclose(found[mask], expected[mask], atol=1e-12)
        assert np.isnan(found[~mask]).all()
    whole = nl.denoise_nl_means(image, 3, 2, 0.3, channel_axis=-1, mask=np.ones((9, 8), dtype=bool))
    np.testing.assert_allclose(whole, nl.denoise_nl_means(image, 3, 2, 0.3, channel_axis=-1))


def test_gradients_with_a_mask() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    h, sigma = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.1))
    mask = torch.rand(1, 4, 5) > 0.3
    mask[:, :2, :2] = False
    kernels = _kernels((3, 1), False)
    assert torch.autograd.gradcheck(
        lambda x, h, s: nl_means(x, x, h, s, kernels, (2, 2), mask), [x, h, sigma]
    )


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    [
        (np.zeros((8, 8)), {"h": 0.0}, r"h = 0: it must be above 0"),
        (np.zeros((8, 8)), {"h": -1.0}, r"h = -1"),
        (np.zeros((8, 8)), {"h": np.nan}, r"h = nan"),
        (np.zeros((8, 8)), {"sigma": -0.5}, r"sigma = -0.5: it must be 0 or more"),
        (np.zeros((8, 8)), {"patch_size": 0}, r"patch_size = 0"),
        (
            np.zeros((8, 8)),
            {"patch_size": (3, 3, 3)},
            r"the image has 2 pixel axes",
        ),
        (np.zeros((8, 8)), {"patch_distance": 0}, r"patch_distance = 0"),
        (np.zeros((8, 8)), {"channel_axis": 2}, r"channel_axis = 2: there is no such axis"),
        (np.zeros((8, 8)), {"channel_axis": 1}, r"has 1 pixel axes"),
        (np.zeros(8), {}, r"has 1 pixel axes"),
        (np.zeros((0, 8)), {}, r"has no pixels"),
        (np.zeros((8, 8)), {"batch_dims": 3}, r"batch_dims = 3"),
        (np.zeros((8, 8)), {"h": np.ones((8, 7))}, r"h has the shape \(8, 7\)"),
        (np.zeros((8, 8)), {"guide": np.ones((8, 7))}, r"guide has the shape \(8, 7\)"),
        (np.full((8, 8), np.inf), {}, r"64 of 64 values of the image are NaN or infinite"),
        (np.zeros((8, 8)), {"mask": np.ones((8, 7), dtype=bool)}, r"mask has the shape \(8, 7\)"),
        (np.zeros((8, 8)), {"mask": np.ones((8, 8))}, r"mask is of torch.float64"),
    ],
)
def test_what_cannot_be_is_refused(image: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        nl.denoise_nl_means(image, **options)


def test_other_numbers_are_refused() -> None:
    for image in (np.zeros((8, 8), dtype=complex), np.zeros((8, 8), dtype=np.int16), [[1.0]]):
        with pytest.raises(TypeError):
            nl.denoise_nl_means(image)
