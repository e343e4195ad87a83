"""`train(config)`: a training run from a config to a finished model, in a run folder."""

from __future__ import annotations

from typing import Any

from nonlocal_nn.training.config import TrainConfig


def train(config: TrainConfig) -> dict[str, Any]:
    """Train (or go on training) as `config` says; returns what results.json holds."""
    raise NotImplementedError("being written")
