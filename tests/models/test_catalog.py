"""The catalog by name: what each name means, sizes of Table 1, parameters, and errors that help."""

from __future__ import annotations

import pytest
import torch

from nonlocal_nn._modes import meta_init
from nonlocal_nn.models.catalog import SPECS, create_model, get_spec, list_models
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.models.video_resnet import VideoResNet


def on_meta(name: str, **overrides: object) -> VideoResNet:
    with meta_init():
        return create_model(name, **overrides)


def feature_sizes(model: VideoResNet, frames: int, size: int) -> dict[str, tuple[int, ...]]:
    clip = torch.empty(1, 3, frames, size, size, device="meta")
    return {name: tuple(x.shape[1:]) for name, x in model.features(clip).items()}


# Table 1 for 32 x 224 x 224, and the released models, whose unpadded pools give 55 where the paper has 56.
TABLE_1 = {
    "paper": (32, [(16, 112), (8, 56), (8, 56), (4, 56), (4, 28), (4, 14), (4, 7)]),
    "vnl32": (32, [(16, 112), (8, 55), (8, 55), (4, 55), (4, 28), (4, 14), (4, 7)]),
    "vnl": (8, [(8, 112), (8, 55), (8, 55), (4, 55), (4, 28), (4, 14), (4, 7)]),
}


@pytest.mark.parametrize("name", ["c2d_r50", "i3d_r50", "i3d_3x3x3_r50"])
@pytest.mark.parametrize("stem", TABLE_1)
def test_output_sizes_are_those_of_table_1(name: str, stem: str) -> None:
    frames, sizes = TABLE_1[stem]
    rows = ["conv1", "pool1", "res2", "pool2", "res3", "res4", "res5"]
    channels = [64, 64, 256, 256, 512, 1024, 2048]
    expected = {row: (c, t, s, s) for row, c, (t, s) in zip(rows, channels, sizes, strict=True)}
    measured = feature_sizes(on_meta(name, stem=stem), frames, 224)
    assert measured == expected
    assert list(measured) == rows


def test_every_name_builds_and_gives_logits() -> None:
    for name in list_models():
        model = on_meta(name, num_classes=7)
        with meta_init():
            assert model(torch.empty(2, 3, 8, 64, 64)).shape == (2, 7), name
        assert model.spec == SPECS[name].replace(num_classes=7)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("c2d_r50", 24.33), ("i3d_r50", 28.04), ("c2d_r50_nl5", 31.69), ("i3d_3x3x3_r50", 33.43)],
)
def test_parameters_with_400_classes(name: str, millions: float) -> None:
    assert round(sum(p.numel() for p in on_meta(name).parameters()) / 1e6, 2) == millions


def test_blocks_follow_the_residual_blocks_of_the_paper() -> None:
    places = {
        name: get_spec(f"c2d_{name}").nonlocal_after
        for name in ("r50_nl1", "r50_nl5", "r101_nl1", "r101_nl5")
    }
    assert places == {
        "r50_nl1": {"res4": (4,)},  # right before the last residual block
        "r50_nl5": {"res3": (1, 3), "res4": (1, 3, 5)},
        "r101_nl1": {"res4": (21,)},
        "r101_nl5": {"res3": (1, 3), "res4": (6, 13, 20)},
    }
    for name in list_models("*_nl*"):
        count = int(name.rsplit("_nl", 1)[1] or 1)
        assert SPECS[name].nonlocal_count == count, name
    names = [name for name, _ in on_meta("c2d_r50_nl5").res3.named_children()]
    assert names == ["0", "1", "nonlocal1", "2", "3", "nonlocal3"]


