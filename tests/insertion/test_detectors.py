"""Blocks in torchvision's detectors: by name alone, and nothing changes until they are trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import nonlocal_nn as nl
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock

detection = pytest.importorskip("torchvision.models.detection")

R50 = "backbone.body.layer3.4"
PLACES = {
    "fasterrcnn_resnet50_fpn": (R50, "backbone.fpn.layer_blocks.1", "rpn.head.conv.0.0"),
    "fasterrcnn_mobilenet_v3_large_320_fpn": ("backbone.body.13",),
    "maskrcnn_resnet50_fpn": (R50, "roi_heads.mask_head.1"),
    "maskrcnn_resnet50_fpn_v2": (R50,),
    "keypointrcnn_resnet50_fpn": (R50, "roi_heads.keypoint_head.3", "roi_heads.keypoint_head.15"),
    "retinanet_resnet50_fpn": (R50, "head.classification_head.conv.0.0"),
    "fcos_resnet50_fpn": (R50, "head.regression_head.conv.0"),
    "ssd300_vgg16": ("backbone.features.21",),
    "ssdlite320_mobilenet_v3_large": ("backbone.features.0.13",),
}


def _detector(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 96}
    # Detections of random weights are all of low scores.
    if "rcnn" in name:
        options |= {"box_score_thresh": 0.0, "box_detections_per_img": 4, "box_batch_size_per_image": 8}
        options |= {"rpn_post_nms_top_n_test": 50, "rpn_post_nms_top_n_train": 50}
    else:
        options |= {"score_thresh": 0.0, "detections_per_img": 4}
    return getattr(detection, name)(weights=None, weights_backbone=None, **options)


def _images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 90, 120, generator=generator), torch.rand(3, 100, 80, generator=generator)]


def _outputs(model: nn.Module) -> list[dict[str, Tensor]]:
    with torch.inference_mode():
        return model.eval()(_images())


def _blocks(model: nn.Module) -> list[NonLocalBlock]:
    return [module for module in model.modules() if isinstance(module, NonLocalBlock)]


def _targets(keypoints: bool) -> list[dict[str, Tensor]]:
    targets = []
    for height, width in ((90, 120), (100, 80)):
        boxes = torch.tensor([[10.0, 12.0, 60.0, 70.0], [30.0, 20.0, 75.0, 85.0]])
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        masks[:, 20:60, 30:50] = 1
        target = {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64), "masks": masks}
        if keypoints:
            points = torch.rand(2, 17, 2, generator=torch.Generator().manual_seed(2)) * 40 + 25
            target["keypoints"] = torch.cat([points, torch.full((2, 17, 1), 2.0)], dim=2)
        targets.append(target)
    return targets


@pytest.mark.parametrize("name", PLACES)
def test_detections_stay_and_a_step_moves_every_block(name: str) -> None:
    model = _detector(name)
    before, names = _outputs(model), list(model.state_dict())
    after = PLACES[name]
    # The highest level of a pyramid has one position here.
    assert nl.insert_blocks(model, after=list(after), norm=None, subsample=False) is model
    assert len(_blocks(model)) == len(after)
    for one, other in zip(before, _outputs(model), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert [key for key in model.state_dict() if "nonlocal_block" not in key] == names
    for place in after:
        keys = [key for key in model.state_dict() if key.startswith(place)]
        assert any(key.endswith(".nonlocal_block.theta.weight") for key in keys)

    blocks = _blocks(model)
    _train(model, blocks, keypoints="keypoint" in name)


def _train(model: nn.Module, blocks: Sequence[NonLocalBlock], keypoints: bool) -> None:
    start = [copy.deepcopy(dict(block.named_parameters())) for block in blocks]
    optimizer = torch.optim.SGD([p for block in blocks for p in block.parameters()], lr=1e-3)
    moved: list[set[str]] = []
    torch.manual_seed(3)
    model.train()
    for step in range(2):
        losses = model(_images(), _targets(keypoints))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        # Steps of one size, whatever the gradient of random weights.
        for block in blocks:
            for parameter in block.parameters():
                assert parameter.grad is not None
                parameter.grad.sign_()
        optimizer.step()
        moved = [
            {key for key, value in block.named_parameters() if not torch.equal(value, old[key])}
            for block, old in zip(blocks, start, strict=True)
        ]
        assert all(moved), step
    for block, found in zip(blocks, moved, strict=True):
        # A constant added to all logits of a query changes no weight: phi's bias has no gradient.
        assert found >= {key for key, _ in block.named_parameters()} - {"phi.bias"}


def test_a_layer_that_is_no_place_is_named_as_in_the_model() -> None:
    model = _detector("fasterrcnn_resnet50_fpn")
    with pytest.raises(ValueError, match=r"'rpn\.head\.conv\.0\.1' \(ReLU\) has no weights and runs 2 times"):
        nl.insert_blocks(model, after=["rpn.head.conv.0"])
    with pytest.raises(ValueError, match="the model does not run on inputs of our own making"):
        nl.insert_blocks(model, after=["roi_heads"])
    with pytest.raises(ValueError, match=r"nearest are .*backbone\.body\.layer3\.4"):
        nl.insert_blocks(model, after=["backbone.body.layer3.44"])
    assert not _blocks(model)
