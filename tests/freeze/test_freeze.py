"""Names, options, tensors and files that stay as they are: what is added is fine, what is lost is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import nonlocal_nn as nl
from tests.freeze import interface

HERE = Path(__file__).parent
FROZEN: dict[str, Any] = json.loads(interface.FILE.read_text())


@pytest.fixture(scope="module")
def today() -> dict[str, Any]:
    return interface.interface()


def test_no_public_name_or_argument_is_lost(today: dict[str, Any]) -> None:
    for name, arguments in FROZEN["signatures"].items():
        now = today["signatures"][name]
        if name in ("explain", "insert_blocks"):  # takes the options of the block too
            assert set(arguments) <= set(now), name
        else:
            assert now[: len(arguments)] == arguments, name


@pytest.mark.parametrize("part", ["operators", "models", "blocks"])
def test_operators_and_tensors_are_the_same(today: dict[str, Any], part: str) -> None:
    assert today[part] == FROZEN[part]


def test_no_option_of_a_command_is_lost(today: dict[str, Any]) -> None:
    for command, options in FROZEN["commands"].items():
        assert set(options) <= set(today["commands"][command]), command


def _expected(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    with safe_open(HERE / "answers.safetensors", framework="pt") as file:
        return file.get_tensor(f"{name}.x"), file.get_tensor(f"{name}.y")


@pytest.mark.parametrize("name", ["block", "model"])
def test_a_file_of_the_first_version_loads_and_gives_what_it_gave(name: str) -> None:
    x, y = _expected(name)
    network = nl.load_model(HERE / f"{name}.safetensors")
    torch.testing.assert_close(network(x), y, rtol=1e-5, atol=1e-6)
    if name == "block":
        assert isinstance(network, nl.NonLocalBlock)
        assert network.memory_budget is None  # it was written into old files by mistake
        assert (network.pairwise, network.span, network.scale) == ("dot_product", "space", 4**-0.5)


def test_an_exported_program_of_the_first_version_runs(tmp_path: Path) -> None:
    x, y = _expected("exported")
    given = tmp_path / "x.pt"
    torch.save(x, given)
    # In a fresh process, as it would be used: looking up `functional` registers the operators.
    script = (
        "import sys, torch, nonlocal_nn as nl; nl.functional; "
        "program = torch.export.load(sys.argv[1]); "
        "torch.save(program.module()(torch.load(sys.argv[2])), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", script, str(HERE / "exported.pt2"), str(given)], check=True)
    torch.testing.assert_close(torch.load(given), y, rtol=1e-5, atol=1e-6)
