"""Stopped at any moment and gone on with: the same weights, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from nonlocal_nn.training.config import TrainConfig
from nonlocal_nn.training.precise_bn import update_statistics
from nonlocal_nn.training.run import train
from nonlocal_nn.training.signals import TrainingInterrupted
from nonlocal_nn.training.task import ClassifierTask
from tests.training.conftest import ConfigMaker
from tests.training.killable import start


def _sha(out: str | Path) -> str:
    digest = json.loads((Path(out) / "results.json").read_text())["weights_sha256"]
    assert isinstance(digest, str)
    return digest


def _last_step(out: Path) -> int:
    try:
        return int((out / "metrics.csv").read_text().splitlines()[-1].split(",")[0])
    except (FileNotFoundError, IndexError, ValueError):
        return 0


@pytest.mark.slow
def test_killed_five_times_the_weights_are_those_of_an_unbroken_run(
    tiny_config: ConfigMaker, videos: Path
) -> None:
    # all that could differ: momentum, batch norm, dropout, worker processes, accumulation, validation, an
    # epoch that is not a whole number of batches
    sections = {
        "data": {"workers": 1, "val": str(videos / "test")},
        "model": {"name": "c2d_tiny_nl2", "options": {"dropout": 0.5}},
        "optim": {"batch_size": 10, "accumulate": 2},
        "schedule": {"iterations": 90, "kind": "cosine", "warmup": 20},
        "checkpoint_every_steps": 3,
        "val_every_epochs": 5,
    }
    unbroken, broken = tiny_config(out="unbroken", **sections), tiny_config(out="broken", **sections)  # type: ignore[arg-type]
    whole = start(unbroken)
    broken.resume = True  # also where there is nothing yet
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the moments: {seed}")
    moments = random.Random(seed)
    out = Path(broken.out)
    killed_at = []
    for kill in range(5):
        process = start(broken)
        until = 5 + 14 * kill  # some way further than the last time ...
        while _last_step(out) < until and process.is_alive():
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))  # ... and then any moment: in a step, a checkpoint, a validation
        assert process.is_alive(), "it ended before it could be killed"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed_at.append(_last_step(out))
    last = start(broken)
    for process in (last, whole):
        process.join()
        assert process.exitcode == 0
    print(f"killed after steps {killed_at}")
    assert len(set(killed_at)) == 5
    assert _sha(broken.out) == _sha(unbroken.out)
    columns = [
        [
            line.split(",")[:5] + line.split(",")[6:-1]
            for line in (Path(c.out) / "metrics.csv").read_text().splitlines()
        ]
        for c in (broken, unbroken)
    ]
    assert columns[0] == columns[1]  # all but clips per second and the share of waiting


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    tiny_config: ConfigMaker,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    whole = train(tiny_config(out="whole"))
    config = tiny_config(out="stopped", checkpoint_every_seconds=1e9)
    with _signal_in(monkeypatch, number, step=3), pytest.raises(TrainingInterrupted) as stopped:
        train(config)
    assert stopped.value.code == code
    assert f"nonlocal train --config {config.out}/config.yaml --resume" in capfd.readouterr().err
    config.resume = True
    assert train(config)["weights_sha256"] == whole["weights_sha256"]
    assert "going on from step 4" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_stopped_while_batch_norm_is_measured_it_is_measured_again(
    tiny_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny_config(out="whole"))
    config = tiny_config(out="stopped")
    forwards = 0
    original = update_statistics

    def interrupted(model, batches, **options):  # type: ignore[no-untyped-def]
        nonlocal forwards

        def some():  # type: ignore[no-untyped-def]
            nonlocal forwards
            for batch in batches:
                forwards += 1
                signal.raise_signal(signal.SIGTERM)
                yield batch

        return original(model, some(), **options)

    monkeypatch.setattr("nonlocal_nn.training.precise_bn.update_statistics", interrupted)
    with pytest.raises(TrainingInterrupted):
        train(config)
    assert forwards == 1
    monkeypatch.undo()
    config.resume = True
    assert train(config)["weights_sha256"] == whole["weights_sha256"]


def test_a_validation_that_was_interrupted_is_made_up_for(
    tiny_config: ConfigMaker, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nonlocal_nn.training import loop

    sections = {"data": {"val": str(videos / "test")}, "schedule": {"iterations": 7}}
    whole = tiny_config(out="whole", **sections)  # type: ignore[arg-type]
    train(whole)
    config = tiny_config(out="stopped", **sections)  # type: ignore[arg-type]
    original = loop.validate

    def interrupted(*arguments, **options):  # type: ignore[no-untyped-def]
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "validate", interrupted)
    with pytest.raises(TrainingInterrupted):
        train(config)
    monkeypatch.undo()
    config.resume = True
    train(config)
    for c in (whole, config):
        rows = (Path(c.out) / "metrics.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows if row.split(",")[6]] == ["step", "3", "6", "7"]
    assert _sha(whole.out) == _sha(config.out)


def test_slurms_warning_saves_and_puts_the_job_back(
    tiny_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/called\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    config = tiny_config()
    with _signal_in(monkeypatch, signal.SIGUSR1, step=2), pytest.raises(TrainingInterrupted):
        train(config)
    assert (tmp_path / "called").read_text() == "requeue 77\n"
    assert (Path(config.out) / "checkpoints" / "last.ckpt").exists()


class _signal_in:  # noqa: N801
    """Raise a signal in the middle of the step after `step` steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int) -> None:
        self.monkeypatch, self.number, self.step = monkeypatch, number, step

    def __enter__(self) -> None:
        original, number, at = ClassifierTask.training_step, self.number, self.step

        def step(task, batch, batch_idx):  # type: ignore[no-untyped-def]
            if task.global_step == at:
                signal.raise_signal(number)
            return original(task, batch, batch_idx)

        self.context = self.monkeypatch.context()
        self.context.__enter__().setattr(ClassifierTask, "training_step", step)

    def __exit__(self, *exception: object) -> None:
        self.context.__exit__(None, None, None)


def test_resuming_needs_no_checkpoint(tiny_config: ConfigMaker) -> None:
    config: TrainConfig = tiny_config(resume=True)
    assert train(config)["steps"] == 6
