"""The block in torch.compile, torch.export and ONNX, at sizes that it was not traced with."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch.export import Dim

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock

PAIRWISE = ["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
SIZES = [(3, 8, 5, 10, 8), (1, 8, 2, 7, 9), (2, 8, 12, 16, 16)]
DYNAMIC = {"x": {0: Dim("batch"), 2: Dim("frames"), 3: Dim("height", min=4), 4: Dim("width", min=4)}}


@pytest.fixture(params=["embedding", "input"])
def subsample_at(request: pytest.FixtureRequest) -> str:
    return request.param


def trained(pairwise: str, **options) -> NonLocalBlock:
    """A block that is not the identity."""
    block = NonLocalBlock(8, pairwise=pairwise, **options)
    with torch.no_grad():
        block.norm.weight.uniform_(0.5, 1.5)
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 2)
    return block.eval()


def gradients(function, block: NonLocalBlock, x: torch.Tensor) -> list[torch.Tensor]:
    y = function(x)
    found = torch.autograd.grad(y.square().mean(), [x, *block.parameters()])
    return [y, *found]


def check_compiled(block: NonLocalBlock, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=backend)
    for size in SIZES:
        x = torch.randn(size, dtype=torch.float64, requires_grad=True)
        ours, eager = (gradients(function, block, x) for function in (compiled, block))
        for a, b in zip(ours, eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_compiles_whole_with_dynamic_sizes(pairwise, subsample_at):
    check_compiled(trained(pairwise, subsample_at=subsample_at).double(), "aot_eager")


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("options", [{"memory_budget": 0}, {"span": "time"}, {"temporal_groups": 1}])
def test_compiles_with_other_options(options):
    check_compiled(trained("embedded_gaussian", **options).double(), "aot_eager")


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "concatenation"])
def test_compiles_by_inductor(pairwise):
    check_compiled(trained(pairwise).double(), "inductor")


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize("with_gradients", [False, True])
def test_exports_for_every_size(pairwise, subsample_at, with_gradients):
    block = trained(pairwise, subsample_at=subsample_at)
    with torch.set_grad_enabled(with_gradients):
        program = torch.export.export(block, (torch.randn(2, 8, 4, 6, 6),), dynamic_shapes=DYNAMIC)
    for size in SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(program.module()(x), block(x))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_onnx_gives_what_eager_mode_gives(pairwise, subsample_at):
    block = trained(pairwise, subsample_at=subsample_at)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own exporter uses what torch deprecates
        program = torch.onnx.export(
            block, (torch.randn(2, 8, 4, 6, 6),), dynamo=True, dynamic_shapes=DYNAMIC, verbose=False
        )
    assert {node.domain for node in program.model.graph} <= {""}  # ONNX's own operators alone
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in SIZES:
        x = torch.randn(size)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, block(x).detach().numpy(), rtol=1e-4, atol=1e-4)
