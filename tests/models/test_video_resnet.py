"""The networks themselves: parts, placement, memory layout, and what must be true of any of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.blocks.norm import FrozenBatchNorm
from nonlocal_nn.models.build import build_model
from nonlocal_nn.models.catalog import create_model, get_spec
from nonlocal_nn.models.video_resnet import Bottleneck, Head, Stage, VideoResNet, VideoStem


def clip(batch: int = 2, frames: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, frames, size, size)


def names_of(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def test_fresh_non_local_blocks_change_nothing() -> None:
    """The same backbone weights with and without blocks give the same logits, bit for bit (section 3.3)."""
    with_blocks, without = (
        create_model("i3d_tiny_nl2", num_classes=4),
        create_model("i3d_tiny", num_classes=4),
    )
    backbone = {n: t for n, t in with_blocks.state_dict().items() if ".nonlocal" not in n}
    without.load_state_dict(backbone)
    x = clip()
    assert torch.equal(with_blocks.eval()(x), without.eval()(x))


def test_forward_is_the_head_on_the_last_features() -> None:
    model = create_model("c2d_r50_nl1", num_classes=5, base_width=8).eval()
    x = clip(frames=8, size=64)
    features = model.features(x)
    assert list(features) == ["conv1", "pool1", "res2", "pool2", "res3", "res4", "res5"]
    assert torch.equal(model(x), model.head(features["res5"]))


def test_features_are_not_changed_by_the_stages_after_them() -> None:
    model = create_model("c2d_tiny_nl2", num_classes=4).eval()
    x = clip()
    rows = {name: row.clone() for name, row in model._rows(x)}
    assert all(torch.equal(row, rows[name]) for name, row in model.features(x).items())


@pytest.mark.parametrize("size", [(1, 33, 47), (5, 64, 32), (12, 31, 31)])
def test_any_size_of_clip_gives_logits(size: tuple[int, int, int]) -> None:
    model = create_model("i3d_tiny_nl2", num_classes=4).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 4)


def test_the_head_averages_features_which_averages_the_logits_of_positions() -> None:
    head = Head(6, 4, dropout=0.5).eval()
    features = torch.randn(2, 6, 3, 5, 4)
    by_position = head.fc(features.flatten(2).transpose(1, 2))
    torch.testing.assert_close(head(features), by_position.mean(dim=1))


def test_a_c2d_network_sees_frames_in_any_order_alike_and_i3d_does_not() -> None:
    """Without temporal kernels only the average over time remains; a temporal kernel knows the order."""
    x = clip(frames=6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for name, same in (("c2d_tiny", True), ("i3d_tiny", False), ("i3d_3x3x3_tiny", False)):
        model = create_model(name, num_classes=4).eval()
        with torch.no_grad():
            model.head.fc.weight.normal_()
        assert torch.allclose(model(x), model(x[:, :, order]), atol=1e-4) is same, name


def test_memory_stays_channels_last_on_a_cpu() -> None:
    """Contiguous ones cost a third of the speed. (Below 16 clips on one thread torch picks other kernels.)"""
    model = create_model("i3d_tiny_nl2", num_classes=4).eval()
    for name, x in model.features(clip(batch=16)).items():
        assert x.is_contiguous(memory_format=torch.channels_last_3d), name


def test_the_layout_of_the_input_does_not_matter() -> None:
    model = create_model("c2d_tiny_nl1", num_classes=4).eval()
    x = clip()
    assert torch.equal(model(x), model(x.contiguous(memory_format=torch.channels_last_3d)))


@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_inputs_are_refused_with_their_shape() -> None:
    model = create_model("c2d_tiny", num_classes=4)
    for shape in ((3, 4, 32, 32), (1, 1, 4, 32, 32)):
        with pytest.raises(ValueError, match=r"a clip must be \(batch, 3, frames, height, width\), got"):
            model(torch.zeros(shape))


def test_frozen_norms_are_everywhere_and_never_move() -> None:
    model = create_model("c2d_tiny_nl2", num_classes=4, norm="frozen", dropout=0.0).train()
    assert names_of(model, nn.BatchNorm3d) == []
    assert [name for name in names_of(model, FrozenBatchNorm) if ".nonlocal" in name]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = clip()
    first = model(x)
    assert torch.equal(first, model.eval()(x))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_every_choice_of_the_block_reaches_the_blocks() -> None:
    spec = get_spec(
        "c2d_r50_nl5",
        base_width=8,
        pairwise="dot_product",
        subsample_at="input",
        temporal_groups={"res3": 2},
        scale=True,
        nonlocal_norm=None,
        nonlocal_init="released",
    )
    model = build_model(spec)
    blocks = {name: model.get_submodule(name) for name in names_of(model, NonLocalBlock)}
    assert list(blocks) == [
        "res3.nonlocal1",
        "res3.nonlocal3",
        "res4.nonlocal1",
        "res4.nonlocal3",
        "res4.nonlocal5",
    ]
    for name, block in blocks.items():
        assert (block.pairwise, block.subsample_at, block.span) == ("dot_product", "input", "spacetime")
        assert block.temporal_groups == (2 if name.startswith("res3") else 1)
        assert block.scale == block.inner_channels**-0.5
        assert (block.norm, block.init) == (None, "released")
    for block in build_model(get_spec("c2d_tiny_nl2", subsample=False, span="time")).modules():
        if isinstance(block, NonLocalBlock):
            assert (block.subsample, block.span) == (False, "time")


def test_first_weights_follow_the_paper() -> None:
    model = create_model("c2d_r50", num_classes=400)
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.head.fc.bias.any()
    conv = model.res4[0].conv2  # He et al., fan out: 256 * 3 * 3
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert model.head.dropout.p == 0.5


def test_the_stride_of_a_stage_sits_on_the_middle_convolution() -> None:
    stage = create_model("c2d_r50", base_width=8).res3
    assert [conv.stride for conv in (stage[0].conv1, stage[0].conv2, stage[0].conv3)] == [
        (1, 1, 1),
        (1, 2, 2),
        (1, 1, 1),
    ]
    assert all(conv.stride == (1, 1, 1) for block in list(stage)[1:] for conv in (block.conv1, block.conv2))


def test_a_network_of_ones_own_parts() -> None:
    stage = Stage(
        [Bottleneck(4, 2, 8, nn.BatchNorm3d), Bottleneck(8, 2, 8, nn.BatchNorm3d)], {0: NonLocalBlock(8)}
    )
    assert [name for name, _ in stage.named_children()] == ["0", "nonlocal0", "1"]
    assert len(stage) == 2
    assert stage[1] is stage.get_submodule("1")
    stem = VideoStem(nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.MaxPool3d((1, 2, 2)))
    model = VideoResNet(stem, {"res2": stage}, Head(8, 5))
    assert model(clip(size=16)).shape == (2, 5)
    assert model.spec is None
    with pytest.raises(ValueError, match=r"no residual block \[2\] to follow: the stage has 1"):
        Stage([Bottleneck(4, 2, 8, nn.BatchNorm3d)], {2: nn.Identity()})
    with pytest.raises(IndexError, match="residual block 2 of a stage with 2"):
        stage[2]


def test_gradients_reach_every_parameter() -> None:
    model = create_model("i3d_tiny_nl2", num_classes=4)
    with torch.no_grad():
        for name in names_of(model, NonLocalBlock):
            model.get_submodule(name).norm.weight.fill_(1.0)  # at its first value, zero, W_z gets no gradient
    model(clip(size=48)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias before a batch norm, or of phi before a softmax, changes nothing: its gradient is rounding
    assert [name for name in without if not name.endswith(".bias")] == []


@pytest.mark.parametrize("name", ["c2d_tiny", "i3d_tiny"])
def test_exports(name: str) -> None:
    model = create_model(name, num_classes=4).eval()
    x = clip(1)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))
