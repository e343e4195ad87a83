"""The block against its definition, for every choice of the paper and of the released code."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch

from nonlocal_nn import NonLocalBlock
from nonlocal_nn.blocks.norm import FrozenBatchNorm
from tests.blocks.plain_block import plain_affinity_and_g, plain_block, randomise

PAIRWISE = ["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
SUBSAMPLE = [(False, "embedding"), (True, "embedding"), (True, "input")]
SPANS = [("spacetime", 1), ("spacetime", 2), ("space", 1), ("time", 1), ("time", 2)]
POSITIONS = {1: (7,), 2: (5, 4), 3: (4, 3, 4)}
CHOICES = [
    *itertools.product(PAIRWISE, [3], SUBSAMPLE, SPANS),
    *itertools.product(PAIRWISE, [1, 2], SUBSAMPLE, SPANS[:1]),
]
every_choice = pytest.mark.parametrize(
    ("pairwise", "dims", "subsample", "span"),
    CHOICES,
    ids=["-".join(map(str, (p, d, *(s if s[0] else ("all",)), *t))) for p, d, s, t in CHOICES],
)
every_pairwise = pytest.mark.parametrize("pairwise", PAIRWISE)


def block_of(pairwise, dims, subsample, span, **options) -> NonLocalBlock:
    return NonLocalBlock(
        4, 3, pairwise, dims, subsample=subsample[0], subsample_at=subsample[1], span=span[0],
        temporal_groups=span[1], **options,
    )  # fmt: skip


@every_choice
def test_output_and_gradients_follow_the_definition(pairwise, dims, subsample, span):
    block = randomise(block_of(pairwise, dims, subsample, span)).double().eval()
    x = torch.randn(2, 4, *POSITIONS[dims], dtype=torch.float64, requires_grad=True)
    dz = torch.randn_like(x)
    wanted = [x, *block.parameters()]
    ours, plain = block(x), plain_block(block, x)
    torch.testing.assert_close(ours, plain)
    gradients = torch.autograd.grad(ours, wanted, dz), torch.autograd.grad(plain, wanted, dz)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@every_choice
def test_affinity_rows_follow_the_definition(pairwise, dims, subsample, span):
    block = randomise(block_of(pairwise, dims, subsample, span)).double()
    shape = POSITIONS[dims]
    x = torch.randn(2, 4, *shape, dtype=torch.float64)
    full, _ = plain_affinity_and_g(block, x)
    assert full.shape[2] == math.prod(block.key_shape(shape))
    flat = torch.tensor([0, math.prod(shape) - 1, 3, 3])
    torch.testing.assert_close(block.affinity(x, flat), full[:, flat])
    coordinates = torch.stack(torch.unravel_index(flat, shape), dim=1)
    torch.testing.assert_close(block.affinity(x, coordinates), full[:, flat])
    if "gaussian" in pairwise:
        torch.testing.assert_close(block.affinity(x, flat).sum(dim=2), torch.ones(2, 4, dtype=torch.float64))


@every_choice
@pytest.mark.parametrize("norm", ["batch", "frozen", None])
@pytest.mark.parametrize("init", ["paper", "released"])
def test_a_new_block_changes_no_bit(pairwise, dims, subsample, span, norm, init):
    block = block_of(pairwise, dims, subsample, span, norm=norm, init=init)
    x = torch.randn(2, 4, *POSITIONS[dims])
    assert torch.equal(block.train()(x), x)
    assert torch.equal(block.eval()(x), x)


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "gaussian", "dot_product"])
def test_scale(pairwise):
    block = randomise(NonLocalBlock(4, 3, pairwise, scale=True)).double().eval()
    assert block.scale == {"gaussian": 4}.get(pairwise, 3) ** -0.5
    x = torch.randn(1, 4, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(block(x), plain_block(block, x))
    torch.testing.assert_close(
        block.affinity(x, torch.tensor([5])), plain_affinity_and_g(block, x)[0][:, 5:6]
    )


@pytest.mark.parametrize("norm", ["batch", "frozen", None])
def test_norms(norm):
    block = randomise(NonLocalBlock(4, norm=norm)).double().eval()
    assert isinstance(
        block.norm, {"batch": torch.nn.BatchNorm3d, "frozen": FrozenBatchNorm, None: type(None)}[norm]
    )
    x = torch.randn(2, 4, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(block(x), plain_block(block, x))


@every_pairwise
def test_a_new_block_can_learn(pairwise):
    for norm in ("batch", None):
        block = NonLocalBlock(4, pairwise=pairwise, norm=norm)
        x = torch.randn(2, 4, 2, 4, 4)
        block(x).square().sum().backward()
        start = block.W_z.weight if norm is None else block.norm.weight
        assert start.grad.abs().min() > 0


@every_pairwise
def test_order_of_positions_does_not_matter(pairwise):
    block = randomise(NonLocalBlock(4, 3, pairwise, dims=1, subsample=False)).double().eval()
    x, order = torch.randn(2, 4, 30, dtype=torch.float64), torch.randperm(30)
    torch.testing.assert_close(block(x[:, :, order]), block(x)[:, :, order])


def test_each_group_of_frames_is_a_clip_of_its_own():
    block = randomise(NonLocalBlock(4, temporal_groups=2)).eval()
    whole = randomise(NonLocalBlock(4)).eval()
    whole.load_state_dict(block.state_dict())
    x = torch.randn(2, 4, 6, 4, 4)
    parts = torch.cat([whole(x[:, :, :3]), whole(x[:, :, 3:])], dim=2)
    torch.testing.assert_close(block(x), parts)


@pytest.mark.parametrize(("init", "deviation"), [("paper", (2 / 64) ** 0.5), ("released", 0.01)])
def test_initial_deviations(init, deviation):
    block = NonLocalBlock(64, 32, "concatenation", init=init)
    for conv in (block.theta, block.phi, block.g):
        assert conv.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert conv.bias.count_nonzero() == 0
    w_z_deviation = (2 / 32) ** 0.5 if init == "paper" else 0.01
    assert block.W_z.weight.std().item() == pytest.approx(w_z_deviation, rel=0.1)
    assert block.W_z.bias.count_nonzero() == 0
    assert block.w_f.shape == (64,)
    assert block.w_f.std().item() == pytest.approx(deviation, rel=0.3)


def test_channels_halve_and_time_is_never_pooled():
    block = NonLocalBlock(1024, dims=3)
    assert block.inner_channels == 512
    assert block.key_shape((4, 15, 14)) == (4, 7, 7)
    assert NonLocalBlock(8, dims=2).key_shape((5, 7)) == (2, 3)
    assert NonLocalBlock(8, dims=1).key_shape((9,)) == (4,)
    assert NonLocalBlock(8, span="time").key_shape((4, 15, 14)) == (4, 15, 14)


@every_pairwise
@pytest.mark.parametrize("positions", [(1, 2, 2), (1, 2, 3)])
def test_one_key_is_enough(pairwise, positions):
    block = randomise(NonLocalBlock(4, pairwise=pairwise)).double().eval()
    x = torch.randn(1, 4, *positions, dtype=torch.float64)
    torch.testing.assert_close(block(x), plain_block(block, x))


@every_pairwise
@pytest.mark.parametrize("span", ["spacetime", "space", "time"])
def test_empty_batch(pairwise, span):
    block = randomise(NonLocalBlock(4, pairwise=pairwise, span=span)).eval()
    x = torch.randn(0, 4, 2, 4, 4, requires_grad=True)
    z = block(x)
    z.sum().backward()
    assert z.shape == x.shape == x.grad.shape
    assert block.affinity(x, torch.tensor([1])).shape[:2] == (0, 1)


@every_pairwise
def test_memory_formats_give_the_same(pairwise):
    block = randomise(NonLocalBlock(8, pairwise=pairwise)).eval()
    x = torch.randn(2, 8, 2, 6, 6)
    z = block(x)
    assert z.is_contiguous()
    last = block(x.contiguous(memory_format=torch.channels_last_3d))
    assert last.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(last, z)
    torch.testing.assert_close(block(x.transpose(3, 4)).transpose(3, 4), z)


@every_pairwise
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(pairwise, dtype):
    block = randomise(NonLocalBlock(8, pairwise=pairwise)).eval()
    x = torch.randn(2, 8, 2, 6, 6)
    exact = block.double()(x.double())
    block.float()
    bound = 0.1 if dtype == torch.bfloat16 else 0.02  # some roundings of 2^-8 and 2^-11
    with torch.autocast("cpu", dtype=dtype):
        under_autocast = block(x)
        rows = block.affinity(x, torch.arange(4))
    assert under_autocast.dtype == torch.float32
    assert (under_autocast - exact).norm() < bound * (exact - x).norm()
    if "gaussian" in pairwise:
        assert (rows.sum(dim=2) - 1).abs().max() < 1e-6
    half = block.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    assert (half - exact).norm() < bound * (exact - x).norm() + bound / 8 * x.norm()


def test_survives_copying_pickling_and_its_own_state_dict():
    block = randomise(NonLocalBlock(4, pairwise="concatenation", temporal_groups=2)).eval()
    x = torch.randn(1, 4, 4, 4, 4)
    again = NonLocalBlock(4, pairwise="concatenation", temporal_groups=2).eval()
    again.load_state_dict(block.state_dict())
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), again):
        assert torch.equal(other(x), block(x))
        assert repr(other) == repr(block)


def test_names_of_the_state_dict():
    names = set(NonLocalBlock(4, pairwise="concatenation", norm="frozen").state_dict())
    assert names == {
        "w_f",
        *(f"{conv}.{part}" for conv in ("theta", "phi", "g", "W_z") for part in ("weight", "bias")),
        *(f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
    }
    assert not [
        name for name in NonLocalBlock(4, pairwise="gaussian").state_dict() if name[:3] in ("the", "phi")
    ]


def test_repr_reads_like_the_paper():
    text = repr(NonLocalBlock(1024, temporal_groups=4))
    assert "1024 -> 512 -> 1024, embedded_gaussian: z_i = norm(W_z y_i) + x_i" in text
    assert "y_i = sum_j softmax_j(theta_i . phi_j) g_j" in text
    assert "span=spacetime in 4 runs of frames, keys: max-pooled phi and g" in text
    assert "span=time, keys: all positions" in repr(NonLocalBlock(8, span="time"))


@every_pairwise
def test_shapes_are_known_without_data(pairwise):
    with torch.device("meta"):
        block, x = NonLocalBlock(8, pairwise=pairwise), torch.empty(1, 8, 4, 28, 28)
        assert block(x).shape == x.shape


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")  # the tests' own shape checks
@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "concatenation"])
def test_compiles(pairwise):
    block = randomise(NonLocalBlock(4, pairwise=pairwise)).eval()
    x = torch.randn(1, 4, 2, 6, 6, requires_grad=True)
    compiled = torch.compile(block, backend="eager")(x)
    torch.testing.assert_close(compiled, block(x))
    gradients = (torch.autograd.grad(z.square().sum(), x)[0] for z in (compiled, block(x)))
    torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pairwise": "gausian"}, r"pairwise='gausian' does not exist; choose one of 'embedded_gaussian'"),
        ({"dims": 4}, r"dims=4 does not exist; choose one of 1, 2, 3"),
        ({"span": "frame"}, r"span='frame' does not exist; choose one of 'spacetime', 'space', 'time'"),
        ({"subsample_at": "output"}, r"subsample_at='output' does not exist"),
        ({"norm": "layer"}, r"norm='layer' does not exist; choose one of 'batch', 'frozen', None"),
        ({"init": "zeros"}, r"init='zeros' does not exist"),
        ({"dims": 2, "span": "time"}, r"dims=2 has no time axis: span='time'"),
        ({"dims": 1, "temporal_groups": 2}, r"dims=1 has no time axis.*temporal_groups=2"),
        (
            {"span": "space", "temporal_groups": 2},
            r"span='space' keeps every frame by itself.*temporal_groups=2",
        ),
        ({"temporal_groups": 0}, r"at least 1, got None and 0"),
        ({"inner_channels": 0}, r"at least 1, got 0 and 1"),
        ({"scale": True, "pairwise": "concatenation"}, r"scale=True needs a product"),
    ],
)
def test_options_that_do_not_exist_or_go_together(options, words):
    with pytest.raises(ValueError, match=words):
        NonLocalBlock(8, **options)


@pytest.mark.usefixtures("without_shape_checks")
def test_inputs_that_do_not_fit():
    block = NonLocalBlock(8)
    with pytest.raises(ValueError, match=r"expected \(batch, 8, frames, height, width\), got \(2, 8, 4, 4\)"):
        block(torch.zeros(2, 8, 4, 4))
    with pytest.raises(
        ValueError, match=r"expected \(batch, 8, frames, height, width\), got \(2, 7, 4, 4, 4\)"
    ):
        block(torch.zeros(2, 7, 4, 4, 4))
    with pytest.raises(ValueError, match=r"a map of \(4, 1, 4\) positions is too small to subsample"):
        block(torch.zeros(2, 8, 4, 1, 4))
    with pytest.raises(ValueError, match=r"5 frames do not divide into temporal_groups=2"):
        NonLocalBlock(8, temporal_groups=2)(torch.zeros(1, 8, 5, 4, 4))
    with pytest.raises(ValueError, match=r"dims=3 needs 3 position axes, got \(4, 4\)"):
        block.key_shape((4, 4))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("queries", "words"),
    [
        (torch.tensor([0, 32]), r"query 32 lies outside the grid of positions \(2, 4, 4\)"),
        (torch.tensor([-1]), r"query -1 lies outside"),
        (
            torch.tensor([[0, 0, 0], [1, 4, 0]]),
            r"query \[1, 4, 0\] lies outside the grid of positions \(2, 4, 4\)",
        ),
        (torch.tensor([[0, 0]]), r"or \(queries, 3\) coordinates, got shape \(1, 2\)"),
        (torch.tensor([0.0]), r"must be integers \(positions\), got dtype torch\.float32"),
    ],
)
def test_queries_that_are_no_positions(queries, words):
    with pytest.raises(ValueError, match=words):
        NonLocalBlock(4).affinity(torch.zeros(1, 4, 2, 4, 4), queries)


@pytest.mark.parametrize("norm", ["batch", "frozen", None])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_folding_the_norm_keeps_the_outputs(norm, dims):
    block = NonLocalBlock(6, dims=dims, norm=norm)
    for value in (*block.parameters(), *block.buffers()):
        if value.is_floating_point():
            value.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 6, *(4, 6, 8)[:dims])
    before = block.eval()(x)
    assert block.fold_norm() is block
    assert block.norm is None
    torch.testing.assert_close(block(x), before)


def test_folding_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call eval\(\) before fold_norm"):
        NonLocalBlock(4).fold_norm()


def test_a_budget_for_the_block_reaches_the_average():
    block = NonLocalBlock(8, dims=2, norm=None, memory_budget=0)
    torch.nn.init.normal_(block.W_z.weight)
    x = torch.randn(1, 8, 12, 12, requires_grad=True)

    def saved() -> int:
        sizes = []

        def pack(tensor):
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block(x)
        return max(sizes)

    assert saved() < 144 * 36 * 4
    block.memory_budget = None
    assert saved() == 144 * 36 * 4  # the weights: queries x pooled keys
