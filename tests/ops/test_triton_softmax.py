"""The Triton kernel against float64: interpreted everywhere, and on the GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nonlocal_nn.ops import equation as reference
from nonlocal_nn.ops.gpu import softmax as triton_softmax
from nonlocal_nn.ops.gpu.tiles import Tiles, default_tiles, groups_of_columns
from tests.ops.operands import values_and_gradients
from tests.ops.triton_children import DEVICES, Compiled, child, compile_all, runner

pytest.importorskip("triton", reason="Triton is not made for this system")

SMALL = Tiles(rows=16, others=16, depth=16, width=16)
Run = Callable[..., Any]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(device: str) -> Iterator[Run]:
    """run("forward", theta, phi, g, scale, tiles=...) and the same for "backward"; results are on the CPU."""
    yield from runner("nonlocal_nn.ops.gpu.softmax", device)


def operands(
    batch: int, queries: int, keys: int, d: int, channels: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """theta, phi, g and dy."""
    shapes = [(batch, queries, d), (batch, keys, d), (batch, keys, channels), (batch, queries, channels)]
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def kernel(
    run: Run, theta: Tensor, phi: Tensor, g: Tensor, dy: Tensor, scale: float = 1.0, **options
) -> list:
    """y, dtheta, dphi, dg."""
    y, row_max, row_sum = run("forward", theta, phi, g, scale, **options)
    return [y, *run("backward", dy, theta, phi, g, y, row_max, row_sum, scale, **options)]


def exact(theta: Tensor, phi: Tensor, g: Tensor, dy: Tensor, scale: float = 1.0) -> list[Tensor]:
    arguments = tuple(x.double().requires_grad_() for x in (theta, phi, g))
    return values_and_gradients(lambda *x: reference.gaussian(*x, scale), arguments, dy.double())


def errors(ours: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Largest errors relative to the largest element."""
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, truth, strict=True)]


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "d", "channels"),
    [
        (1, 16, 16, 16, 16),
        (2, 37, 29, 19, 21),  # edges everywhere; two groups of columns
        (2, 5, 50, 40, 7),
        (3, 33, 17, 3, 50),
        (1, 1, 20, 16, 1),
    ],
)
def test_float32_agrees_with_float64(run, batch, queries, keys, d, channels):
    arguments = operands(batch, queries, keys, d, channels)
    ours = kernel(run, *arguments, d**-0.5, tiles=SMALL, precision="ieee")
    assert [x.dtype for x in ours] == [torch.float32] * 4
    assert max(errors(ours, exact(*arguments, d**-0.5))) <= 1e-6


@pytest.mark.parametrize(
    ("d", "channels", "precision"),
    [(512, 512, "ieee"), (1024, 512, "tf32x3"), (300, 600, "tf32x3"), (256, 256, "ieee"), (24, 20, "ieee")],
)
def test_the_tiles_of_the_table_agree_with_float64(run, d, channels, precision):
    arguments = operands(1, 33, 20, d, channels)
    ours = kernel(run, *arguments, d**-0.5, precision=precision)
    assert max(errors(ours, exact(*arguments, d**-0.5))) <= 1e-6


def test_float32_stays_close_to_float64_over_many_keys(run, device):
    arguments = operands(1, 3136, 3136, 64, 32)
    tiles = Tiles(512, 512, 64, 64) if device == "interpreter" else None  # few and large: it is slow
    ours = errors(
        kernel(run, *arguments, 64**-0.5, precision="ieee", tiles=tiles), exact(*arguments, 64**-0.5)
    )
    assert ours[0] <= 2e-6
    assert max(ours[1:]) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("d", "channels"), [(48, 40), (512, 520)])
def test_half_precision_is_never_further_from_float64_than_the_plain_form(run, device, dtype, d, channels):
    theta, phi, g, dy = operands(1, 70, 90, d, channels, dtype)
    ours = kernel(run, theta, phi, g, dy, d**-0.5)
    leaves = tuple(x.clone().requires_grad_() for x in (theta, phi, g))
    plain = values_and_gradients(lambda *x: reference.gaussian(*x, d**-0.5), leaves, dy)
    # The interpreter cuts bfloat16 off where a GPU rounds: twice the error.
    allowed = 2 if device == "interpreter" and dtype == torch.bfloat16 else 1
    for mine, theirs, truth in zip(ours, plain, exact(theta, phi, g, dy, d**-0.5), strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - truth).norm() <= allowed * (theirs.double() - truth).norm()


