"""The table of pairwise functions, and a function from outside of it in every part that reads the table."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import nonlocal_nn as nl
from nonlocal_nn import pairwise
from nonlocal_nn.blocks.options import BlockOptions
from nonlocal_nn.evaluation.cost import pairwise_macs
from nonlocal_nn.explain.capture.affinity import capture
from nonlocal_nn.explain.draw.captions import block_line, weight_note
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.ops.rows import average_by_rows
from nonlocal_nn.pairwise import PairwiseFunction, get_pairwise, pairwise_functions
from tests import euclidean
from tests.blocks.plain_block import randomise
from tests.ops.largest_tensor import LargestTensor

SETTINGS = [
    {"span": span, "temporal_groups": groups, "subsample": subsample}
    for span, groups in (("spacetime", 1), ("spacetime", 2), ("space", 1), ("time", 1), ("time", 2))
    for subsample in (True, False)
]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> PairwiseFunction:
    monkeypatch.setattr(pairwise, "_TABLE", dict(pairwise._TABLE))
    return euclidean.ALONE.register()


def block_with(function: str | PairwiseFunction = euclidean.ALONE, **options) -> nl.NonLocalBlock:
    return randomise(nl.NonLocalBlock(6, pairwise=function, **options)).eval()


# --- the sum ---


@pytest.mark.parametrize("queries", [0, 1, 57])
def test_the_average_by_rows_has_all_derivatives(queries, thresholds: Callable[..., None]):
    thresholds(cpu_chunk_bytes=4000, chunk_rows=1)  # a few rows at a time
    arguments = [torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True) for n in (queries, 11, 11)]

    def ours(theta, phi, g):
        return average_by_rows(euclidean.affinity, theta, phi, g)

    def plain(theta, phi, g):
        return euclidean.affinity(theta, phi) @ g

    torch.testing.assert_close(ours(*arguments), plain(*arguments))
    found = [
        torch.autograd.grad(f(*arguments).sin().sum(), arguments, create_graph=True) for f in (ours, plain)
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    if queries:
        second = [torch.autograd.grad(sum(x.square().sum() for x in first), arguments) for first in found]
        for a, b in zip(*second, strict=True):
            torch.testing.assert_close(a, b)
        mapped = torch.func.vmap(ours)(*(x.detach()[None] for x in arguments))
        torch.testing.assert_close(mapped[0], plain(*arguments))


def test_its_memory_is_linear_forward_and_backward(thresholds: Callable[..., None]):
    thresholds(cpu_chunk_bytes=64_000, chunk_rows=1)
    theta, phi, g = (torch.randn(1, 1600, 4, requires_grad=True) for _ in range(3))
    affinity = lambda t, p: (t @ p.mT).softmax(dim=2)  # noqa: E731 - a matrix a chunk of rows large
    with LargestTensor() as largest:
        average_by_rows(affinity, theta, phi, g).sum().backward()
    assert largest.bytes <= 64_000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    theta, phi, g = (torch.randn(1, 40, 4).to(dtype) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = average_by_rows(euclidean.affinity, theta, phi, g)
    assert y.dtype == dtype
    exact = average_by_rows(euclidean.affinity, theta.float(), phi.float(), g.float())
    assert torch.equal(y, exact.to(dtype))


# --- a block with it ---


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_block_of_a_fifth_function_is_that_function(options):
    """The same weights: as the gaussian of longer vectors, from the affinity alone, and by its rows."""
    x = torch.randn(2, 6, 4, 6, 6, dtype=torch.float64)
    alone = block_with(**options).double()
    fast = nl.NonLocalBlock(6, pairwise=euclidean.FAST, **options).double().eval()
    fast.load_state_dict(alone.state_dict())
    gaussian = nl.NonLocalBlock(6, **options).double().eval()
    gaussian.load_state_dict(alone.state_dict())
    torch.testing.assert_close(fast(x), alone(x))
    assert not torch.allclose(alone(x), gaussian(x))
    rows = alone.affinity(x, torch.arange(4 * 6 * 6))
    torch.testing.assert_close(rows.sum(dim=2), torch.ones(2, 144, dtype=torch.float64))
    g = alone.pool(alone.g(x)).flatten(2).mT
    y = (rows @ g).mT.reshape(2, 3, 4, 6, 6)
    torch.testing.assert_close(x + alone.norm(alone.W_z(y)), alone(x))


def test_a_new_block_is_the_identity_and_every_parameter_learns():
    block = nl.NonLocalBlock(6, pairwise=euclidean.ALONE)
    x = torch.randn(2, 6, 3, 4, 4)
    assert torch.equal(block.eval()(x), x)
    nn.init.ones_(block.train().norm.weight)
    block(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    assert block.theta.weight.grad.any()
    assert "euclidean: z_i = norm(W_z y_i) + x_i, y_i = sum_j f(theta_i, phi_j) / C g_j" in str(block)


def test_insertion_keeps_the_outputs_and_copies_keep_the_function():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 12, 12)
    before = network(x)
    nl.insert_blocks(network, after=["1"], pairwise=euclidean.ALONE)
    assert torch.equal(network(x), before)
    again = copy.deepcopy(network)
    assert again[1].nonlocal_block.function is euclidean.ALONE


def test_a_registered_function_is_pickled_by_its_name(registered):
    block = block_with(registered)
    again = pickle.loads(pickle.dumps(block))
    assert again.function is registered
    assert pickle.loads(pickle.dumps(get_pairwise("gaussian"))) is get_pairwise("gaussian")


@pytest.mark.usefixtures("without_shape_checks")
def test_it_compiles_exports_and_goes_to_onnx():
    block = block_with(dims=2)
    x = torch.randn(1, 6, 8, 10)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x))
    program = torch.export.export(block, (x,))
    torch.testing.assert_close(program.module()(x), block(x))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(block, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, block(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_its_cost_is_counted_as_a_product_of_embeddings():
    ours, theirs = (
        pairwise_macs(block_with(f), (1, 6, 4, 8, 8)) for f in (euclidean.ALONE, "embedded_gaussian")
    )
    assert ours == theirs == 256 * 64 * (3 + 3)


def test_explain_names_it_and_shows_its_rows():
    captured = capture(nn.Sequential(block_with()), torch.randn(1, 6, 4, 6, 6))
    (block,) = captured.blocks.values()
    assert block_line(block).startswith("Block 0: Euclidean, 4 x 6 x 6 positions look at 4 x 3 x 3 keys")
    rows = block.rows([0, 5])
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-5)
    assert "a softmax: a row sums to 1" in weight_note(block, rows[0], (), 1, "heat")


def test_explain_says_what_the_weights_of_a_signed_function_are(tmp_path: Path):
    signed = PairwiseFunction("cosine", lambda t, p: t @ p.mT / p.shape[1])
    network = nn.Sequential(block_with(signed, subsample=False))
    explanation = nl.explain(network, torch.randn(1, 6, 4, 6, 6))
    explanation.save(tmp_path / "page.html")
    (block,) = explanation.captured.blocks.values()
    note = weight_note(block, np.array([0.5, -0.5]), (), 1, "heat")
    assert note == "Weights are f/C of the cosine: unnormalised, and negative ones (blue) exist."


# --- in specs and files ---


def test_a_network_of_it_is_saved_and_loaded_by_name(tmp_path: Path, registered):
    model = nl.create_model("c2d_tiny_nl1", num_classes=2, pairwise=registered).eval()
    randomise(model.res3.nonlocal0)
    assert model.spec.pairwise == "euclidean"
    assert VideoResNetSpec.from_json(model.spec.to_json()) == model.spec
    nl.save_model(model, tmp_path / "model.safetensors")
    again = nl.load_model(tmp_path / "model.safetensors")
    x = torch.randn(1, 3, 8, 48, 48)
    torch.testing.assert_close(again(x), model(x))
    nl.save_model(block_with(registered), tmp_path / "block.safetensors")
    assert nl.load_model(tmp_path / "block.safetensors").function is registered


def test_a_file_with_an_unknown_function_is_refused(tmp_path: Path, registered):
    path = tmp_path / "block.safetensors"
    nl.save_model(block_with(registered), path)
    script = f"import nonlocal_nn as nl; nl.load_model({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ValueError: pairwise='euclidean' does not exist; choose one of 'embedded_gaussian'" in done.stderr


# --- what cannot be ---


def test_an_unknown_name_is_an_error_everywhere():
    network = nn.Sequential(nn.Conv2d(3, 8, 3))
    for wrong in (
        lambda: nl.NonLocalBlock(8, pairwise="euclid"),
        lambda: nl.insert_blocks(network, after=["0"], pairwise="euclid"),
        lambda: nl.create_model("c2d_tiny_nl1", pairwise="euclid"),
        lambda: VideoResNetSpec("mine", pairwise="euclid"),
        lambda: BlockOptions.from_file(BlockOptions().to_file() | {"pairwise": "euclid"}),
        lambda: get_pairwise("euclid"),
    ):
        with pytest.raises(ValueError, match=r"'euclid'.* choose one of .*'embedded_gaussian'"):
            wrong()


def test_a_name_is_taken_once(registered):
    assert euclidean.ALONE.register() is registered
    with pytest.raises(ValueError, match="'euclidean' is there already"):
        PairwiseFunction("euclidean", euclidean.affinity).register()
    with pytest.raises(ValueError, match="'gaussian' is there already"):
        PairwiseFunction("gaussian", euclidean.affinity).register()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "my function", "affinity": euclidean.affinity}, "a name of letters, digits and _"),
        ({"name": "mine", "affinity": 3}, "affinity of 'mine' must be a function, got 3"),
        ({"name": "mine", "affinity": nn.Linear(2, 2)}, "parameters of its own, which no block would train"),
        (
            {"name": "mine", "affinity": euclidean.affinity, "scores": True, "product": True},
            "not of their product",
        ),
    ],
)
def test_functions_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        PairwiseFunction(**arguments)


def test_an_affinity_of_the_wrong_shape_is_named():
    block = nl.NonLocalBlock(4, pairwise=PairwiseFunction("transposed", lambda t, p: p @ t.mT))
    with pytest.raises(ValueError, match=r"\(batch, queries, keys\) = \(1, 16, 4\), got \(1, 4, 16\)"):
        block(torch.zeros(1, 4, 1, 4, 4))


def test_a_scale_needs_a_function_of_the_product():
    with pytest.raises(ValueError, match="needs a product of theta and phi; pairwise='euclidean' has"):
        nl.NonLocalBlock(4, pairwise=euclidean.ALONE, scale=True)
    sharp = PairwiseFunction("sharp", lambda t, p, scale: (9 * scale * t @ p.mT).softmax(dim=2), product=True)
    block = block_with(sharp, scale=True, subsample=False)
    x = torch.randn(1, 6, 1, 3, 3)
    theta, phi, _ = (m.flatten(2).mT for m in block._embed(x))
    expected = (9 * 3**-0.5 * theta @ phi.mT).softmax(dim=2)
    torch.testing.assert_close(block.affinity(x, torch.arange(9)), expected)


def test_a_function_of_scores_gets_them():
    smooth = PairwiseFunction("smooth", lambda a, b: (a[:, :, None] + b[:, None]).sigmoid() / 5, scores=True)
    block = block_with(smooth, dims=1, subsample=False)
    x = torch.randn(1, 6, 7)
    a, b = block._scores(block.theta(x).mT, block.phi(x).mT)
    y = ((a[:, :, None] + b[:, None]).sigmoid() / 5) @ block.g(x).mT
    torch.testing.assert_close(block(x), x + block.norm(block.W_z(y.mT)))


def test_what_the_table_says_of_the_papers_functions_is_true():
    torch.manual_seed(0)
    for function in pairwise_functions():
        theta, phi, g = torch.randn(2, 9, 4), torch.randn(2, 7, 4), torch.randn(2, 7, 3)
        operands = (theta[:, :, 0], phi[:, :, 0]) if function.scores else (theta, phi)
        rows = function.rows(*operands)
        assert function.signed == bool((rows < 0).any())
        assert function.sums_to_one == torch.allclose(rows.sum(dim=2), torch.ones(2, 9))
        torch.testing.assert_close(function.averaged(*operands, g), rows @ g)
        alone = PairwiseFunction(
            "alone", function.affinity, product=function.product, scores=function.scores
        )  # its affinity is enough
        torch.testing.assert_close(alone.averaged(*operands, g), rows @ g)
