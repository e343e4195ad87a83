"""The detectors of the catalog: torchvision's, with blocks where the paper puts them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nonlocal_nn as nl
from nonlocal_nn._modes import meta_init
from nonlocal_nn.data.categories import COCO_PERSON, Category, Keypoints, number_categories
from nonlocal_nn.detection.catalog import DETECTORS, get_detector_spec
from nonlocal_nn.detection.cost import measure_detector
from nonlocal_nn.detection.spec import DetectorSpec

detection = pytest.importorskip("torchvision.models.detection")
resnet = pytest.importorskip("torchvision.models.resnet")
misc = pytest.importorskip("torchvision.ops.misc")

SMALL = {"sides": (64,), "longest_side": 96}
# Section 6 of the paper: one block right before the last block of res4; four in the keypoint head.
HEAD = tuple(f"roi_heads.keypoint_head.{relu}" for relu in (3, 7, 11, 15))


def _images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 90, 120, generator=generator), torch.rand(3, 100, 80, generator=generator)]


def _outputs(model: nn.Module) -> list[dict[str, Tensor]]:
    model.get_submodule("roi_heads").detections_per_img = 4  # of random weights there are many
    with torch.inference_mode():
        return model.eval()(_images())


def _equal(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("faster_rcnn_r50", "fasterrcnn_resnet50_fpn", {}),
        ("mask_rcnn_r50", "maskrcnn_resnet50_fpn", {}),
        ("keypoint_rcnn_r50", "keypointrcnn_resnet50_fpn", {"num_keypoints": 17}),
    ],
)
def test_torchvisions_weights_give_torchvisions_detections(
    name: str, theirs: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    limits = {"min_size": 64, "max_size": 96, "box_score_thresh": 0.05, "num_classes": 4, **options}
    # Without pretrained weights torchvision would train its norms.
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=misc.FrozenBatchNorm2d, trainable_layers=5
    )
    kinds = {"fa": detection.FasterRCNN, "ma": detection.MaskRCNN, "ke": detection.KeypointRCNN}
    owner = kinds[theirs[:2]](backbone, **limits)
    ours = nl.create_detector(name, categories=["a", "b", "c"], **SMALL)
    assert isinstance(ours, kinds[theirs[:2]])
    ours.load_state_dict(owner.state_dict())
    found = _outputs(owner)
    assert any(len(one["boxes"]) for one in found)
    assert _equal(_outputs(ours), found)
    block = nl.create_detector(f"{name}_nl1", categories=["a", "b", "c"], **SMALL)
    missing = block.load_state_dict(owner.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(".nonlocal_block." in key for key in missing.missing_keys)
    assert _equal(_outputs(block), found)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("faster_rcnn_r18", "resnet18"),
        ("faster_rcnn_r50", "resnet50"),
        ("faster_rcnn_r101", "resnet101"),
        ("faster_rcnn_x101", "resnext101_32x8d"),
    ],
)
def test_backbones_have_torchvisions_tensors(name: str, theirs: str) -> None:
    with meta_init():
        body = nl.create_detector(name, backbone_norm="batch").get_submodule("backbone.body").state_dict()
        owner = getattr(resnet, theirs)().state_dict()
    owner = {key: value for key, value in owner.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in body.items()} == {
        key: value.shape for key, value in owner.items()
    }


def test_blocks_stand_where_the_paper_puts_them() -> None:
    places = {name: spec.nonlocal_after for name, spec in DETECTORS.items()}
    for family in ("faster_rcnn", "mask_rcnn", "keypoint_rcnn"):
        for backbone, index in (("r50", 4), ("r101", 21), ("x152", 34)):
            assert places[f"{family}_{backbone}"] == ()
            assert places[f"{family}_{backbone}_nl1"] == (f"backbone.body.layer3.{index}",)
    assert places["keypoint_rcnn_r101_nl4h"] == HEAD
    assert places["keypoint_rcnn_r101_nl4h1"] == ("backbone.body.layer3.21", *HEAD)
    with meta_init():
        detector = nl.create_detector("keypoint_rcnn_r101_nl4h1")
    channels = {name: block.channels for name, block in detector.blocks()}
    assert channels == {f"{name}.nonlocal_block": 512 for name in HEAD} | {
        "backbone.body.layer3.21.nonlocal_block": 1024
    }
    for name in HEAD:  # behind the ReLU of every second convolution
        assert isinstance(detector.get_submodule(name), nn.ReLU)
    assert all(block.norm is None and block.dims == 2 for _, block in detector.blocks())


# Billions of multiply-adds and millions of parameters at 800 x 1088, 1,000 proposals, 100 detections.
COUNTS = {
    "mask_rcnn_r50": (230.8, 44.40),
    "mask_rcnn_r50_nl1": (240.9, 46.50),
    "mask_rcnn_r101": (295.2, 63.34),
    "mask_rcnn_r101_nl1": (305.3, 65.44),
    "mask_rcnn_x152": (582.8, 140.97),
    "mask_rcnn_x152_nl1": (592.9, 143.07),
    "keypoint_rcnn_r101": (591.1, 78.08),
    "keypoint_rcnn_r101_nl4h": (634.1, 80.18),
    "keypoint_rcnn_r101_nl4h1": (644.2, 82.28),
}


def test_one_block_costs_less_than_five_per_cent() -> None:
    found = {}
    for name, (macs, parameters) in COUNTS.items():
        options = {} if name.startswith("key") else {"num_categories": 90}  # COCO's ids, with gaps
        with meta_init():
            cost = measure_detector(nl.create_detector(name, **options))
        found[name] = cost.macs
        assert (round(cost.macs / 1e9, 1), round(cost.parameters / 1e6, 2)) == (macs, parameters), name
    for depth in ("r50", "r101", "x152"):
        assert found[f"mask_rcnn_{depth}_nl1"] < 1.05 * found[f"mask_rcnn_{depth}"]
    with meta_init():
        full = measure_detector(nl.create_detector("mask_rcnn_r50_nl1", num_categories=90, subsample=False))
    assert round(full.macs / found["mask_rcnn_r50"], 3) == 1.082


@pytest.mark.parametrize("name", ["faster_rcnn_tiny_nl1", "mask_rcnn_tiny_nl1", "keypoint_rcnn_tiny_nl1"])
def test_a_file_holds_all_of_a_detector(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    points = None
    if name.startswith("key"):
        points = Keypoints(("tip", "left", "right"), flip_pairs=((1, 2),), skeleton=((0, 1),))
    detector = nl.create_detector(name, {3: "cat", 20: "dog"}, points, pairwise="dot_product", scale=False)
    with torch.no_grad():
        for _, block in detector.blocks():
            block.W_z.weight.normal_()
    nl.save_detector(detector, tmp_path / "run" / "model.safetensors", {"seen": "yes"})
    state = torch.random.get_rng_state()
    loaded = nl.load_detector(tmp_path / "run")
    assert torch.equal(state, torch.random.get_rng_state())
    assert not loaded.training
    assert loaded.spec == detector.spec
    assert loaded.categories == (Category(3, "cat"), Category(20, "dog"))
    assert loaded.keypoints == points
    assert loaded.metadata == {"seen": "yes"}
    assert _equal(_outputs(loaded), _outputs(detector))
    with pytest.raises(ValueError, match=r"holds a detector: nonlocal_nn\.load_detector reads it"):
        nl.load_model(tmp_path / "run")
    nl.insert_blocks(detector, after=["backbone.body.layer3.0"], norm=None)
    with pytest.raises(ValueError, match=r"no longer what its spec describes.*nonlocal_after"):
        nl.save_detector(detector, tmp_path / "changed.safetensors")


def test_files_that_hold_no_detector_are_refused(tmp_path: Path) -> None:
    nl.save_model(nl.create_model("c2d_tiny", num_classes=2), tmp_path / "video.safetensors")
    with pytest.raises(ValueError, match=r"holds no detector; nonlocal_nn\.load_model"):
        nl.load_detector(tmp_path / "video.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        nl.load_detector(tmp_path / "absent.safetensors")
    theirs = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(ValueError, match="that create_detector did not make"):
        nl.save_detector(theirs, tmp_path / "theirs.safetensors")


def test_a_new_block_with_a_frozen_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nonlocal_norm='frozen'.*never learn"):
        nl.create_detector("faster_rcnn_tiny_nl1", nonlocal_norm="frozen")
    detector = nl.create_detector("faster_rcnn_tiny", nonlocal_norm="frozen")  # there are no blocks
    assert not list(detector.blocks())


@pytest.mark.parametrize("norm", ["frozen", "batch", "sync"])
def test_what_is_trained(norm: str) -> None:
    detector = nl.create_detector("faster_rcnn_tiny_nl1", backbone_norm=norm, trained_stages=3)
    trained = {name for name, value in detector.named_parameters() if value.requires_grad}
    body = {name.split(".")[2] for name in trained if name.startswith("backbone.body.")}
    # The block behind a layer of layer2 is trained whatever is trained beside it.
    assert body == {"layer2", "layer3", "layer4"}
    frozen = nl.create_detector("faster_rcnn_tiny_nl1", backbone_norm=norm, trained_stages=0)
    left = [name for name, value in frozen.named_parameters() if value.requires_grad]
    assert {name.split(".")[4] for name in left if name.startswith("backbone.body.")} == {"nonlocal_block"}
    kinds = {"frozen": "FrozenBatchNorm2d", "batch": "BatchNorm2d", "sync": "SyncBatchNorm"}
    assert type(detector.get_submodule("backbone.body.bn1")).__name__ == kinds[norm]
    assert ("backbone.body.layer4.0.bn1.weight" in trained) == (norm != "frozen")


def test_what_cannot_be_is_one_line_with_the_way_out() -> None:
    for name, overrides, text in (
        ("mask_rcnn_r05", {}, "the nearest are mask_rcnn_r50"),
        ("mask_rcnn_r50", {"side": (800,)}, "no field 'side'; did you mean 'sides'?"),
        ("mask_rcnn_r50", {"task": "mask"}, "choose one of 'boxes', 'masks', 'keypoints'"),
        ("mask_rcnn_r50", {"sides": (0,)}, "sides is 0; it must be a whole number from 1 on"),
        ("mask_rcnn_r50", {"sides": ()}, "sides is 0"),
        ("mask_rcnn_r50", {"trained_stages": 6}, "the backbone has 0 to 5"),
        ("mask_rcnn_r50", {"anchor_sizes": (8, 16)}, "five levels"),
        ("mask_rcnn_r18", {"groups": 32}, "this network has none"),
        ("mask_rcnn_r50", {"pairwise": "dotproduct"}, "dot_product"),
        ("mask_rcnn_r50", {"pairwise": "concatenation", "scale": True}, "scale=True needs a product"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            get_detector_spec(name, **overrides)
    with pytest.raises(ValueError, match=r"the model has no layer 'backbone\.body\.layer3\.9'"):
        nl.create_detector("faster_rcnn_tiny", nonlocal_after=("backbone.body.layer3.9",))
    with pytest.raises(ValueError, match="keypoints were given, but mask_rcnn_tiny finds masks"):
        nl.create_detector("mask_rcnn_tiny", keypoints=COCO_PERSON)
    with pytest.raises(ValueError, match="no description of a detector"):
        DetectorSpec.from_json("[1]")


def test_categories_and_keypoints_have_one_name_each() -> None:
    assert nl.create_detector("keypoint_rcnn_tiny").categories == (Category(1, "person"),)
    assert len(nl.create_detector("mask_rcnn_tiny", num_categories=3).categories) == 3
    for categories, text in (
        ("cat", "is the text 'cat'"),
        ([], "there are no categories"),
        (["a", "b", "a"], "two categories have the name 'a'"),
        ({1: "a", "1": "a"}, "two categories have the name 'a'"),
    ):
        with pytest.raises(ValueError, match=text):
            number_categories(categories)
    assert COCO_PERSON.flipped_order == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
    assert COCO_PERSON.names[5:9] == ("left_shoulder", "right_shoulder", "left_elbow", "right_elbow")
    assert COCO_PERSON.sigmas[:5] == (0.026, 0.025, 0.025, 0.035, 0.035)
    for fields, text in (
        ({"names": ()}, "there are no keypoints"),
        ({"names": ("a", "a")}, "two keypoints are called 'a'"),
        ({"names": ("a", "b"), "flip_pairs": ((0, 2),)}, "flip_pairs has (0, 2)"),
        ({"names": ("a", "b", "c"), "flip_pairs": ((0, 1), (1, 2))}, "names a keypoint twice"),
        ({"names": ("a", "b"), "skeleton": ((1, 1),)}, "skeleton has (1, 1)"),
        ({"names": ("a", "b"), "sigmas": (0.1,)}, "sigmas has 1 values"),
        ({"names": ("a",), "sigmas": (0.0,)}, "give one above 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            Keypoints(**fields)


def test_a_name_costs_neither_torch_nor_torchvision() -> None:
    code = (
        "import sys, nonlocal_nn as nl; nl.list_detectors(); "
        "assert not {'torch', 'torchvision'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
