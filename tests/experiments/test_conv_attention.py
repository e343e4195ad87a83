"""`nonlocal conv-attention`: layers that become convolutions, and a command that goes on."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nonlocal_nn.cli import main
from nonlocal_nn.data.class_images import read_class_images
from nonlocal_nn.experiments.cifar import train_short
from nonlocal_nn.experiments.cifar_paper import train_paper
from nonlocal_nn.experiments.cifar_result import CifarRun
from nonlocal_nn.experiments.image_attention import PAPER, ImageAttention, Shape, flops_of
from nonlocal_nn.experiments.imitation import imitate


@pytest.mark.slow
def test_a_layer_becomes_the_convolution() -> None:
    torch.set_num_threads(1)
    run = imitate(0, steps=1000)
    assert run.error <= 1e-3
    assert run.kernel_error <= 1e-3
    assert run.in_window >= 0.9
    assert run.moved > 0.5


def test_resets_only_touch_heads_that_do_nothing() -> None:
    assert imitate(1, steps=3).resets == 0
    again, same = imitate(2, steps=5), imitate(2, steps=5)
    assert again == same


def test_the_command_writes_goes_on_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "conv-attention",
        "imitate",
        "--out",
        str(tmp_path),
        "--steps",
        "4",
        "--jobs",
        "1",
        "--progress",
        "false",
    ]
    assert main([*words, "--seeds", "0"]) == 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "imitate").rglob("*.json")}
    assert main([*words, "--seeds", "0,3"]) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert "0 of 2 seeds with an error of 0.001 or less" in capsys.readouterr().out
    with (tmp_path / "imitate.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "3"]
    assert (tmp_path / "imitate.png").read_bytes().startswith(b"\x89PNG")
    assert main(["conv-attention", "imitat"]) == 2
    assert "there are imitate and cifar" in capsys.readouterr().err
    assert main([*words, "--seeds", "1,1"]) == 2


def _images(folder: Path, count: int, side: int = 32) -> Path:
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 100, (side, side, 3)) + (120 if name == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_a_small_network_learns_and_its_heads_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = _images(tmp_path / "train", 50), _images(tmp_path / "test", 10)
    options = ["--train", str(train), "--test", str(test), "--jobs", "1", "--progress", "false"]
    words = [
        "conv-attention",
        "cifar",
        *options,
        "--out",
        str(tmp_path / "out"),
        "--epochs",
        "6",
        "--seeds",
        "0",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    accuracy = float(re.findall(r"accuracy ([\d.]+) % of 1 seeds", out)[0])
    assert accuracy == 100
    with (tmp_path / "out/cifar.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 27
    assert any(row["first_row"] != row["row"] for row in rows)
    for name, start in (("cifar.png", b"\x89PNG"), ("cifar.webp", b"RIFF")):
        assert (tmp_path / "out" / name).read_bytes().startswith(start)
    with Image.open(tmp_path / "out/cifar.webp") as film:
        assert film.n_frames == 7
    (kept,) = (tmp_path / "out/cifar").rglob("*.json")
    when = kept.stat().st_mtime_ns
    assert main(words) == 0
    assert kept.stat().st_mtime_ns == when


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["cifar"], "wants images"),
        (["cifar", "--train", "nowhere", "--test", "nowhere"], "no such file or folder: nowhere"),
        (["imitate", "--train", "x"], "belong to cifar"),
        (["cifar", "--epochs", "0"], "epochs = 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words, capsys) -> None:
    assert main(["conv-attention", *options]) == 2
    assert words in capsys.readouterr().err


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    folder = _images(tmp_path / "a", 1, side=20)
    images, labels, _ = read_class_images(folder)
    with pytest.raises(ValueError, match="20 x 20 pixels: a square of a multiple of 16"):
        train_short((images, labels), (images, labels), 0, 1)
    (folder / "dark/broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"dark/broken\.png is no image"):
        read_class_images(folder)
    with pytest.raises(ValueError, match="one folder a class"):
        read_class_images(tmp_path / "a/light")


def test_heads_on_pixels_are_counted() -> None:
    run = CifarRun(0, 1, 50.0, 1.0, [[[(1.1, -0.9), (0.5, 0.0), (2.0, 2.0)]]] * 2, [[[3.0, 2.5, 1.0]]] * 2)
    assert run.sharp(0) == (2, 1)
    assert run.near(0) == 2


def test_the_papers_settings_resume_to_the_same_figures(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (20, 8, 8, 3)).astype(np.uint8), np.arange(20) % 2
    shape = Shape(side=8, layers=1, heads=2, width=8, inner=8, classes=2)

    def run(name: str) -> CifarRun:
        return train_paper((images, labels), (images, labels), 1, 3, tmp_path / name, shape=shape, batch=10)

    whole = run("whole.pt")
    assert len(whole.centres) == 4
    with pytest.raises(KeyboardInterrupt):
        train_paper(
            (images, labels),
            (images, labels),
            1,
            3,
            tmp_path / "cut.pt",
            shape=shape,
            batch=10,
            progress=_stop_at(3),
        )
    assert torch.load(tmp_path / "cut.pt")["epoch"] == 1
    again = run("cut.pt")
    assert (again.accuracy, again.centres, again.spreads) == (whole.accuracy, whole.centres, whole.spreads)


def _stop_at(last: int):
    def progress(step: int, steps: int) -> None:
        if step == last:
            raise KeyboardInterrupt

    return progress


def test_the_papers_network_and_its_cost() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ImageAttention(PAPER).parameters()) == 12_086_844
    assert flops_of(PAPER).linear / 1e9 == pytest.approx(6.2, abs=0.05)