def test_inflated_kernels_sit_where_the_released_code_has_them() -> None:
    expected = {"res2": [3, 3, 3], "res3": [3, 1, 3, 1], "res4": [3, 1, 3, 1, 3, 1], "res5": [1, 3, 1]}
    first, middle = on_meta("i3d_r50"), on_meta("i3d_3x3x3_r50")
    for stage, times in expected.items():
        first_stage, middle_stage = first.get_submodule(stage), middle.get_submodule(stage)
        assert [block.conv1.kernel_size for block in first_stage] == [(t, 1, 1) for t in times]
        assert [block.conv2.kernel_size for block in first_stage] == [(1, 3, 3)] * len(times)
        assert [block.conv1.kernel_size for block in middle_stage] == [(1, 1, 1)] * len(times)
        assert [block.conv2.kernel_size for block in middle_stage] == [(t, 3, 3) for t in times]
    assert first.stem.conv.kernel_size == middle.stem.conv.kernel_size == (5, 7, 7)
    assert on_meta("c2d_r50").stem.conv.kernel_size == (1, 7, 7)


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no model is called 'c2d_r50_nl2'; the nearest are .*c2d_r50_nl1"):
        create_model("c2d_r50_nl2")
    with pytest.raises(ValueError, match="the models are c2d_r50, "):
        create_model("zzz")


def test_an_unknown_override_lists_the_fields() -> None:
    with pytest.raises(
        ValueError, match=r"no field 'pairwize'; did you mean 'pairwise'\? The fields are: .*base_width"
    ):
        create_model("c2d_tiny", pairwize="gaussian")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            {"nonlocal_after": {"res4": (6,)}},
            "residual block 6 of res4, which has 6 blocks: use indices 0 to 5",
        ),
        ({"nonlocal_after": {"res3": (-1,)}}, "residual block -1 of res3, which has 4 blocks"),
        (
            {"nonlocal_after": {"res6": (0,)}},
            "names stage 'res6'; this network has the stages res2, res3, res4, res5",
        ),
        ({"nonlocal_after": {"res3": (1, 1)}}, "names a block twice"),
        ({"nonlocal_after": {"res3": 1}}, r"must list block indices, as \(1, 3\)"),
        ({"nonlocal_after": ["res3"]}, "must map stage names"),
        ({"temporal_groups": {"res3": 0}}, r"temporal_groups\['res3'\] is 0"),
        ({"num_classes": 0}, "num_classes is 0; it must be a whole number, 1 or more"),
        ({"num_classes": True}, "num_classes is True"),
        ({"num_classes": 4.0}, "num_classes is 4.0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"stem": "papr"}, "stem is 'papr'; choose one of 'paper', 'vnl32', 'vnl'"),
        ({"inflation": "3x3"}, "inflation is '3x3'; choose one of None, '3x1x1', '3x3x3'"),
        ({"subsample": 1}, "subsample is 1; choose one of True, False"),
        ({"stage_blocks": (3, 4)}, "must both have one value"),
        ({"stage_blocks": (3, 0, 1, 1)}, r"stage_blocks\[1\] is 0"),
    ],
)
def test_values_out_of_range_are_refused(override: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_spec("c2d_r50", **override)


def test_a_spec_survives_json_and_lists_equal_tuples() -> None:
    spec = get_spec("i3d_r50_nl5", temporal_groups={"res3": 4}, num_classes=157)
    back = VideoResNetSpec.from_json(spec.to_json())
    assert back == spec
    assert hash(back) == hash(spec)
    assert get_spec("c2d_r50", nonlocal_after={"res3": [3, 1]}).nonlocal_after == {"res3": (1, 3)}
    with pytest.raises(ValueError, match="no field 'depth'"):
        VideoResNetSpec.from_json('{"name": "x", "depth": 50}')
    with pytest.raises(ValueError, match="not valid JSON"):
        VideoResNetSpec.from_json("{")


def test_a_caller_cannot_change_a_catalog_spec() -> None:
    placement = {"res3": (1,)}
    spec = get_spec("c2d_r50", nonlocal_after=placement)
    placement["res4"] = (9,)
    assert spec.nonlocal_after == {"res3": (1,)}
