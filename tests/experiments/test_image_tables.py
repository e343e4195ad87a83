"""`nonlocal ablate se` in small: paired figures by the same batches, and a command that goes on."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nonlocal_nn.cli import main
from nonlocal_nn.experiments.image_cells import image_cells, train_and_test
from nonlocal_nn.experiments.image_training import batches, mirror, pixels
from nonlocal_nn.experiments.tables import TABLES, Images, Table, get_table


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 10)):
        for name, light in (("dark", 0), ("light", 120)):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 100, (32, 32, 3)) + light
                Image.fromarray(image.astype(np.uint8)).save(root / part / name / f"{number}.png")
    return root / "train", root / "test"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Table:
    se = get_table("se")
    variants = tuple(replace(v, options={**v.options, "base_width": 4}) for v in se.variants[:3])
    table = replace(
        se,
        name="tiny",
        variants=variants,
        comparisons=(("standard", "none"),),
        images=Images(count=40, batch=10),
        steps=12,
    )
    monkeypatch.setitem(TABLES, "tiny", table)
    return table


def _words(folders: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    train, test = folders
    return ["ablate", "tiny", "--train", str(train), "--test", str(test), "--out", str(out), *more]


def test_the_command_trains_compares_and_goes_on(tiny, folders, tmp_path, capsys) -> None:
    cells = image_cells(tiny, (0, 1), tmp_path, str(folders[0]), str(folders[1]))
    for cell in cells:  # here, not in a pool: its processes do not know the table of this test
        train_and_test(cell)
    assert main(_words(folders, tmp_path, "--seeds", "0,1", "--progress", "false")) == 0
    said = capsys.readouterr().out
    assert "standard - none:" in said
    with (tmp_path / "tiny.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        (variant, seed) for variant in ("none", "standard", "pre") for seed in ("0", "1")
    ]
    assert all(row["steps"] == "12" for row in rows)
    assert {row["videos"] for row in rows} == {"20"}
    assert "images right, %, by seed" in (tmp_path / "tiny.md").read_text()
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_gives_the_same_again(tiny, folders, tmp_path) -> None:
    found = []
    for name in ("a", "b"):
        cell = image_cells(tiny, (3,), tmp_path / name, str(folders[0]), str(folders[1]))[1]
        train_and_test(cell)
        result = cell.results()
        assert result is not None
        found.append((result["video_top1"], result["parameters"]))
    assert found[0] == found[1]


def test_the_pool_trains_a_cell(folders, tmp_path, capsys, monkeypatch) -> None:
    """With the table that there is, but only its first steps."""
    se = get_table("se")
    small = replace(se, variants=se.variants[:2], comparisons=se.comparisons[:1], steps=2)
    monkeypatch.setitem(TABLES, "se", replace(small, images=Images(count=40, batch=10)))
    words = ["ablate", "se", *_words(folders, tmp_path)[2:], "--seeds", "0", "--progress", "false"]
    assert main([*words, "--dry-run"]) == 0
    assert "2 of 2 cells to do" in capsys.readouterr().out
    assert main([*words, "--jobs", "1"]) == 0
    assert main([*words, "--jobs", "1"]) == 0
    assert "2 done already" not in capsys.readouterr().out  # it is said where progress is


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--data", "x.csv", "--fold_by", "who"],
            "about images: --train and --test name them, not --data",
        ),
        (["--test", "nowhere"], "no such file or folder: nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny, folders, tmp_path, capsys, more, words) -> None:
    assert main([*_words(folders, tmp_path), *more]) == 2
    assert words in capsys.readouterr().err


def test_names_that_belong_elsewhere(capsys) -> None:
    assert main(["ablate", "se"]) == 2
    assert "wants images: --train and --test" in capsys.readouterr().err
    assert main(["ablate", "2a", "--train", "x"]) == 2
    assert "2a is about videos" in capsys.readouterr().err


def test_too_few_images_and_other_classes(tiny, folders, tmp_path) -> None:
    few = replace(tiny, images=Images(count=61, batch=10))
    cell = image_cells(few, (0,), tmp_path, str(folders[0]), str(folders[1]))[0]
    with pytest.raises(ValueError, match="has 60 images; this table trains on 61"):
        train_and_test(cell)
    other = tmp_path / "other" / "grey"
    other.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(other / "0.png")
    cell = image_cells(tiny, (0,), tmp_path, str(folders[0]), str(tmp_path / "other"))[0]
    with pytest.raises(ValueError, match="has the classes grey"):
        train_and_test(cell)


def test_batches_are_a_function_of_the_seed_and_whole_passes() -> None:
    once, again = (list(batches(10, 4, steps=5, seed=7)) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for one, other in zip(once, again, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    first_pass = torch.cat([some for some, _ in once[:2]])
    assert len(first_pass.unique()) == 8
    assert not torch.equal(once[0][0], next(batches(10, 4, 1, seed=8))[0])
    with pytest.raises(ValueError, match="3 images: a batch has 4"):
        next(batches(3, 4, 1, 0))


def test_pixels_and_mirrored_images() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :, 2:] = 255
    x = pixels(image, 2)
    assert x[0, 0].tolist() == [[-1.0, 1.0]] * 2
    assert mirror(x, torch.tensor([True]))[0, 0].tolist() == [[1.0, -1.0]] * 2


def test_a_table_is_about_videos_or_images() -> None:
    with pytest.raises(ValueError, match="either a question on videos or images"):
        replace(get_table("se"), images=None)
    with pytest.raises(ValueError, match="is about images"):
        get_table("se").question_of(get_table("se").variants[0])
