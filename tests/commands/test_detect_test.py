"""`nonlocal detect test --results`: the numbers of a file, and a line for what is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nonlocal_nn.cli import main
from nonlocal_nn.detection.score import Truth, score_results

pytest.importorskip("faster_coco_eval")


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    values = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 100} for n in (4, 9)],
        "categories": [{"id": 20, "name": "[b]cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 20, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 20, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0},
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(values))
    return tmp_path / "truth.json"


def _test(truth: Path, results: Any, *more: str) -> int:
    file = truth.with_name("results.json")
    file.write_text(results if isinstance(results, str) else json.dumps(results))
    return main(["detect", "test", "--data", str(truth), "--results", str(file), *more])


RIGHT = {"image_id": 4, "category_id": 20, "bbox": [10, 10, 40, 40], "score": 0.9}


def test_the_numbers_of_a_file(truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = truth.with_name("scores.json")
    assert _test(truth, [RIGHT], "--out", str(out)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line.split() for line in captured.out.splitlines()]
    assert ["AP", "50.50"] in lines  # 51 of 101 points
    assert ["APlarge", "-"] in lines
    assert ["[b]cat", "50.50"] in lines
    assert "1 results with boxes in 1 of 2 images" in captured.out
    assert "categories without truth, left out: 1 (dog)" in captured.out
    assert _test(truth, [RIGHT], "--json", "--max-detections", "1,5") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["AP"] == json.loads(out.read_text())["AP"] == pytest.approx(51 / 101)
    assert values["AR5"] == 0.5
    assert (values["task"], values["detections"], values["by_category"]) == (
        "boxes",
        1,
        {"[b]cat": values["AP"]},
    )
    assert _test(truth, []) == 0
    assert "there are no detections: every AP is 0" in capsys.readouterr().out


def test_results_that_cannot_be_used_are_a_few_lines(truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{**RIGHT, "image_id": 5}, {**RIGHT, "score": None}, *[{**RIGHT, "bbox": [1]}] * 30]
    assert _test(truth, [*bad, RIGHT], "--out", str(truth.with_name("all.json"))) == 1
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 11
    assert "result 0: its image 5 is none of the json's" in captured.err
    assert "and 22 more (--out FILE.json lists all)" in captured.err
    assert "32 could not be used" in captured.out
    assert len(json.loads(truth.with_name("all.json").read_text())["problems"]) == 32


def test_what_is_no_results_file_is_one_line(truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for results, text in (
        ("nothing", "is not JSON"),
        ({"a": 1}, "holds dict; results are a list"),
        (truth.read_text(), "holds annotations; results are a list"),
        ([{**RIGHT, "image_id": 7}], "all 1 results are of images that the json does not have, such as 7"),
        ([{**RIGHT, "keypoints": [1, 2, 2]}], "no category has keypoints"),
    ):
        assert _test(truth, results) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
    nameless = json.loads(truth.read_text())
    nameless["categories"].append({"name": "bird"})
    truth.with_name("nameless.json").write_text(json.dumps(nameless))
    assert _test(truth.with_name("nameless.json"), [RIGHT]) == 2
    assert "category 2 has no id that is a number or a text" in capsys.readouterr().err
    for words, text in (
        (["--max-detections", "5,1"], "give ascending whole numbers"),
        (["--out", "scores.csv"], "out must end in .json"),
    ):
        assert _test(truth, [RIGHT], *words) == 2
        assert text in capsys.readouterr().err
    assert main(["detect", "test", "--data", str(truth), "--results", "absent.json"]) == 2
    assert "no such file: absent.json" in capsys.readouterr().err
    assert main(["detect"]) == 2
    assert "nonlocal detect what? There is: detect test" in capsys.readouterr().err
    assert main(["detect", "tset"]) == 2
    assert "detect test" in capsys.readouterr().err


def test_real_results(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared_data / "coco" / "mmpose_tests_coco"
    words = [
        "--data",
        str(folder / "test_coco.json"),
        "--results",
        str(folder / "test_coco_det_AP_H_56.json"),
    ]
    assert main(["detect", "test", *words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    results = json.loads((folder / "test_coco_det_AP_H_56.json").read_text())
    scores = score_results(Truth.read(folder / "test_coco.json"), results, "boxes")
    assert {name: values[name] for name in scores.numbers} == scores.numbers
