"""Squeeze-and-excitation and global context: against their formulas, and wherever blocks go."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import nonlocal_nn as nl
from nonlocal_nn.ops.context import as_written, pooled, recalibrated

BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "se": lambda c: nl.SqueezeExcitation(c, reduction=2),
    "se, max, hard": lambda c: nl.SqueezeExcitation(c, 2, gate="hard_sigmoid", pool="max", bias=False),
    "gc": lambda c: nl.GlobalContext(c, 2),
    "gc, both": lambda c: nl.GlobalContext(c, 2, fuse=("scale", "add"), norm=None),
    "gc, scale by the mean": lambda c: nl.GlobalContext(c, 2, pooling="average", fuse=("scale",)),
}


def trained(kind: str, channels: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """With weights that all do something."""
    block = BLOCKS[kind](channels).to(dtype)
    with torch.no_grad():
        for tensor in block.parameters():
            tensor.copy_(torch.randn(tensor.shape, dtype=torch.float64) * 0.5)
    return block


def formula(block: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """Straight from the equations, position by position."""
    flat = x.flatten(2)
    batch, channels, positions = flat.shape
    y = torch.empty_like(flat)
    for n in range(batch):
        if isinstance(block, nl.SqueezeExcitation):
            z = (
                flat[n].amax(1)
                if block.pool == "max"
                else sum(flat[n, :, j] for j in range(positions)) / positions
            )
            v = block.W_2(torch.relu(block.W_1(z)))
            gates = {
                "sigmoid": 1 / (1 + torch.exp(-v)),
                "hard_sigmoid": (v + 3).clamp(0, 6) / 6,
                "twice_sigmoid": 2 / (1 + torch.exp(-v)),
            }
            s, t = gates[block.gate], torch.zeros(channels, dtype=x.dtype)
        else:
            weights = torch.ones(positions, dtype=x.dtype)
            if block.w_k is not None:
                weights = torch.stack([torch.exp(block.w_k @ flat[n, :, j]) for j in range(positions)])
            c = sum(weights[j] * flat[n, :, j] for j in range(positions)) / weights.sum()
            s = torch.ones_like(c) if block.scale is None else 2 / (1 + torch.exp(-block.scale(c[None])[0]))
            t = torch.zeros_like(c) if block.add is None else block.add(c[None])[0]
        for i in range(positions):
            y[n, :, i] = s * flat[n, :, i] + t
    return y.view(x.shape) if shortcut is None else y.view(x.shape) + shortcut


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 4, 3, 7), (2, 4, 2, 3, 3), (3, 4, 1, 1)])
def test_is_its_formula(kind, shape):
    block, x = trained(kind, 4, torch.float64), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(block(x), formula(block, x))
    torch.testing.assert_close(block(x.requires_grad_()), formula(block, x))  # by hand, and by autograd
    if isinstance(block, nl.SqueezeExcitation):
        shortcut = torch.randn_like(x)
        torch.testing.assert_close(block(x, shortcut), formula(block, x, shortcut))
        with torch.no_grad():
            torch.testing.assert_close(block(x, shortcut), formula(block, x, shortcut))


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradients_and_their_gradients(kind):
    block = trained(kind, 4, torch.float64)
    parameters = list(block.parameters())
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *_: Tensor) -> Tensor:
        return block(x)

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def test_the_shortcut_gets_its_gradient_and_frozen_weights_none():
    block = trained("se", 4, torch.float64)
    x, shortcut = (torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(block, (x, shortcut))
    block.requires_grad_(False)
    block(x, shortcut).sum().backward()
    assert torch.equal(shortcut.grad, torch.ones_like(x))
    assert all(tensor.grad is None for tensor in block.parameters())
    block.requires_grad_(True)
    block(x.detach()).sum().backward()
    assert all(tensor.grad is not None for tensor in block.parameters())


def test_a_graph_is_kept_for_a_second_backward_pass():
    block, x = trained("gc, both", 4), torch.randn(2, 4, 3, requires_grad=True)
    y = block(x).sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 32, 6, 5), (1, 32, 1, 1), (0, 32, 4, 4), (2, 32, 7)])
def test_a_new_block_is_the_identity_to_the_last_bit(dtype, shape):
    x = torch.randn(shape).to(dtype)
    for block in (
        nl.SqueezeExcitation(32, gate="twice_sigmoid"),
        nl.GlobalContext(32),
        nl.GlobalContext(32, fuse=("scale", "add")),
    ):
        y = block.to(dtype)(x)
        assert torch.equal(y, x)
        assert y.dtype == dtype
        if len(x):
            dy = torch.randn(shape).to(dtype)
            y = block(x.clone().requires_grad_())
            gradients = torch.autograd.grad(y, list(block.parameters()), dy, allow_unused=True)
            assert any(g is not None and bool(g.count_nonzero()) for g in gradients)  # it learns


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(kind, dtype):
    block, x = trained(kind, 16), torch.randn(2, 16, 9, 8)
    x = x.to(dtype).float()  # the same numbers
    half, wide = copy.deepcopy(block).to(dtype), block.to(dtype).float()
    leaf, leaf_half = x.clone().requires_grad_(), x.to(dtype).requires_grad_()
    y, y_half = wide(leaf), half(leaf_half)
    dy = torch.randn_like(x).to(dtype)
    (dx,), (dx_half,) = torch.autograd.grad(y, leaf, dy.float()), torch.autograd.grad(y_half, leaf_half, dy)
    for mine, true in ((y_half, y), (dx_half, dx)):
        assert mine.dtype == dtype
        assert (mine.float() - true).norm() <= 2e-2 * true.norm()


@pytest.mark.parametrize("kind", BLOCKS)
def test_channels_last_is_kept(kind):
    block = trained(kind, 8)
    x = torch.randn(2, 8, 5, 6)
    last = x.to(memory_format=torch.channels_last)
    assert block(last.requires_grad_()).is_contiguous(memory_format=torch.channels_last)
    leaf = x.clone().requires_grad_()
    dy = torch.randn_like(x)
    (dx,), (dx_last,) = (torch.autograd.grad(block(z), z, dy) for z in (leaf, last))
    torch.testing.assert_close(dx, dx_last, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        y = block(last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, block(x))


def test_large_maps_use_their_memory_again():
    block = trained("gc, both", 4)
    x = torch.randn(9, 4, 512, 512)  # 36 MB
    with torch.no_grad():
        first = block(x)
        torch.testing.assert_close(
            block(x.to(memory_format=torch.channels_last)), first, rtol=1e-4, atol=1e-4
        )
        again = block(x)
    assert torch.equal(first, again)
    assert first.data_ptr() != again.data_ptr()


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("kind", BLOCKS)
def test_compiled_exported_and_under_torch_func(kind):
    block, x = trained(kind, 6), torch.randn(3, 6, 5, 4)
    expected = block(x)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 6, 5, 4), (2, 6, 7, 3)):
        z = torch.randn(shape, requires_grad=True)
        torch.testing.assert_close(compiled(z), block(z))
        torch.testing.assert_close(
            *(torch.autograd.grad(f(z).square().sum(), z)[0] for f in (compiled, block))
        )
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(
        block, (x,), dynamic_shapes=(sizes,) if kind[:2] == "gc" else (sizes, None)[:1]
    )
    torch.testing.assert_close(program.module()(x), expected)
    each = torch.func.vmap(block)(x.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(each, expected)
    _, change = torch.func.jvp(block, (x,), (torch.ones_like(x),))
    step = 1e-3
    torch.testing.assert_close(change, (block(x + step) - block(x - step)) / (2 * step), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", ["se", "gc, both"])
def test_onnxruntime_gives_the_same(kind, tmp_path):
    import onnxruntime

    block, x = trained(kind, 6).eval(), torch.randn(2, 6, 5, 4)
    torch.onnx.export(block, (x,), tmp_path / "block.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "block.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), block(x).detach(), rtol=1e-4, atol=1e-5)


def test_autocast():
    block, x = trained("gc, both", 8), torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x.requires_grad_())
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert (y - block(x)).norm() <= 2e-2 * y.norm()


def test_timm_gives_the_same_numbers():
    timm = pytest.importorskip("timm")
    theirs = timm.layers.SEModule(32, rd_channels=5)
    ours = nl.SqueezeExcitation(32, hidden=5)
    with torch.no_grad():
        for mine, other in ((ours.W_1, theirs.fc1), (ours.W_2, theirs.fc2)):
            mine.weight.copy_(other.weight.flatten(1))
            mine.bias.copy_(other.bias)
    x = torch.randn(2, 32, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_average_pooling_scale_and_no_norm_is_squeeze_and_excitation():
    gc = nl.GlobalContext(8, 2, pooling="average", fuse=("scale",), norm=None, gate="sigmoid")
    se = nl.SqueezeExcitation(8, 2)
    with torch.no_grad():
        for mine, other in ((gc.scale.W_v1, se.W_1), (gc.scale.W_v2, se.W_2)):
            mine.weight.copy_(other.weight)
            mine.bias.copy_(other.bias)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(gc(x), se(x))


def test_constant_logits_are_average_pooling():
    block = trained("gc", 8)
    with torch.no_grad():
        block.w_k.zero_()
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(pooled(x, block.w_k)[0], x.mean(dim=(2, 3)))


def test_logits_without_the_query_are_the_non_local_average_of_one_query():
    block, x = trained("gc", 8), torch.randn(2, 8, 4, 4)
    flat = x.flatten(2).mT
    theta = block.w_k.expand(2, 3, -1)  # every query asks the same
    y = nl.functional.gaussian(theta, flat, flat)
    torch.testing.assert_close(y, pooled(x, block.w_k)[0].unsqueeze(1).expand(-1, 3, -1))
    # Behind the pooling or before it: W_z W_g is linear.
    g = nn.Linear(8, 5)
    torch.testing.assert_close(nl.functional.gaussian(theta, flat, g(flat)), g(y))


def test_the_row_of_weights_sums_to_one_and_is_what_is_averaged():
    block, x = trained("gc", 8), torch.randn(2, 8, 4, 5)
    rows = block.affinity(x, torch.tensor([[0, 0], [3, 4]]))
    assert rows.shape == (2, 2, 20)
    torch.testing.assert_close(rows.sum(dim=2), torch.ones(2, 2))
    torch.testing.assert_close((rows @ x.flatten(2).mT)[:, 0], pooled(x, block.w_k)[0])


@pytest.mark.parametrize("channels", [1, 8, 31])
def test_few_channels_learn_too(channels):
    block, x = nl.GlobalContext(channels), torch.randn(4, channels, 5, 5)
    assert block.hidden == 2
    block(x).square().sum().backward()
    assert block.add.W_v2.weight.grad.count_nonzero() > 0


@given(st.permutations(range(6)))
def test_permuting_positions_permutes_outputs(order):
    for kind in BLOCKS:
        torch.manual_seed(0)
        block, x = trained(kind, 4), torch.randn(2, 4, 6)
        torch.testing.assert_close(block(x[:, :, order]), block(x)[:, :, order])


def test_gates_are_the_scales():
    block, x = trained("se", 6), torch.rand(2, 6, 4) + 1
    torch.testing.assert_close(block(x) / x, block.gates(x).unsqueeze(2).expand_as(x))


def test_any_transform_goes_through_the_operator():
    x = torch.randn(2, 3, 5, requires_grad=True)
    weight = torch.randn(3, requires_grad=True)

    def change(c: Tensor) -> tuple[Tensor, Tensor]:
        return c * weight, -c

    ours = torch.autograd.grad(recalibrated(x, change, (weight,)).square().sum(), (x, weight))
    plain = torch.autograd.grad(as_written(x, change, None, None).square().sum(), (x, weight))
    for mine, true in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nl.SqueezeExcitation(8, reduction=0), "reduction = 0"),
        (lambda: nl.SqueezeExcitation(8, reduction=2, hidden=4), "reduction = 2 and hidden = 4"),
        (lambda: nl.SqueezeExcitation(8, hidden=0), "hidden = 0"),
        (lambda: nl.GlobalContext(8, fuse=()), r"fuse = \(\)"),
        (lambda: nl.GlobalContext(8, hidden=1), "the norm of one number is zero"),
        (lambda: nl.GlobalContext(8, fuse=("add", "add")), "fuse = "),
        (lambda: nl.SqueezeExcitation(8)(torch.zeros(2, 7, 3)), r"expected \(batch, 8, positions .*2, 7, 3"),
        (lambda: nl.SqueezeExcitation(8)(torch.zeros(2, 8)), r"got \(2, 8\)"),
        (lambda: nl.GlobalContext(8)(torch.zeros(2, 8, 0, 3)), "no positions"),
        (
            lambda: nl.SqueezeExcitation(8)(torch.zeros(2, 8, 3), torch.zeros(2, 8, 4)),
            r"shortcut has the shape",
        ),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.usefixtures("without_shape_checks")
def test_names_that_there_are_not_are_refused():
    for make in (
        lambda: nl.SqueezeExcitation(8, gate="tanh"),  # type: ignore[arg-type]
        lambda: nl.SqueezeExcitation(8, pool="sum"),  # type: ignore[arg-type]
        lambda: nl.GlobalContext(8, pooling="max"),  # type: ignore[arg-type]
        lambda: nl.GlobalContext(8, fuse=("mul",)),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="does not exist; choose one of"):
            make()
