"""Self-attention by relative positions: against the dense form, convolutions, and as a module."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nonlocal_nn as nl
from nonlocal_nn.ops import relative
from tests.insertion.cifar_resnet import CifarResNet, cifar_images, trained_weights

LAYERS = {
    "quadratic": {},
    "gaussian": {"position": "gaussian"},
    "learned": {"position": "learned", "largest_map": (9, 10)},
    "quadratic, content": {"content": True, "d": 3},
    "gaussian, content": {"position": "gaussian", "content": True},
    "learned, content": {"position": "learned", "largest_map": (9, 10), "content": True},
    "strided, grouped, padded": {"stride": (2, 1), "groups": 2, "padding": (1, 2, 0, 1), "bias": False},
    "reflected, content": {"padding": 1, "padding_mode": "reflect", "content": True, "stride": 2},
}


def layer_of(kind: str, dtype: torch.dtype = torch.float64, heads: int = 3) -> nl.SelfAttention2d:
    layer = nl.SelfAttention2d(4, 6, heads, **LAYERS[kind]).to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in ("row_table", "column_table", "bias"):
                parameter.normal_()
            if name == "spreads":
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def dense(layer: nl.SelfAttention2d, x: Tensor) -> Tensor:
    """Every score from its equation, every weight in memory."""
    around = layer.geometry.padded(x)
    shape = layer.geometry.grid(x.shape[2], x.shape[3])
    height, width = around.shape[2:]
    scores = torch.zeros(len(x), layer.heads, math.prod(shape), height * width, dtype=x.dtype)
    for q in range(math.prod(shape)):
        at = (q // shape[1] * layer.geometry.stride[0], q % shape[1] * layer.geometry.stride[1])
        for k in range(height * width):
            delta = torch.tensor([k // width - at[0], k % width - at[1]], dtype=x.dtype)
            for h in range(layer.heads):
                if layer.row_table is not None:
                    half = (layer.row_table.shape[1] // 2, layer.column_table.shape[1] // 2)
                    score = layer.row_table[h, int(delta[0]) + half[0]]
                    score = score + layer.column_table[h, int(delta[1]) + half[1]]
                else:
                    away = delta - layer.centres[h]
                    away = (
                        layer.spreads[h] @ away if layer.position == "gaussian" else layer.spreads[h] * away
                    )
                    score = -away.square().sum() / 2
                scores[:, h, q, k] = score
                if layer.content:
                    theta = layer.query[h] @ around[:, :, at[0], at[1]].T
                    phi = layer.key[h] @ around[:, :, k // width, k % width].T
                    scores[:, h, q, k] += (theta * phi).sum(dim=0) / layer.query.shape[1] ** 0.5
    y = relative.dense(around, scores, layer.value, shape, layer.groups)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (1, 4, 3, 2)])
def test_every_form_is_the_dense_one(kind, shape):
    layer, x = layer_of(kind), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, truth = layer(x), dense(layer, x)
    torch.testing.assert_close(y, truth, rtol=1e-9, atol=1e-11)
    dy = torch.randn_like(truth)
    leaves = [x, *layer.parameters()]
    ours, exact = (torch.autograd.grad(out, leaves, dy) for out in (y, truth))
    for mine, true in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["quadratic", "gaussian", "learned, content"])
def test_gradients_and_their_gradients(kind):
    layer = layer_of(kind, heads=2)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    leaves = (x, *layer.parameters())

    def run(x: Tensor, *_: Tensor) -> Tensor:
        return layer(x)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_gaussian_scores_in_small_memory_are_the_same():
    whole = layer_of("gaussian")
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    expected = whole(x)
    whole.memory_budget = 1  # one row of queries at a time
    torch.testing.assert_close(whole(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["quadratic", "gaussian", "learned", "quadratic, content"])
def test_other_precisions_stay_close(kind, dtype):
    layer, x = layer_of(kind), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    truth = layer(x)
    y = layer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert (y.double() - truth).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * truth.norm()


def test_weights_come_from_differences():
    # alpha 1.2, a centre between pixels, a map of 112 columns: multiplied out, float32 is off by 1e-4.
    rows = relative.offsets(112, 112, 1)
    centre, spread = torch.tensor([0.5]), torch.tensor([math.sqrt(2.4)])
    ours = relative.axis_scores(rows, centre, spread).softmax(dim=2)
    truth = relative.axis_scores(rows, centre.double(), spread.double()).softmax(dim=2)
    assert (ours - truth).abs().max() <= 1e-6


CONVS = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "dilation": st.tuples(st.integers(1, 3), st.integers(1, 2)),
        "padding": st.one_of(
            st.tuples(st.integers(0, 3), st.integers(0, 3)), st.sampled_from(["same", "valid"])
        ),
        "groups": st.sampled_from([1, 2]),
        "bias": st.booleans(),
        "padding_mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    }
)


@settings(max_examples=200)
@given(CONVS, st.integers(3, 11), st.integers(3, 11), st.integers(0, 2**31))
def test_any_convolution_is_self_attention(options, height, width, seed):
    torch.manual_seed(seed)
    if options["padding"] == "same":
        options = {**options, "stride": (1, 1)}
    conv = nn.Conv2d(4, 6, **options)
    x = torch.randn(2, 4, height, width, requires_grad=True)
    layer = nl.SelfAttention2d.from_conv(conv)
    try:
        expected = conv(x)
    except RuntimeError:
        expected = None
    if expected is None or not expected.numel():
        with pytest.raises(ValueError, match=r"smaller than the|wider than a map"):
            layer(x)
        return
    y = layer(x)
    assert y.shape == expected.shape
    size = float(x.abs().max() * conv.weight.abs().sum(dim=(1, 2, 3)).max())
    assert (y - expected).abs().max() <= 1e-6 * size
    dy = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(out, x, dy)[0] for out in (y, expected))
    size = float(dy.abs().max() * conv.weight.abs().sum(dim=(0, 2, 3)).max() * options["groups"])
    assert (ours - theirs).abs().max() <= 1e-6 * size


@torch.no_grad()
def test_a_trained_network_of_attention_gives_the_same_predictions(shared_data: Path) -> None:
    model = CifarResNet()
    model.load_state_dict(trained_weights(shared_data), strict=False)
    images, labels = cifar_images(shared_data / "image_cls/cifar10_jpeg_test_a.zip", each=30)
    before = model.eval()(images)
    convs = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    assert len(convs) == 19
    for name in convs:
        model.set_submodule(name, nl.SelfAttention2d.from_conv(model.get_submodule(name)))
    after = model(images)
    assert (before.argmax(1) == labels).double().mean() > 0.8
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    nl.insert_blocks(
        model, ["layer1.2.bn2", "layer3.0.bn2"], block="squeeze_excitation", example_input=images[:1]
    )
    nl.insert_blocks(model, ["layer2.0.bn2"], block="global_context", example_input=images[:1])
    assert torch.equal(model(images), after)


@settings(max_examples=100)
@given(CONVS, st.integers(0, 2**31))
def test_and_back_again(options, seed):
    torch.manual_seed(seed)
    if options["padding"] == "same":
        options = {**options, "stride": (1, 1)}
    conv = nn.Conv2d(4, 6, **options)
    assume(
        options["padding_mode"] == "zeros" or options["padding"] != "same" or max(options["kernel_size"]) < 3
    )
    made = nl.SelfAttention2d.from_conv(conv).to_conv()
    assert (made.conv.kernel_size, made.conv.stride) == (conv.kernel_size, conv.stride) or options[
        "padding"
    ] == "same"
    if made.conv.weight.shape == conv.weight.shape:
        assert (made.conv.weight - conv.weight).abs().max() <= 1e-6
    if options["padding_mode"] == "zeros":
        x = torch.randn(1, 4, 13, 12)
        torch.testing.assert_close(made.conv(x), conv(x), rtol=1e-5, atol=1e-5)
    assert made.error <= 1e-5
    assert made.border == (0, 0, 0, 0)


@settings(max_examples=40)
@given(
    st.sampled_from(["quadratic", "gaussian"]),
    st.sampled_from([1e-1, 1e-3, 1e-6]),
    st.sampled_from([(1, 1), (2, 1)]),
    st.integers(0, 2**31),
)
def test_the_bound_of_to_conv_holds(position, tolerance, stride, seed):
    torch.manual_seed(seed)
    layer = nl.SelfAttention2d(3, 4, 3, position, stride=stride, padding=1).double()
    made = layer.to_conv(tolerance)
    assert made.error <= tolerance
    x = 2 * torch.rand(1, 3, 40, 44, dtype=torch.float64) - 1
    difference = (layer(x) - made.conv(x)).abs()
    left, right, top, bottom = made.border
    inside = difference[:, :, top : difference.shape[2] - bottom, left : difference.shape[3] - right]
    assert inside.numel()
    assert inside.max() <= made.error + 1e-12


def test_a_learned_table_is_a_convolution_where_it_is_sharp():
    layer = nl.SelfAttention2d(2, 3, 2, "learned", largest_map=(12, 12))
    with torch.no_grad():
        layer.row_table.zero_()
        layer.column_table.zero_()
        layer.row_table[0, 11 + 1] = layer.row_table[1, 11 - 2] = 50
        layer.column_table[0, 11] = layer.column_table[1, 11 + 3] = 50
    made = layer.to_conv()
    left, right, top, bottom = made.border
    assert (left, right, top, bottom) == (0, 3, 2, 1)
    x = torch.randn(1, 2, 12, 12)
    y, z = layer(x), made.conv(x)
    torch.testing.assert_close(y[:, :, top:-bottom, left:-right], z[:, :, top:-bottom, left:-right])


def test_broad_heads_are_no_convolution():
    layer = nl.SelfAttention2d(2, 2, 2)
    with torch.no_grad():
        layer.spreads.fill_(1e-3)
    with pytest.raises(ValueError, match=r"a kernel of \d+ x \d+ still leaves"):
        layer.to_conv()


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "strided, grouped, padded"])
def test_affinity_is_the_rows_of_the_average(kind):
    layer, x = layer_of(kind), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    shape = layer.geometry.grid(5, 6)
    rows = layer.affinity(x, torch.arange(math.prod(shape)))
    around = layer.geometry.padded(x)
    assert rows.shape == (2, math.prod(shape), 3, math.prod(layer.key_shape((5, 6))))
    y = torch.einsum("bqhk,hoi,bik->boq", rows, layer.value, around.flatten(2)).reshape(2, -1, *shape)
    torch.testing.assert_close(y + layer.bias.view(-1, 1, 1), layer(x))


def test_heads_are_found_reset_and_pruned():
    layer = nl.SelfAttention2d(4, 4, 5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    layer(torch.randn(1, 4, 6, 6)).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.spreads[1] = 1e-3
        layer.value[3] *= 1e-3
    assert layer.degenerate_heads() == [1, 3]
    before = {name: parameter.clone() for name, parameter in layer.named_parameters()}
    layer.reset_heads([1, 3], optimizer)
    assert layer.degenerate_heads() == []
    for name, parameter in layer.named_parameters():
        others = slice(None) if name == "bias" else [0, 2, 4]
        assert torch.equal(parameter[others], before[name][others])
        if name != "bias":
            assert optimizer.state[parameter]["exp_avg"][[1, 3]].count_nonzero() == 0
            assert optimizer.state[parameter]["exp_avg"][[0, 2, 4]].count_nonzero() > 0
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        layer.value[[1, 3]] = 0
    expected = layer(x)
    layer.prune_heads([3, 1])
    assert layer.heads == 3
    torch.testing.assert_close(layer(x), expected)
    matrices = nl.SelfAttention2d(4, 4, 2, "gaussian")
    with torch.no_grad():
        matrices.spreads[1] = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert matrices.degenerate_heads() == [1]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("kind", ["quadratic", "learned", "gaussian"])
def test_compiled_exported_and_under_torch_func(kind):
    layer = layer_of(kind, torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 6, 5)
    expected = layer(x)
    torch.testing.assert_close(compiled(x), expected)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), expected)
    torch.testing.assert_close(torch.func.vmap(layer)(x.unsqueeze(1)).squeeze(1), expected)


def test_onnxruntime_gives_the_same(tmp_path):
    import onnxruntime

    layer, x = nl.SelfAttention2d(4, 6, 3).eval(), torch.randn(2, 4, 6, 5)
    torch.onnx.export(layer, (x,), tmp_path / "layer.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nl.SelfAttention2d(4, 4, 0), "heads = 0"),
        (lambda: nl.SelfAttention2d(4, 6, groups=4), "groups = 4"),
        (lambda: nl.SelfAttention2d(4, 4, position="learned"), "largest_map=None"),
        (lambda: nl.SelfAttention2d(4, 4, largest_map=(3, 3)), "tables, and they alone"),
        (lambda: nl.SelfAttention2d(4, 4, d=3), "d = 3 with content=False"),
        (lambda: nl.SelfAttention2d(4, 4, stride=0), "stride = 0"),
        (lambda: nl.SelfAttention2d(4, 4, padding=-1), "padding = "),
        (lambda: nl.SelfAttention2d(4, 4)(torch.zeros(1, 3, 5, 5)), r"expected \(batch, 4, height, width\)"),
        (lambda: nl.SelfAttention2d(4, 4)(torch.zeros(1, 4, 0, 5)), "0 x 5"),
        (
            lambda: nl.SelfAttention2d.from_conv(nn.Conv2d(4, 4, 3, dilation=2))(torch.zeros(1, 4, 4, 9)),
            "4 x 9.*5 x 5",
        ),
        (
            lambda: nl.SelfAttention2d(4, 4, padding=3, padding_mode="reflect")(torch.zeros(1, 4, 3, 9)),
            "reflect padding",
        ),
        (
            lambda: nl.SelfAttention2d(4, 4, position="learned", largest_map=(3, 3))(torch.zeros(1, 4, 4, 3)),
            "a map of 4 x 3.*allow up to 3 x 3",
        ),
        (lambda: nl.SelfAttention2d.from_conv(nn.Conv2d(4, 4, 3), alpha=0), "alpha = 0"),
        (lambda: nl.SelfAttention2d(4, 4, 2).prune_heads([0, 1]), "one must stay"),
        (lambda: nl.SelfAttention2d(4, 4, 2).reset_heads([2]), r"no such head: \[2\]; there are 0 to 1"),
        (lambda: nl.SelfAttention2d(4, 4, 2, content=True).to_conv(), "with content"),
        (lambda: nl.SelfAttention2d(4, 4, 2).to_conv(0.0), "tolerance = 0"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("conv", [nn.Conv1d(3, 3, 3), nn.Conv3d(3, 3, 3), nn.ConvTranspose2d(3, 3, 3)])
def test_other_convolutions_are_refused(conv):
    with pytest.raises(TypeError, match=r"takes an nn\.Conv2d, got " + type(conv).__name__):
        nl.SelfAttention2d.from_conv(conv)
