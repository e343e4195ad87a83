"""`nonlocal scan` of a COCO json: what is broken is listed, what is there is counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nonlocal_nn.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, one of them cut off and one turned by EXIF; six annotations, one without area."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "cut", "turned"):
        picture = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        exif = Image.Exif()
        if name == "turned":
            exif[274] = 3
        picture.save(tmp_path / f"{name}.jpg", exif=exif)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    images = [
        {"id": number, "file_name": f"{name}.jpg", "width": 80, "height": 60}
        for number, name in enumerate(("a", "b", "cut", "turned"))
    ]
    boxes = [[5, 5, 30, 20], [0, 0, 60, 50], [10, 10, 0, 4], [2, 2, 6, 6], [3, 3, 9, 9], [1, 1, 40, 40]]
    annotations: list[dict[str, Any]] = [
        {
            "id": n,
            "image_id": min(n, 3),
            "category_id": 7 if n % 2 else 20,
            "bbox": box,
            "area": 100.0,
            "iscrowd": int(n == 5),
        }
        for n, box in enumerate(boxes)
    ]
    categories = [{"id": 20, "name": "[bold]cat"}, {"id": 7, "name": "dog"}, {"id": 3, "name": "bird"}]
    values = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "all.json").write_text(json.dumps(values))
    return tmp_path


def _scan(folder: Path, *more: str) -> int:
    words = ["--workers", "1", "--progress", "false", *more]
    return main(["scan", str(folder / "all.json"), *words])


def test_what_is_there_is_counted_and_what_is_broken_is_listed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _scan(folder, "--out", str(folder / "broken.csv")) == 1
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith(
        f"broken\t{folder / 'all.json'}\tannotation 2: its box [10, 10, 0, 4] has no area"
    )
    assert lines[1].startswith(f"broken\t{folder / 'cut.jpg'}\tcannot be read: image file is truncated")
    assert "note\t1 images were turned as its EXIF says" in text
    assert "categories without an object: 1 (bird)" in text
    assert "[bold]cat" in text
    assert lines[-1] == "4 images (1 without objects), 5 objects with boxes, 1 of them crowds; 2 broken"
    with (folder / "broken.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [
            str(folder / n) for n in ("all.json", "cut.jpg")
        ]

    assert _scan(folder, "--json", "--detector", "faster_rcnn_tiny") == 1
    values = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["objects"], row["images"]) for row in values["categories"]] == [
        (20, 2, 2),
        (7, 2, 2),
        (3, 0, 0),
    ]
    assert (values["task"], values["crowds"], values["detector"]) == ("boxes", 1, "faster_rcnn_tiny")
    assert 0 <= values["anchors_reach_0.7"] <= values["anchors_reach_0.5"] <= 1
    assert len(values["broken"]) == 2


def test_keypoints_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((folder / "all.json").read_text())
    values["categories"][0]["keypoints"] = values["categories"][1]["keypoints"] = ["tip", "end"]
    for one in values["annotations"]:
        one["keypoints"] = [6, 6, 2, 7, 7, 1] if one["id"] else [0, 0, 0, 8, 8, 2]
    (folder / "all.json").write_text(json.dumps(values))
    assert _scan(folder, "--json", "--out", str(folder / "found.json")) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "found.json").read_text())
    assert printed["task"] == "keypoints"
    assert printed["keypoints"] == [
        {"name": "tip", "marked": 4, "visible": 4},
        {"name": "end", "marked": 5, "visible": 1},
    ]


def test_many_problems_are_a_few_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((folder / "all.json").read_text())
    values["annotations"] += [
        {"id": 100 + n, "image_id": 0, "category_id": 7, "bbox": [1, 1, -1, 5]} for n in range(300)
    ]
    (folder / "all.json").write_text(json.dumps(values))
    assert _scan(folder) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("broken\t") for line in lines) == 20
    assert "and 282 more (--out FILE.csv lists all)" in lines


def test_options_of_the_other_kind_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        (["--min-frames", "3"], "--min_frames is for videos"),
        (["--index", "a.npz"], "--index is for videos"),
        (["--detector", "mask_rcnn_r05"], "the nearest are mask_rcnn_r50"),
        (["--out", "a.txt"], "out must end in .csv or .json"),
        (["--images", "nowhere"], "no such folder of images"),
    ):
        assert _scan(folder, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
    assert main(["scan", str(folder), "--images", str(folder)]) == 2
    assert "--images is for a COCO json" in capsys.readouterr().err


def test_real_jsons_are_whole(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, task in (("instances", "masks"), ("person_keypoints", "keypoints")):
        file = shared_data / "coco" / "tiny_coco" / "annotations" / f"{name}_val2017.json"
        assert main(["scan", str(file), "--json", "--progress", "false"]) == 0
        values = json.loads(capsys.readouterr().out)
        assert (values["task"], values["images"], values["broken"]) == (task, 50, [])
    file = shared_data / "coco" / "tiny_coco" / "annotations" / "captions_val2017.json"
    assert main(["scan", str(file)]) == 2
    assert "holds captions" in capsys.readouterr().err
