"""`nonlocal models`: its table and its JSON."""

from __future__ import annotations

import json
import sys

import pytest

from nonlocal_nn.cli import main
from nonlocal_nn.commands.models import TABLE_2E, ModelsConfig, baseline, model_rows, models_command
from nonlocal_nn.detection.catalog import list_detectors
from nonlocal_nn.models.catalog import list_models


def test_json_holds_counts_ratios_and_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert models_command(ModelsConfig("?[23]d_r50", json=True)) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"c2d_r50", "i3d_r50"}
    i3d = rows["i3d_r50"]
    assert (i3d["baseline"], i3d["clip"]) == ("c2d_r50", [32, 224, 224])
    assert (round(i3d["parameters"] / 1e6, 2), round(i3d["macs"] / 1e9, 1)) == (28.04, 33.1)
    assert (round(i3d["parameter_ratio"], 2), round(i3d["mac_ratio"], 2)) == (1.15, 1.62)
    assert (i3d["paper_parameter_ratio"], i3d["paper_flop_ratio"]) == (1.2, 1.5)


def test_the_table_shows_every_row_and_the_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert models_command(ModelsConfig("c2d_tiny*", classes=4)) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in list_models("c2d_tiny*"))
    assert "Table 2e" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_classes_count() -> None:
    few, many = (model_rows("c2d_r50", classes=classes)[0].parameters for classes in (10, 11))
    assert many - few == 2048 + 1


def test_baselines_are_the_plain_networks() -> None:
    assert {name: baseline(name) for name in ("c2d_r50_nl10", "i3d_3x3x3_r101_nl1", "i3d_tiny_nl2")} == {
        "c2d_r50_nl10": "c2d_r50",
        "i3d_3x3x3_r101_nl1": "c2d_r101",
        "i3d_tiny_nl2": "c2d_tiny",
    }
    assert set(TABLE_2E) <= set(list_models())


def test_a_pattern_without_a_match_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no model matches 'r50'; the models are c2d_r50.*mask_rcnn_r50"):
        model_rows("r50")
    with pytest.raises(ValueError, match="no model matches 'r50'"):
        models_command(ModelsConfig("r50"))


def test_detectors_are_listed_beside_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert models_command(ModelsConfig("*_tiny_nl1")) == 0
    text = capsys.readouterr().out
    names = (*list_models("*_tiny_nl1"), *list_detectors("*_tiny_nl1"))
    assert len(names) == 6
    assert all(name in text for name in names)
    assert max(map(len, text.splitlines())) <= 80
    assert models_command(ModelsConfig("mask_rcnn_tiny*", json=True)) == 0
    plain, block = json.loads(capsys.readouterr().out)
    assert (plain["baseline"], block["baseline"]) == ("mask_rcnn_tiny", "mask_rcnn_tiny")
    assert (plain["mac_ratio"], plain["image"]) == (1.0, [800, 1088])
    assert block["mac_ratio"] == block["macs"] / plain["macs"] > 1


def test_without_torchvision_the_networks_are_listed_still(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith(("torchvision", "nonlocal_nn.detection")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert main(["models", "*_tiny_nl1"]) == 0
    captured = capsys.readouterr()
    assert "c2d_tiny_nl1" in captured.out
    assert "pip install 'nonlocal-nn[detect]'" in captured.err
    assert main(["models", "mask_rcnn_tiny"]) == 2
    assert "nonlocal-nn[detect]" in capsys.readouterr().err
