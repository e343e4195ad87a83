"""Two processes (gloo) train what one trains."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn.training.run import train
from tests.training.conftest import ConfigMaker


def test_two_gloo_processes_reach_the_weights_of_one(
    tiny_config: ConfigMaker, start_process: Callable[..., subprocess.Popen[str]], videos: Path
) -> None:
    # frozen norms: batch norm over a process's own share is another computation, as it is on several GPUs
    sections = {
        "data": {"val": str(videos / "test")},
        "model": {"name": "c2d_tiny_nl2", "options": {"norm": "frozen", "nonlocal_norm": None}},
        "optim": {"lr": 0.01},
        "schedule": {"iterations": 8},
        "precise_bn": 3,
        "checkpoint_every_steps": 4,
    }
    two = tiny_config(out="two", **sections)  # type: ignore[arg-type]
    process = start_process(two, processes=2)
    one = tiny_config(out="one", **sections)  # type: ignore[arg-type]
    train(one)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    expected, reached = (nl.load_model(config.out).state_dict() for config in (one, two))
    fresh = nl.create_model("c2d_tiny_nl2", 2, **one.model.options).state_dict()
    assert any(not torch.allclose(fresh[name], value, atol=1e-3) for name, value in expected.items())
    assert all(value.any() for name, value in expected.items() if "W_z" in name)  # the blocks take part
    for name, value in expected.items():
        torch.testing.assert_close(reached[name], value, rtol=1e-4, atol=1e-6)
    losses = [
        [float(row.split(",")[3]) for row in (Path(config.out) / "metrics.csv").read_text().splitlines()[1:]]
        for config in (one, two)
    ]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-5)


def test_two_processes_killed_and_resumed_end_the_same(
    tiny_config: ConfigMaker, start_process: Callable[..., subprocess.Popen[str]]
) -> None:
    sections = {
        "model": {"options": {"dropout": 0.5}},
        "schedule": {"iterations": 30},
        "checkpoint_every_steps": 3,
    }
    whole, broken = tiny_config(out="whole", **sections), tiny_config(out="broken", **sections)  # type: ignore[arg-type]
    first = start_process(whole, processes=2)
    process = start_process(broken, processes=2)
    checkpoint = Path(broken.out) / "checkpoints" / "last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.wait() == 0, first.communicate()[1]
    time.sleep(1)
    broken.resume = True
    again = start_process(broken, processes=2)
    assert again.wait() == 0, again.communicate()[1]
    results = [json.loads((Path(config.out) / "results.json").read_text()) for config in (whole, broken)]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]


def test_norms_over_all_processes_are_those_of_one(tmp_path: Path) -> None:
    """Loss, every gradient and every running statistic, in float64, of uneven shares too."""
    script = tmp_path / "shared.py"
    script.write_text(_SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


_SHARED = """
import copy, torch, torch.distributed as dist
from torch import nn
import nonlocal_nn as nl
from nonlocal_nn.training.sync_norm import synchronise_norms

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = nl.create_model("c2d_tiny_nl2", num_classes=2, base_width=4).double()
for name, parameter in model.named_parameters():
    if name.endswith("norm.weight"):
        nn.init.uniform_(parameter, 0.5, 1.5)  # blocks that take part
shared = synchronise_norms(copy.deepcopy(model), on_gpu=False)
x, y = torch.randn(5, 3, 4, 24, 24).double(), torch.tensor([0, 1, 0, 1, 1])
whole = nn.functional.cross_entropy(model(x), y, reduction="sum")
whole.backward()
mine = slice(0, 2) if rank == 0 else slice(2, 5)
part = nn.functional.cross_entropy(shared(x[mine]), y[mine], reduction="sum")
part.backward()
total = part.detach().clone()
dist.all_reduce(total)
torch.testing.assert_close(total, whole.detach(), rtol=1e-10, atol=1e-10)
for one, two in zip(model.parameters(), shared.parameters(), strict=True):
    grad = two.grad.clone()
    dist.all_reduce(grad)
    torch.testing.assert_close(grad, one.grad, rtol=1e-8, atol=1e-8)
for one, two in zip(model.buffers(), shared.buffers(), strict=True):
    torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("sync", [True, False])
def test_training_with_norms_over_all_processes(
    sync: bool, tiny_config: ConfigMaker, start_process: Callable[..., subprocess.Popen[str]]
) -> None:
    """Six steps in float32: the statistics of one process's run, which shares by themselves do not have."""
    sections = {
        "model": {"name": "c2d_tiny_nl2"},
        "optim": {"lr": 0.001},
        "schedule": {"iterations": 6},
        "precise_bn": 0,
        "sync_norm": sync,
    }
    two = tiny_config(out="two", **sections)  # type: ignore[arg-type]
    process = start_process(two, processes=2)
    one = tiny_config(out="one", **sections)  # type: ignore[arg-type]
    train(one)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    expected, reached = (nl.load_model(config.out).state_dict() for config in (one, two))
    apart = max(
        float(((reached[name] - value).norm() / value.norm()).detach())
        for name, value in expected.items()
        if name.endswith("running_var")
    )
    assert apart < 1e-4 if sync else apart > 1e-2
