"""Two processes (gloo) train what one trains."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn.training.config import TrainConfig
from nonlocal_nn.training.run import train
from tests.training.conftest import ConfigMaker

StartProcess = Callable[..., subprocess.Popen[str]]


FROZEN = {"model": {"name": "c2d_tiny_nl2", "options": {"norm": "frozen", "nonlocal_norm": None}}}


def _by_one_and_by_two(
    tiny_config: ConfigMaker, start_process: StartProcess, sections: dict[str, Any]
) -> tuple[TrainConfig, TrainConfig]:
    """The same run by one process and by two, both finished."""
    one, two = tiny_config(out="one", **sections), tiny_config(out="two", **sections)
    process = start_process(two, processes=2)
    train(one)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    return one, two


def test_two_gloo_processes_reach_the_weights_of_one(
    tiny_config: ConfigMaker, start_process: StartProcess, videos: Path
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
    one, two = _by_one_and_by_two(tiny_config, start_process, sections)
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


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_killed_and_resumed_end_the_same(
    fsdp: bool, tiny_config: ConfigMaker, start_process: StartProcess
) -> None:
    sections = {
        **(FROZEN if fsdp else {"model": {"options": {"dropout": 0.5}}}),
        "fsdp": fsdp,
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


@pytest.mark.parametrize("sync", [True, False])
def test_training_with_norms_over_all_processes(
    sync: bool, tiny_config: ConfigMaker, start_process: StartProcess
) -> None:
    """Six steps in float32: the statistics of one process's run, which shares by themselves do not have."""
    sections = {
        "model": {"name": "c2d_tiny_nl2"},
        "optim": {"lr": 0.001},
        "schedule": {"iterations": 6},
        "precise_bn": 0,
        "sync_norm": sync,
    }
    one, two = _by_one_and_by_two(tiny_config, start_process, sections)
    expected, reached = (nl.load_model(config.out).state_dict() for config in (one, two))
    apart = max(
        float(((reached[name] - value).norm() / value.norm()).detach())
        for name, value in expected.items()
        if name.endswith("running_var")
    )
    assert apart < 1e-4 if sync else apart > 1e-2


@pytest.mark.parametrize("norms", ["frozen", "synchronised"])
def test_parameters_shared_out_reach_the_weights_of_one(
    norms: str, tiny_config: ConfigMaker, start_process: StartProcess, videos: Path, tmp_path: Path
) -> None:
    """Six steps; three validation videos, so that the processes' shares differ."""
    lines = [f"{videos}/test/{name} {label}" for name, label in (("dark/0.mp4", 0), ("light/0.mp4", 1))]
    (tmp_path / "val.txt").write_text("\n".join([*lines, f"{videos}/test/dark/1.mp4 0"]))
    (tmp_path / "train.txt").write_text(
        "\n".join(
            f"{videos}/train/{name}/{n}.mp4 {label}"
            for label, name in enumerate(("dark", "light"))
            for n in range(6)
        )
    )
    sections = {
        **(FROZEN if norms == "frozen" else {"sync_norm": True}),
        "data": {"train": str(tmp_path / "train.txt"), "val": str(tmp_path / "val.txt")},
        "optim": {"lr": 0.001, "clip_norm": 1.0},
        "schedule": {"iterations": 6},
        "precise_bn": 2 if norms == "frozen" else 0,
        "fsdp": True,
    }
    one, two = _by_one_and_by_two(tiny_config, start_process, sections)
    expected, reached = (nl.load_model(config.out).state_dict() for config in (one, two))
    for name, value in expected.items():
        torch.testing.assert_close(reached[name], value, rtol=1e-5, atol=1e-5)
    figures = [json.loads((Path(config.out) / "results.json").read_text()) for config in (one, two)]
    assert figures[0]["val_loss"] == pytest.approx(figures[1]["val_loss"], rel=1e-4)
    # its checkpoint is whole, under the names of one process
    state = torch.load(Path(two.out) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("model."): value.shape for name, value in state.items()} == {
        name: value.shape for name, value in expected.items()
    }


@pytest.mark.parametrize("fsdp", [False, True])
def test_a_run_goes_on_with_another_number_of_processes(
    fsdp: bool, tiny_config: ConfigMaker, start_process: StartProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    sections: dict[str, Any] = {**FROZEN, "optim": {"lr": 0.001}, "precise_bn": 0}
    sections |= {"schedule": {"iterations": 60}, "checkpoint_every_steps": 1}
    whole = tiny_config(out="whole", **sections)
    train(whole)
    config = tiny_config(out="two", **sections, fsdp=fsdp)
    process = start_process(config, processes=2)
    checkpoint = Path(config.out) / "checkpoints" / "last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on, and waits
    process.wait()
    assert not (Path(config.out) / "results.json").exists()
    config.resume = True
    train(config)
    assert "the run had 2 processes until step" in capfd.readouterr().err
    expected, reached = (nl.load_model(c.out).state_dict() for c in (whole, config))
    for name, value in expected.items():
        torch.testing.assert_close(reached[name], value, rtol=1e-4, atol=1e-5)


def test_two_machines_of_one_process_each(tiny_config: ConfigMaker, start_process: StartProcess) -> None:
    sections: dict[str, Any] = {**FROZEN, "optim": {"lr": 0.001}, "precise_bn": 0}
    one, two = tiny_config(out="one", **sections), tiny_config(out="two", **sections)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [start_process(two, machine=number, port=port) for number in (0, 1)]
    train(one)
    for machine in machines:
        errors = machine.communicate(timeout=120)[1]
        assert machine.returncode == 0, errors
    expected, reached = (nl.load_model(config.out).state_dict() for config in (one, two))
    for name, value in expected.items():
        torch.testing.assert_close(reached[name], value, rtol=1e-5, atol=1e-6)


def test_a_process_that_dies_ends_the_others(tiny_config: ConfigMaker, start_process: StartProcess) -> None:
    config = tiny_config(out="dead", **FROZEN, schedule={"iterations": 100_000}, log_every_steps=1)
    launcher = start_process(config, processes=2)
    while not (Path(config.out) / "metrics.csv").exists():
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.05)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    started = time.monotonic()
    errors = launcher.communicate(timeout=60)[1]
    assert launcher.returncode != 0
    assert time.monotonic() - started < 60
    assert "rank      : 1" in errors, errors
