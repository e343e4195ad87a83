"""`nonlocal train`: the run itself is `nonlocal_nn.training.run`; this prints its results."""

from __future__ import annotations

from pathlib import Path

from nonlocal_nn.training.config import TrainConfig


def train_command(config: TrainConfig) -> int:
    """Train, or go on training, and print the figures of the finished run; 0."""
    from nonlocal_nn._launch import process_rank
    from nonlocal_nn.training.run import train

    results = train(config)
    if process_rank() == 0:
        for name, value in results.items():
            print(f"{name:20} {value}")
        print(
            f"the run is in {Path(config.out)}; test it: nonlocal test --checkpoint {config.out} --data ..."
        )
    return 0
