"""Recipes: every one is whole and trains; the command line takes them; the page is that of the files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn.cli import main
from nonlocal_nn.models.catalog import get_spec
from nonlocal_nn.training.recipes import for_gpus, get_recipe, list_recipes, recipe
from nonlocal_nn.training.run import train
from tests.scripts import load_script

_SMALL = {"base_width": 4}


@pytest.fixture(scope="module")
def sources(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The videos as a Kinetics csv, a Charades csv and as folders."""
    root = tmp_path_factory.mktemp("lists")
    files = sorted((videos / "train").rglob("*.mp4"))
    for number, file in enumerate(files):
        (root / f"v{number:05d}.mp4").write_bytes(file.read_bytes())
    kinetics, charades = root / "kinetics.csv", root / "charades.csv"
    with kinetics.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        for number, file in enumerate(files):
            writer.writerow([file.parent.name, f"v{number:05d}", "", "", "train"])
    with charades.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "actions"])
        for number in range(len(files)):
            writer.writerow([f"v{number:05d}", f"c{number % 7:03d} 0.00 0.50;c011 0.20 0.70"])
    return {"kinetics_csv": kinetics, "charades_csv": charades, "auto": videos / "train"}


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_trains_two_steps(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    """At reduced size, and from random weights: blocks with a frozen norm start with one that learns."""
    found = get_recipe(name)
    kind = found.options["data"].get("kind", "auto")
    config = recipe(name, train=str(sources[kind]), out=str(tmp_path / "run"))
    options: dict[str, Any] = {**config.model.options, **_SMALL}
    if options.get("norm") == "frozen":
        options["nonlocal_norm"] = None
    frames = 32 if "temporal_groups" in options else 8  # 4 of them at res3
    small = replace(
        config,
        data=replace(config.data, clip_frames=frames, frame_stride=1, crop=24, jitter=(26, 32), workers=0),
        model=replace(config.model, options=options),
        optim=replace(config.optim, batch_size=2),
        schedule=replace(config.schedule, iterations=2, milestones=None, warmup=0),
        precise_bn=min(2, config.precise_bn),
        accelerator="cpu",
        devices=1,
        progress=False,
    )
    results = train(small)
    assert results["steps"] == 2
    model = nl.load_model(tmp_path / "run")
    assert model.spec.nonlocal_after == get_spec(config.model.name).nonlocal_after
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_whole(name: str) -> None:
    found = get_recipe(name)
    for word in ("title", "source", "hardware", "time", "expected", "start"):
        assert getattr(found, word), word
    config = recipe(name, train="videos", out="run")
    get_spec(config.model.name, **config.model.options)
    assert config.optim.batch_size % found.devices == 0


def test_figures_and_settings_of_the_released_code() -> None:
    short = recipe("released_i3d_8x8_4gpu_300k", train="videos", out="run")
    assert (short.optim.batch_size, short.optim.lr, short.devices) == (32, 0.005, 4)
    assert (short.schedule.iterations, short.schedule.milestones) == (300_000, (150_000, 250_000))
    assert (short.data.jitter, short.model.options["dropout"]) == ((256, 256), 0.0)
    long = recipe("released_i3d_nl5_128x1", train="videos", out="run")
    assert (long.optim.batch_size, long.optim.lr, long.data.clip_frames) == (16, 0.0025, 128)
    assert long.model.options["nonlocal_norm"] is None
    assert get_recipe("released_c2d_nl5_8x8").expected == "top-1 74.4, top-5 91.4"


def test_other_numbers_of_gpus() -> None:
    options, line = for_gpus(get_recipe("released_i3d_8x8_300k"), 2)
    assert (options["optim"]["batch_size"], options["optim"]["lr"]) == (16, 0.0025)
    assert options["schedule"]["milestones"] == [600_000, 1_000_000]
    assert "batches of 16 (64)" in line
    assert for_gpus(get_recipe("tiny"), 1)[1] == "tiny on 1 GPUs, as published"
    with pytest.raises(ValueError, match="gpus = 0"):
        for_gpus(get_recipe("tiny"), 0)


def test_the_command_line_takes_them(sources, tmp_path, capsys) -> None:
    words = [
        "train",
        "--recipe",
        "tiny",
        "--data.train",
        str(sources["auto"]),
        "--out",
        str(tmp_path / "run"),
    ]
    small = [
        "--crop",
        "24",
        "--jitter",
        "26,32",
        "--clip_frames",
        "4",
        "--frame_stride",
        "1",
        "--workers",
        "0",
    ]
    short = ["--iterations", "1", "--batch_size", "2", "--precise_bn", "1", "--progress", "false"]
    assert main([*words, *small, *short, "--warmup", "0", "--accelerator", "cpu"]) == 0
    config = (tmp_path / "run/config.yaml").read_text()
    assert "name: c2d_tiny_nl2" in config
    assert "kind: cosine" in config
    assert "batch_size: 2" in config
    capsys.readouterr()
    assert (
        main(
            ["train", "--recipe", "i3d_r50_nl5_32x2", "--gpus", "4", "--data.train", "nowhere", "--out", "o"]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert "on 4 GPUs, not 8: batches of 32 (64), lr 0.005 (0.01), 800000 steps (400000)" in said
    for given, wrong in (
        (["--recipe", "i3d_r5_nl5"], "no recipe is called 'i3d_r5_nl5'; the nearest are"),
        (["--gpus", "4"], "--gpus scales a recipe"),
        (["--recipe", "tiny", "--gpus", "many"], "--gpus many"),
    ):
        assert main(["train", *given, "--data.train", "x", "--out", "o"]) == 2
        assert wrong in capsys.readouterr().err


def test_the_list(capsys) -> None:
    assert main(["recipes", "released*8x8*"]) == 0
    assert "top-1 74.7, top-5 91.6" in capsys.readouterr().out
    assert main(["recipes", "charades_i3d_r101"]) == 0
    said = capsys.readouterr().out
    assert "nonlocal train --recipe charades_i3d_r101" in said
    assert "batch_size: 4" in said
    assert main(["recipes", "nothing*"]) == 2
    assert "no recipe matches" in capsys.readouterr().err


def test_the_page_is_that_of_the_files() -> None:
    module = load_script("docs/write_recipes.py")
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run docs/write_recipes.py"


def test_folded_norms_start_a_longer_run(sources, tmp_path, capsys) -> None:
    model = nl.create_model("i3d_tiny", num_classes=2).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_()
    nl.save_model(model, tmp_path / "short.safetensors")
    words = ["convert", str(tmp_path / "short.safetensors"), str(tmp_path / "folded.safetensors")]
    assert main([*words, "--to", "native", "--fold_norms"]) == 0
    folded, x = nl.load_model(tmp_path / "folded.safetensors").eval(), torch.randn(1, 3, 8, 48, 48)
    assert folded.spec.norm == "frozen"
    assert folded.spec.norm_eps == 0
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    options = "{norm: frozen, norm_eps: 0.0, nonlocal_norm: null}"
    train_words = ["train", "--data.train", str(sources["auto"]), "--out", str(tmp_path / "run")]
    weights = ["--model.name", "i3d_tiny_nl2", "--weights", str(tmp_path / "folded.safetensors")]
    small = ["--model.options", options, "--iterations", "2", "--batch_size", "2", "--workers", "0"]
    assert main([*train_words, *weights, *small, "--accelerator", "cpu", "--progress", "false"]) == 0
    longer = nl.load_model(tmp_path / "run")
    block = longer.get_submodule("res3.nonlocal0")
    assert block.W_z.weight.any()
    norm = longer.get_submodule("res2.0.norm1").weight
    torch.testing.assert_close(norm, folded.get_submodule("res2.0.norm1").weight)
