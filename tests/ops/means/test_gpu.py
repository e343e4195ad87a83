"""Non-local means in Triton against the plain reference: interpreted everywhere, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nonlocal_nn as nl
from nonlocal_nn.ops.means import gpu, reference
from nonlocal_nn.ops.means.reference import patch_kernel
from nonlocal_nn.ops.means.shifts import half_of_shifts, mirror_padded
from tests.ops.triton_children import DEVICES, runner

pytest.importorskip("triton", reason="Triton is not made for this system")

Run = Callable[..., Any]


@pytest.fixture(scope="module", params=DEVICES)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """run("sums", x, padded, ...); results are on the CPU."""
    yield from runner("nonlocal_nn.ops.means.gpu", request.param)


def filtered(
    run: Run,
    x: Tensor,
    guide: Tensor,
    sizes: tuple[int, ...],
    distances: tuple[int, ...],
    h: Tensor,
    sigma: Tensor,
    gaussian: bool = False,
    **options: int,
) -> Tensor:
    kernels = [torch.tensor(patch_kernel((size,), gaussian), dtype=x.dtype) for size in sizes]
    padded = mirror_padded(guide, kernels)
    shifts = list(half_of_shifts(x.shape[2:], distances))
    weighted, total = run("sums", x, padded, h, sigma, kernels, shifts, **options)
    return weighted / total.unsqueeze(1)


def expected(x: Tensor, guide: Tensor, sizes, distances, h, sigma, gaussian=False) -> Tensor:
    rows = [
        reference.denoise(
            np.moveaxis(image.double().numpy(), 0, -1),
            sizes,
            distances,
            h=h[n].double().numpy() if h.dim() else float(h),
            sigma=sigma[n].double().numpy() if sigma.dim() else float(sigma),
            gaussian=gaussian,
            guide=np.moveaxis(guide[n].double().numpy(), 0, -1),
        )
        for n, image in enumerate(x)
    ]
    return torch.from_numpy(np.moveaxis(np.stack(rows), -1, 1))


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    ("shape", "channels", "sizes", "distances"),
    [
        ((9, 11), 1, (3, 5), (2, 4)),
        ((1, 7), 3, (3, 3), (2, 3)),
        ((4, 5), 6, (7, 3), (5, 6)),  # smaller than patch and distance; two groups of channels
        ((3, 5, 6), 2, (1, 3, 3), (1, 2, 2)),  # as a video
        ((3, 4, 5), 1, (3, 1, 3), (1, 1, 2)),
        ((2, 3, 3, 4), 1, (3, 3, 1, 3), (1, 1, 1, 1)),
        ((1, 1), 1, (3, 3), (2, 2)),
    ],
)
def test_agrees_with_the_reference(run, dtype, allowed, shape, channels, sizes, distances):
    x = torch.rand(2, channels, *shape, dtype=dtype)
    h, sigma = torch.tensor(0.3, dtype=dtype), torch.tensor(0.1, dtype=dtype)
    ours = filtered(run, x, x, sizes, distances, h, sigma)
    truth = expected(x, x, sizes, distances, h, sigma)
    assert ours.dtype == dtype
    assert (ours - truth).abs().max() <= allowed


def test_a_pixel_has_its_own_strength_and_a_guide_other_channels(run):
    x, guide = torch.rand(2, 3, 6, 7), torch.rand(2, 2, 6, 7)
    h, sigma = 0.1 + torch.rand(2, 6, 7), 0.2 * torch.rand(2, 6, 7)
    ours = filtered(run, x, guide, (3, 5), (2, 3), h, sigma, gaussian=True)
    assert (ours - expected(x, guide, (3, 5), (2, 3), h, sigma, gaussian=True)).abs().max() <= 1e-5


def test_groups_of_shifts_change_nothing(run):
    x = torch.rand(1, 1, 8, 9)
    options = (x, x, (3, 3), (3, 3), torch.tensor(0.2), torch.tensor(0.0))
    assert torch.equal(filtered(run, *options, group_bytes=1), filtered(run, *options))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the programs are chosen on a GPU alone")
def test_tensors_on_a_gpu_are_filtered_there():
    x = torch.rand(2, 40, 50, 3)
    options = {"patch_size": 5, "patch_distance": 6, "h": 0.2, "sigma": 0.05, "channel_axis": -1}
    leaf, same = x.clone().requires_grad_(), x.cuda().requires_grad_()
    assert gpu.runs(same)
    here = nl.denoise_nl_means(leaf, batch_dims=1, **options)
    there = nl.denoise_nl_means(same, batch_dims=1, **options)
    assert there.is_cuda
    assert (here - there.cpu()).abs().max() <= 1e-5
    dy = torch.randn_like(x)
    (dx,) = torch.autograd.grad(here, leaf, dy)
    (dx_there,) = torch.autograd.grad(there, same, dy.cuda())
    assert (dx - dx_there.cpu()).abs().max() <= 1e-4 * dx.abs().max()