def sums_of_sizes(theta: Tensor, phi: Tensor, g: Tensor, dy: Tensor) -> list[Tensor]:
    """Bounds of y, dtheta, dphi and dg where no terms of their sums cancel: rounding is relative to these."""
    theta, phi, g, dy = (x.double() for x in (theta, phi, g, dy))
    p = reference.gaussian_affinity(theta, phi)
    y = p @ g
    delta = (y * dy).abs().sum(dim=2, keepdim=True)
    dlogits = p * ((dy @ g.transpose(1, 2)).abs() + delta)
    transposed = dlogits.transpose(1, 2)
    return [p @ g.abs(), dlogits @ phi.abs(), transposed @ theta.abs(), p.transpose(1, 2) @ dy.abs()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_logits_of_ten_thousand_keep_their_differences(run, dtype):
    theta, phi, g, dy = operands(1, 60, 50, 4, 4, dtype)
    theta[..., 0] = phi[..., 0] = 100  # every logit is 1e4 and a little
    ours = kernel(run, theta, phi, g, dy, tiles=SMALL, precision="ieee")
    sizes = sums_of_sizes(theta, phi, g, dy)
    # float32 rounds logits of 1e4 by up to 5e-4, and so does m; weights, gradients of logits and results are
    # rounded to the inputs' dtype
    allowed = 1e-3 + 3 * torch.finfo(dtype).eps
    for mine, truth, size in zip(ours, exact(theta, phi, g, dy), sizes, strict=True):
        assert ((mine.double() - truth).abs() <= allowed * size).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_key_may_have_all_the_weight(run, dtype):
    theta = phi = torch.tensor([[[100.0], [-100.0]]]).to(dtype)
    g, dy = torch.randn(1, 2, 3).to(dtype), torch.randn(1, 2, 3).to(dtype)
    y, dtheta, dphi, dg = kernel(run, theta, phi, g, dy, tiles=SMALL, precision="ieee")
    assert torch.equal(y, g)
    assert torch.equal(dg, dy)
    # dy . g and dy . y are the same number, but for the order of the sum
    assert max(dtheta.float().abs().max(), dphi.float().abs().max()) <= 100 * 1e-6


def test_float16_keeps_weights_that_are_too_small_for_it(run):
    keys = 1500  # each weighs 7e-4; times a gradient of 1e-3 that is far below float16's normal range
    theta, phi, g, dy = operands(1, 8, keys, 4, 8, torch.float16)
    theta, dy = theta * 0.1, dy * 1e-3
    ours = kernel(run, theta, phi, g, dy, tiles=Tiles(16, 512, 16, 16))
    truth = exact(theta, phi, g, dy)
    assert errors(ours, truth)[0] <= 1e-3
    # dphi and dg are results below 6e-5, which float16 holds to 3e-8 each: no more may be lost than that
    for mine, right in zip(ours[1:], truth[1:], strict=True):
        assert (mine.double() - right).abs().max() <= 3.2e-8 + 1e-3 * right.abs().max()


def test_float16_does_not_overflow_between_input_and_result(run):
    theta, phi, g, dy = operands(1, 20, 20, 4, 8, torch.float16)
    theta, g, dy = theta * 1e-3, g * 300, dy * 300  # dy . g is beyond 65,504, the gradients are not
    ours = kernel(run, theta, phi, g, dy, scale=1e-3, tiles=SMALL)
    assert max(errors(ours, exact(theta, phi, g, dy, 1e-3))) <= 2e-3


@pytest.mark.parametrize(("queries", "keys"), [(48, 32), (37, 29)])
def test_channels_first_inputs_give_channels_first_results(run, queries, keys):
    theta, phi, g, dy = operands(1, queries, keys, 19, 21)
    first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (theta, phi, g, dy)]
    ours, same = kernel(run, *first, tiles=SMALL), kernel(run, theta, phi, g, dy, tiles=SMALL)
    for mine, theirs in zip(ours, same, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.stride(1) == 1  # channels first in memory, as the inputs are
        assert theirs.is_contiguous()


def test_slices_and_expanded_gradients(run):
    theta, phi, g, _ = operands(2, 37, 29, 40, 42)
    parts = theta[:, 3:20, ::2], phi[:, ::3, 1::2], g[:, ::3, :19]
    dy = torch.ones(1, 1, 1).expand(2, 17, 19)
    ours = kernel(run, *parts, dy, tiles=SMALL, precision="ieee")
    assert max(errors(ours, exact(*parts, dy))) <= 1e-6


def test_row_statistics(run):
    theta, phi, g, _ = operands(2, 20, 30, 5, 3)
    _, row_max, row_sum = run("forward", theta, phi, g, 0.5, tiles=SMALL)
    logits = 0.5 * (theta.double() @ phi.double().transpose(1, 2))
    largest = logits.amax(dim=2, keepdim=True)
    torch.testing.assert_close(row_max.double(), largest, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(row_sum.double(), (logits - largest).exp().sum(2, True), rtol=1e-5, atol=0)


def test_a_single_key_gets_all_the_weight(run):
    theta, phi, g, dy = operands(2, 20, 1, 5, 3)
    y, dtheta, dphi, dg = kernel(run, theta, phi, g, dy, tiles=SMALL, precision="ieee")
    assert torch.equal(y, g.expand(2, 20, 3))
    assert max(dtheta.abs().max(), dphi.abs().max()) <= 1e-5
    torch.testing.assert_close(dg, dy.sum(dim=1, keepdim=True))


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_nothing_in_gives_nothing_out(run, batch, queries):
    arguments = operands(batch, queries, 4, 3, 2)
    ours = kernel(run, *arguments)
    assert [x.shape for x in ours] == [x.shape for x in (arguments[3], *arguments[:3])]
    assert all(x.count_nonzero() == 0 for x in ours)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_one_gradient_is_asked_for(run, needs):
    theta, phi, g, dy = operands(1, 37, 29, 19, 21)
    saved = run("forward", theta, phi, g, tiles=SMALL)
    everything = run("backward", dy, theta, phi, g, *saved, tiles=SMALL)
    some = run("backward", dy, theta, phi, g, *saved, 1.0, needs, tiles=SMALL)
    for wanted, mine, all_of_them in zip(needs, some, everything, strict=True):
        assert torch.equal(mine, all_of_them) if wanted else mine is None


def test_dphi_and_dg_may_share_a_program(run):
    arguments = operands(1, 37, 29, 30, 28)
    ours = kernel(run, *arguments, 0.2, tiles=SMALL._replace(width=64), precision="ieee")
    assert max(errors(ours, exact(*arguments, 0.2))) <= 1e-6


def test_same_bits_on_repeated_runs(run):
    arguments = operands(2, 70, 67, 40, 30)
    first, second = kernel(run, *arguments), kernel(run, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("which", [0, 1])
def test_nan_is_not_hidden(run, which):
    theta, phi, g, _ = operands(1, 20, 30, 5, 3)
    (theta, phi)[which][0, 17] = torch.nan
    y, _, _ = run("forward", theta, phi, g, tiles=SMALL)
    assert torch.equal(y.isnan(), reference.gaussian(theta, phi, g).isnan())


def test_what_the_kernel_does_not_take_is_named(run):
    theta, phi, g, dy = operands(1, 4, 5, 3, 2)
    with pytest.raises(ValueError, match=r"takes float32, bfloat16 and float16, got torch\.float64"):
        run("forward", theta.double(), phi.double(), g.double())
    with pytest.raises(ValueError, match=r"one row for each key of phi, got .* g \(1, 3, 2\)"):
        run("forward", theta, phi, g[:, :3])
    y, row_max, row_sum = run("forward", theta, phi, g)
    with pytest.raises(ValueError, match=r"row_max must be torch\.float32 of shape \(1, 4, 1\).*\(1, 4\)"):
        run("backward", dy, theta, phi, g, y, row_max[..., 0], row_sum)


def test_a_processor_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not triton_softmax.available(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"needs Triton and an NVIDIA GPU .* got tensors on cpu"):
        triton_softmax.forward(*operands(1, 4, 5, 3, 2)[:3])


@pytest.mark.parametrize(
    ("columns", "most", "expected"),
    [
        (512, 512, (512, 1)),
        (513, 512, (512, 2)),
        (300, 512, (512, 1)),
        (3, 512, (16, 1)),
        (600, 256, (256, 3)),
    ],
)
def test_groups_cover_the_columns(columns, most, expected):
    width, groups = groups_of_columns(columns, most)
    assert (width, groups) == expected
    assert width * groups >= columns


@pytest.fixture(scope="module")
def compiled() -> Iterator[Callable[..., list[Compiled]]]:
    with child(interpret=False) as compiler:
        yield lambda *arguments: compiler.submit(compile_all, *arguments).result()


@pytest.mark.parametrize("channels_first", [False, True])
def test_rows_are_read_sixteen_bytes_at_a_time(compiled, channels_first):
    for program in compiled(80, torch.bfloat16, "ieee", 2, 96, 64, 64, channels_first):
        assert program.narrow_loads == 0


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "precision", "d", "channels"),
    [
        (torch.bfloat16, "ieee", 512, 512),
        (torch.float16, "ieee", 256, 256),
        (torch.float32, "tf32", 1024, 512),
    ],
)
def test_programs_fit_gpus(compiled, capability, dtype, precision, d, channels):
    programs = compiled(capability, dtype, precision, 2, 100, d, channels)
    kinds = ["forward", "row_products", "theta_gradient", "key_gradients"]
    # dphi and dg share a program where both fit the registers
    assert [x.name for x in programs] == kinds + (["key_gradients"] if d + channels > 512 else [])
    assert max(x.shared_bytes for x in programs) <= 99 * 1024  # what compute capability 8.6 has
    assert max(x.spilled_bytes for x in programs) <= 64  # of 1,020


def test_tiles_are_powers_of_two():
    for dtype in triton_softmax.DTYPES:
        for precision in ("ieee", "tf32x3", "tf32"):
            for columns in (1, 256, 257, 5000):
                tiles = default_tiles(dtype, columns, precision)
                assert all(x.bit_count() == 1 for x in tiles)
                assert min(tiles[:4]) >= 16
