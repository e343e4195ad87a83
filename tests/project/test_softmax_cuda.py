"""benchmarks/softmax_cuda.py: what it does without a GPU, and its bookkeeping on a processor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from tests.scripts import load_script

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "softmax_cuda.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("benchmarks/softmax_cuda.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so_and_succeeds():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout == "softmax_cuda: no CUDA GPU here, nothing to measure\n"


def test_each_way_is_timed_in_turn_and_the_order_of_speed_is_told(bench, monkeypatch):
    calls: list[str] = []

    def slow(theta, phi, g, scale):
        calls.append("slow")
        for _ in range(30):
            bench.plain(theta, phi, g, scale)
        return bench.plain(theta, phi, g, scale)

    def fast(theta, phi, g, scale):
        calls.append("fast")
        return bench.plain(theta, phi, g, scale)

    def half(theta, phi, g, scale):
        if torch.is_grad_enabled():
            raise RuntimeError("no backward pass\nhere")
        return bench.plain(theta, phi, g, scale)

    found = {"plain": fast, "rows": slow, "flash": fast, "efficient": half}
    monkeypatch.setattr(bench, "ways", lambda: found)
    monkeypatch.setitem(bench.SHAPES, "res3", bench.Shape(200, 24, 20, "small"))
    report = {"machine": {"card": "no card"}, "measured": []}
    bench.one_case("res3", "float32", 2, torch.device("cpu"), report, Console(quiet=True))
    (case,) = report["measured"]
    assert calls[-12:] == ["fast", "fast", "slow", "slow", "fast", "fast"] * 2  # forward and both, in turns
    assert case["results"]["efficient"]["failed"] == "forward + backward: RuntimeError: no backward pass"
    assert case["results"]["efficient"]["forward"]["ms"] > 0
    assert case["results"]["rows"]["error"] < 1e-6
    assert case["order"].startswith("no card, float32, N 200, d 24, forward + backward: flash ")
    assert case["order"].index("flash") < case["order"].index("rows")


def test_the_way_of_rows_is_exact(bench):
    theta, phi, g = torch.randn(1, 50, 6), torch.randn(1, 40, 6), torch.randn(1, 40, 5)
    torch.testing.assert_close(bench.rows(theta, phi, g, 0.5), bench.plain(theta, phi, g, 0.5))
