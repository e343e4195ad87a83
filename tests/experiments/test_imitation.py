"""`nonlocal conv-attention imitate`: a layer that becomes a convolution, and a command that goes on."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from nonlocal_nn.cli import main
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
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "imitate").iterdir()}
    assert main([*words, "--seeds", "0,3"]) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert "0 of 2 seeds with an error of 0.001 or less" in capsys.readouterr().out
    with (tmp_path / "imitate.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "3"]
    assert (tmp_path / "imitate.png").read_bytes().startswith(b"\x89PNG")
    assert main(["conv-attention", "imitat"]) == 2
    assert "there is imitate" in capsys.readouterr().err
    assert main([*words, "--seeds", "1,1"]) == 2
