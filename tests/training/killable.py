"""Runs of `train` in processes of their own that a test may kill; imported by those processes.

The forkserver imports torch and Lightning once and forks for each run: a real process each time, without the
seconds that the imports take.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerProcess

from nonlocal_nn.training.config import TrainConfig, config_from_dict, config_to_dict


def train_in_process(values: dict[str, object]) -> None:
    """What the process does."""
    import torch

    torch.set_num_threads(1)
    # for the loader's workers; else theirs would be what started this process
    multiprocessing.set_start_method("fork", force=True)
    from nonlocal_nn.training.run import train

    train(config_from_dict(values))


def start(config: TrainConfig) -> ForkServerProcess:
    """Start training in a process of its own; its exit code is 0 when the run is finished."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nonlocal_nn.training.engine", __name__])
    process = context.Process(target=train_in_process, args=(config_to_dict(config),))
    process.start()
    return process
