"""Rows of a capture against all of f/C written out, for every kind of block; what is refused, and how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nonlocal_nn import NonLocalBlock, create_model, insert_blocks
from nonlocal_nn.data.transforms import normalize
from nonlocal_nn.explain.capture.affinity import capture
from tests.blocks.plain_block import plain_affinity_and_g, plain_block, randomise

PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
SPANS = [("spacetime", 1), ("spacetime", 2), ("space", 1), ("time", 1), ("time", 2)]
SUBSAMPLES = [(False, "embedding"), (True, "embedding"), (True, "input")]
SIZES = {1: (11,), 2: (5, 6), 3: (4, 5, 6)}


def captured_block(block: NonLocalBlock, x: Tensor):
    (found,) = capture(nn.Sequential(block), x).blocks.values()
    return found


@pytest.mark.parametrize(("subsample", "subsample_at"), SUBSAMPLES)
@pytest.mark.parametrize(("span", "groups"), SPANS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_rows_are_those_of_the_whole_matrix(pairwise, span, groups, subsample, subsample_at):
    block = NonLocalBlock(
        4,
        pairwise=pairwise,
        span=span,
        temporal_groups=groups,
        subsample=subsample,
        subsample_at=subsample_at,
        scale=pairwise != "concatenation",
    )
    randomise(block).eval()
    x = torch.randn(1, 4, *SIZES[3])
    expected = plain_affinity_and_g(block, x)[0][0].detach().numpy()
    found = captured_block(block, x)
    assert found.sums_to_one == ("gaussian" in pairwise)
    assert (found.pairwise, found.span, found.temporal_groups) == (pairwise, span, groups)
    wanted = [0, 119, 37, 37, 64]
    rows = found.rows(wanted)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected[wanted], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.rows(np.arange(120)), expected, rtol=1e-5, atol=1e-6)
    assert found.rows([]).shape == (0, expected.shape[1])


@pytest.mark.parametrize("subsample", [True, False])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_rows_of_images_and_sequences(pairwise, dims, subsample):
    block = randomise(NonLocalBlock(4, pairwise=pairwise, dims=dims, subsample=subsample)).eval()
    x = torch.randn(1, 4, *SIZES[dims])
    found = captured_block(block, x)
    expected = plain_affinity_and_g(block, x)[0][0].detach().numpy()
    np.testing.assert_allclose(found.rows(np.arange(x[0, 0].numel())), expected, rtol=1e-5, atol=1e-6)
    assert found.queries.shape == (1, 1, *SIZES[dims])[-3:]
    assert found.keys.positions == expected.shape[1]


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_frames_folded_into_the_batch_see_themselves_alone(pairwise):
    class Framewise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.block = randomise(NonLocalBlock(4, pairwise=pairwise, dims=2))

        def forward(self, clip: Tensor) -> Tensor:
            frames = clip.transpose(1, 2).flatten(0, 1)
            return self.block(self.conv(frames)).unflatten(0, (clip.shape[0], -1)).mean((1, 3, 4))

    model, clip = Framewise(), torch.randn(1, 3, 3, 8, 12)
    found = capture(model, clip).blocks["block"]
    assert found.queries.shape == (3, 4, 6)
    assert found.keys.shape == (3, 2, 3)
    assert found.span == "space"
    maps = model.conv(clip[0].transpose(0, 1))
    expected = plain_affinity_and_g(model.block, maps)[0].detach().numpy()  # (frames, queries, keys)
    whole = np.zeros((72, 18), np.float32)
    for frame in range(3):
        whole[frame * 24 : (frame + 1) * 24, frame * 6 : (frame + 1) * 6] = expected[frame]
    np.testing.assert_allclose(found.rows([70, 3, 24, 47]), whole[[70, 3, 24, 47]], rtol=1e-5, atol=1e-6)


def test_the_response_is_the_norm_of_what_the_block_changes():
    block = randomise(NonLocalBlock(4)).eval()
    x = torch.randn(1, 4, 3, 5, 6)
    expected = (plain_block(block, x) - x)[0].norm(dim=0).flatten().detach().numpy()
    np.testing.assert_allclose(captured_block(block, x).response(), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_gives_float32_rows():
    block = randomise(NonLocalBlock(4, norm=None)).eval().to(torch.bfloat16)
    x = torch.randn(1, 4, 2, 4, 4).to(torch.bfloat16)
    found = captured_block(block, x)
    np.testing.assert_allclose(found.rows([5]).sum(), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.rows([5]), block.affinity(x, torch.tensor([5]))[0].numpy())


def test_the_model_is_left_as_it_was_and_rows_are_those_of_eval_mode():
    model = create_model("c2d_tiny_nl2", num_classes=3).train()
    model.res3.eval()
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            nn.init.normal_(module.norm.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    clip = torch.randn(1, 3, 4, 24, 24)
    kept = clip.clone()
    captured = capture(model, clip)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(clip, kept)
    model.eval()
    inputs = {}
    model.get_submodule("res3.nonlocal1").register_forward_pre_hook(lambda _, args: inputs.update(x=args[0]))
    logits = model(clip)
    found = captured.blocks["res3.nonlocal1"]
    expected = plain_affinity_and_g(model.get_submodule("res3.nonlocal1"), inputs["x"])[0][0].detach().numpy()
    np.testing.assert_allclose(found.rows([1, 7]), expected[[1, 7]], rtol=1e-4, atol=1e-5)
    scores = logits.softmax(1)[0]
    assert [score for _, score in captured.classes] == pytest.approx(sorted(scores.tolist(), reverse=True))
    assert captured.classes[0][0] == str(int(scores.argmax()))


def test_classes_have_names_and_several_labels_are_scored_one_by_one():
    model = create_model("c2d_tiny_nl2", num_classes=7).eval()
    clip = torch.randn(1, 3, 4, 24, 24)
    logits = model(clip)[0].detach()
    names = [f"class {number}" for number in range(7)]
    assert len(capture(model, clip, classes=names).classes) == 5
    assert capture(model, clip, classes=names).classes[0][0] == f"class {int(logits.argmax())}"
    model.metadata = {"multi_label": "true"}
    assert capture(model, clip).classes[0][1] == pytest.approx(float(logits.sigmoid().max()))
    with pytest.raises(ValueError, match=r"2 class names for the model's 7 outputs"):
        capture(model, clip, classes=names[:2])
    features = nn.Sequential(NonLocalBlock(3))
    assert capture(features, clip).classes == ()


def test_one_block_that_runs_twice_gives_both_runs():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = randomise(NonLocalBlock(3, dims=2, subsample=False))

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x))

    model, x = Twice().eval(), torch.randn(1, 3, 4, 5)
    found = capture(model, x).blocks
    assert list(found) == ["block", "block (run 2)"]
    expected = plain_affinity_and_g(model.block, model.block(x))[0][0].detach().numpy()
    np.testing.assert_allclose(found["block (run 2)"].rows([3]), expected[[3]], rtol=1e-4, atol=1e-6)


def test_pictures_come_back_from_a_normalised_clip():
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
    model = nn.Sequential(NonLocalBlock(3, subsample=False))
    for clip in (normalize(video), video.float() / 255, video.float()):
        np.testing.assert_array_equal(capture(model, clip).frames, frames)
    strange = capture(model, normalize(video) * 100).frames
    assert (strange.min(), strange.max()) == (0, 255)
    assert capture(model, normalize(video), frames=frames[::-1]).frames[0].tolist() == frames[1].tolist()
    grey = capture(nn.Sequential(NonLocalBlock(1, dims=2)), torch.rand(1, 1, 6, 7)).frames
    assert grey.shape == (1, 6, 7, 3)


def test_times_and_title_are_kept():
    model, clip = nn.Sequential(NonLocalBlock(3)), torch.randn(1, 3, 2, 4, 4)
    captured = capture(model, clip, frame_seconds=np.array([0.5, 0.75]), title="a.mp4")
    assert (captured.frame_seconds, captured.title) == ((0.5, 0.75), "a.mp4")
    with pytest.raises(ValueError, match="3 frame_seconds for 2 frames"):
        capture(model, clip, frame_seconds=(0, 1, 2))


def test_what_is_refused():
    plain = nn.Sequential(nn.Conv3d(3, 4, 3))
    clip = torch.randn(1, 3, 4, 24, 24)
    with pytest.raises(ValueError, match=r"the model has no non-local block .* nl\.insert_blocks"):
        capture(plain, clip)
    model = create_model("c2d_tiny_nl2", num_classes=3)
    with pytest.raises(ValueError, match=r"no non-local block 'res3\.nonlocl0'; there are res3\.nonlocal0"):
        capture(model, clip, blocks=["res3.nonlocl0"])
    with pytest.raises(ValueError, match=r"no non-local block 'stem'; there are res3\.nonlocal0, res3\."):
        capture(model, clip, blocks=["stem"])
    with pytest.raises(ValueError, match=r"give one clip .* not \(2, 3, 4, 24, 24\)"):
        capture(model, clip.expand(2, -1, -1, -1, -1))
    with pytest.raises(
        ValueError, match=r"frames must be uint8 \(4, 24, 24, 3\), .* not uint8 \(4, 24, 25, 3\)"
    ):
        capture(model, clip, frames=np.zeros((4, 24, 25, 3), np.uint8))
    found = capture(model, clip).blocks["res3.nonlocal0"]
    with pytest.raises(ValueError, match=rf"position {found.queries.positions} is not one of the "):
        found.rows([0, found.queries.positions])
    unused = insert_blocks(nn.Sequential(nn.Conv2d(3, 4, 3)), after="0")
    unused.add_module("1", nn.Identity())
    unused[1].spare = NonLocalBlock(4)
    with pytest.raises(ValueError, match=r"block '1\.spare' does not run"):
        capture(unused, torch.rand(1, 3, 8, 8), blocks=["1.spare"])
    assert list(capture(unused, torch.rand(1, 3, 8, 8)).blocks) == ["0.nonlocal_block"]
