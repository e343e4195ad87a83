"""Runs as SLURM jobs: the script, what is refused, and a job that is cancelled and submitted again."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest
import submitit

from nonlocal_nn.cli import main
from nonlocal_nn.commands.submit import Training, read_options
from nonlocal_nn.training.run import train
from tests.training.conftest import ConfigMaker, tiny_config, videos  # noqa: F401

WORDS = ["train", "--data.train", "my videos", "--model.name", "c2d_tiny", "--out", "runs/a"]


def test_the_script_runs_the_same_command(capsys: pytest.CaptureFixture[str]) -> None:
    slurm = ["--slurm", "nodes=2,gpus=4,time=36h,partition=long,cpus=6", "--print"]
    assert main([*WORDS[:3], *slurm, *WORDS[3:], "--lr", "0.02"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=6", "time=2160"):
        assert f"#SBATCH --{line}" in lines
    for line in ("partition=long", "signal=USR1@120", "requeue"):
        assert f"#SBATCH --{line}" in lines
    command = shlex.split(lines[-1])
    assert command[:2] == ["srun", "--kill-on-bad-exit=1"]
    assert command[3:] == [
        *["-m", "nonlocal_nn", *WORDS, "--lr", "0.02"],
        *["--nodes=2", "--devices=4", "--resume=true", "--progress=false"],
    ]
    # what srun would start is a command line that is read
    assert main([*command[5:], "--print_config"]) == 0


def test_a_job_on_the_cpus_asks_for_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--slurm=gpus=0,time=2d", "--print"]) == 0
    script = capsys.readouterr().out
    assert "gpus-per-node" not in script
    assert "#SBATCH --ntasks-per-node=1\n" in script


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("node=2", "no 'node'; did you mean nodes"),
        ("nodes=0", "at least 1"),
        ("gpus=x", "a whole number"),
        ("time=1m", "five minutes at least"),
        ("time=soon", "write 24h"),
        ("nodes", "NAME=VALUE"),
        ("nodes=1,nodes=2", "names nodes twice"),
        ("cluster=mine", "local for this machine"),
        ("nodes=2", "--nodes is 3, and --slurm nodes=2 starts 2"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--nodes", "3", "--slurm", text, "--print"]) == 2
    assert reason in capsys.readouterr().err


def test_without_slurm_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert main([*WORDS, "--slurm", "gpus=1"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert main([*WORDS, "--print"]) == 2
    assert "give --slurm" in capsys.readouterr().err
    assert main([*WORDS, "--overwrite", "--slurm", "gpus=1"]) == 2
    assert "delete the run first" in capsys.readouterr().err


def test_defaults() -> None:
    options = read_options("")
    assert (options.nodes, options.gpus, options.minutes, options.cluster) == (1, 1, 1440, "slurm")


@pytest.mark.slow
def test_cancelled_and_submitted_again_it_ends_with_the_same_weights(
    tiny_config: ConfigMaker,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sections = {"schedule": {"iterations": 300}, "checkpoint_every_steps": 3}
    whole = train(tiny_config(out="whole", **sections))  # type: ignore[arg-type]
    config = tiny_config(out="job", resume=True, **sections)  # type: ignore[arg-type]
    executor = submitit.LocalExecutor(folder=tmp_path / "logs")
    executor.update_parameters(timeout_min=5)
    first = executor.submit(Training(), config)
    metrics = Path(config.out) / "metrics.csv"
    while not metrics.exists() or metrics.read_text().count("\n") < 20:
        assert not first.done(), first.exception()
        time.sleep(0.02)
    first.cancel()
    while first.state == "RUNNING":
        time.sleep(0.05)
    assert not (Path(config.out) / "results.json").exists()
    again = executor.submit(Training(), config)
    assert again.result()["weights_sha256"] == whole["weights_sha256"]
