"""Lightning's Trainer for a run: its settings, its checkpoint files, and which of its messages are shown."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from nonlocal_nn._files import utf8_path, write_whole
from nonlocal_nn.training.config import TrainConfig

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


def make_trainer(
    config: TrainConfig, devices: int, nodes: int, callback: pl.Callback, first_step: int
) -> pl.Trainer:
    """A Trainer that leaves to `callback` what comes between two steps.

    Args:
        config: the run.
        devices, nodes: processes on each machine, and machines.
        callback: reports, validates and saves.
        first_step: where training starts; what TensorBoard has from there on is dropped.
    """
    folder = utf8_path(config.out)
    plugins: list[Any] = [WholeCheckpointIO()]
    if SLURMEnvironment.detect():
        # Lightning would save in the middle of a step; signals.py saves between steps and requeues the job
        # itself
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return pl.Trainer(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(config, devices * nodes),
        precision={"32": "32-true"}.get(config.precision, config.precision),  # type: ignore[arg-type]
        accumulate_grad_batches=config.optim.accumulate,
        gradient_clip_val=config.optim.clip_norm,
        # One loader goes through all epochs (sampler.py), so that no epoch waits for workers to start. To
        # Lightning that is a single epoch, always resumed in its middle.
        max_epochs=1,
        logger=TensorBoardLogger(folder, name=None, version="tensorboard", purge_step=first_step or None),
        callbacks=[callback],
        plugins=plugins,
        default_root_dir=folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _strategy(config: TrainConfig, processes: int) -> str | ModelParallelStrategy:
    if processes == 1:
        return "auto"
    if not config.fsdp:
        return "ddp"
    # FSDPStrategy would refuse CPUs
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all and read without running code in them."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the checkpoint; only the first process calls this."""
        if storage_options is not None:
            raise TypeError("WholeCheckpointIO writes to a local or shared disk; it has no storage options")
        write_whole(Path(path), lambda partial: torch.save(checkpoint, partial))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = "cpu",
        weights_only: bool | None = True,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Read it back; anything but tensors and plain values is refused."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint


@dataclass(frozen=True)
class Standing:
    """Where a run was when its checkpoint was written: steps done, torch's threads, and processes."""

    step: int
    threads: int
    processes: int | None


def check_checkpoint(path: Path, fingerprint: str) -> Standing:
    """Where the run stands.

    Raises:
        ValueError: it belongs to a run with other training videos.
    """
    checkpoint = torch.load(utf8_path(path), map_location="cpu", mmap=True, weights_only=True)
    if checkpoint["nonlocal_nn"]["fingerprint"] != fingerprint:
        raise ValueError(
            "the training videos are not those the run was started with (files were added, removed or "
            "renamed, or labels changed), so it cannot go on: put them back, or start a new run"
        )
    ours = checkpoint["nonlocal_nn"]
    return Standing(int(checkpoint["global_step"]), int(ours["threads"]), ours.get("processes"))


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """No hints of Lightning's on devices, workers and logging: a user of a run cannot act on them.

    Errors still show; the loggers' levels are put back afterwards.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            # 1x1 kernels have strides of no meaning; DDP compares them all the same
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            # DDP and Lightning read attributes that newer torch versions deprecate
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
