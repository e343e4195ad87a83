"""`train(config)`: a training run from a config to a finished model, in a run folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nonlocal_nn._launch import process_rank, was_launched
from nonlocal_nn.training.config import TrainConfig
from nonlocal_nn.training.inputs import read_manifests
from nonlocal_nn.training.run_folder import finished_results
from nonlocal_nn.training.signals import (
    StopRequestedError,
    StopSignals,
    TrainingInterrupted,
    requeue_slurm_job,
)

# What launchers tell the processes they start.
_LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
)


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a network as `config` says, or go on with the run in `config.out` if `config.resume`.

    >>> from nonlocal_nn.training.config import DataConfig
    >>> train(TrainConfig(out="runs/never-made", data=DataConfig(train="no/such/folder")))
    Traceback (most recent call last):
    FileNotFoundError: no such file or folder: no/such/folder

    The run can be killed at any moment: resumed, it ends with the same weights, bit for bit, as if it had
    never stopped (on one kind of machine, and as far as the device's own operations are repeatable; on the
    CPU they are).

    In a distributed run (torchrun, SLURM, or `config.devices` > 1) every process calls this; all return the
    same.

    Returns:
        What results.json holds: model, parameters, classes, seed, steps, train_seconds, the last metrics, and
        `weights_sha256`, the hash of the finished weights.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: something in the config that cannot be; nothing was
            changed.
        TooManyBadVideosError: more than `config.data.max_bad_videos` of the training videos are broken.
        TrainingInterrupted: Ctrl-C or SIGTERM, after saving. A SystemExit with code 128 + signal.
    """
    out = Path(config.out)
    first_process = process_rank() == 0
    results = finished_results(config)
    if results is not None:
        if first_process:
            sys.stderr.write(f"the run in {out} is finished; nothing to do\n")
        return results

    manifests = read_manifests(config.data)  # the most likely mistakes first, before Lightning loads
    with StopSignals() as signals, without_leftovers(config):
        try:
            from nonlocal_nn.training.engine import run_training

            return run_training(config, manifests, signals, first_process=first_process)
        except StopRequestedError as stop:
            number = stop.signal_number
            if first_process and number in (signal.SIGUSR1, signal.SIGUSR2):
                requeue_slurm_job()
        except KeyboardInterrupt:
            number = int(signal.SIGINT)
    if first_process:
        name = signal.Signals(number).name
        sys.stderr.write(
            f"stopped by {name}; go on with: nonlocal train --config {out / 'config.yaml'} --resume true\n"
        )
    raise TrainingInterrupted(number, out)


@contextmanager
def without_leftovers(config: TrainConfig) -> Iterator[None]:
    """Keep what launchers left in the environment from a run on one machine that none of them launched.

    A lone process would take itself for one of several: train without config and messages, or wait for the
    others.
    """
    alone = config.nodes == 1 and not was_launched()
    left = {name: os.environ.pop(name) for name in _LAUNCHERS if alone and name in os.environ}
    odd = {name: value for name, value in left.items() if value != ("0" if "RANK" in name else "1")}
    if odd:
        names = ", ".join(f"{name}={value}" for name, value in odd.items())
        sys.stderr.write(
            f"{names} in the environment, but neither torchrun nor srun started this process: not used\n"
        )
    try:
        yield
    finally:
        os.environ.update(left)
