"""The parts of a run put together around Lightning's Trainer."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from nonlocal_nn._files import write_whole
from nonlocal_nn.checkpoints.save import save_model
from nonlocal_nn.data.errors import VideoError
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.training.checkpoint import WholeCheckpointIO
from nonlocal_nn.training.config import TrainConfig
from nonlocal_nn.training.cores import cores_for_each, default_threads, default_workers
from nonlocal_nn.training.datamodule import BatchOptions, ClipDataModule
from nonlocal_nn.training.loop import BetweenSteps, LoopOptions
from nonlocal_nn.training.loss import resolve_loss
from nonlocal_nn.training.manifests import Manifests
from nonlocal_nn.training.optimizer import make_optimizer
from nonlocal_nn.training.quiet import quiet_lightning
from nonlocal_nn.training.run_folder import LAST, MODEL, RESULTS, SKIPPED, open_run
from nonlocal_nn.training.run_lock import hold_run_folder
from nonlocal_nn.training.schedule import make_plan
from nonlocal_nn.training.signals import SignalNotes, StopRequestedError, requeue_slurm_job
from nonlocal_nn.training.skipped import SkippedVideos, TooManyBadVideosError
from nonlocal_nn.training.start import clip_shape, describe_input, make_datasets, make_model
from nonlocal_nn.training.task import ClassifierTask


def run_training(
    config: TrainConfig, manifests: Manifests, notes: SignalNotes, *, first_process: bool
) -> dict[str, Any]:
    """Body of `train`, once the lists of videos are read. Everything that may be wrong with the config is
    found before the run folder is touched.
    """
    out = Path(config.out)
    videos = len(manifests.train)
    _check_values(config, videos)
    loss = resolve_loss(config.optim.loss, manifests.train.multi_label)
    plan = make_plan(config.schedule, videos, config.optim.batch_size)
    model, report = make_model(config.model, manifests.train.classes, config.seed)
    assert model.spec is not None  # models of the catalog have one
    shape = clip_shape(config.data, model.spec)
    train_set, val_set = make_datasets(config, manifests, shape)
    task = ClassifierTask(
        model, config.optim, plan, loss, config.seed, mean=config.data.mean, std=config.data.std
    )
    devices, nodes = _processes(config)
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    cores = cores_for_each(devices)
    workers = default_workers(cores, on_gpu=on_gpu) if config.data.workers is None else config.data.workers
    data = ClipDataModule(
        train_set,
        val_set,
        BatchOptions(
            batch_size=config.optim.batch_size,
            accumulate=config.optim.accumulate,
            total_steps=plan.total_steps,
            seed=config.seed,
            workers=workers,
        ),
    )
    data.check_shares(devices * nodes)
    make_optimizer(model, config.optim)  # only for what it refuses; Lightning asks the task for one later
    listed = videos + len(manifests.train.problems)
    skipped = SkippedVideos(out / SKIPPED, listed, config.data.max_bad_videos)

    lock = hold_run_folder(out) if first_process else None
    checkpoint = out / LAST if open_run(config, first_process=first_process) else None
    step, threads = 0, default_threads(cores, workers, os.environ.get("OMP_NUM_THREADS"))
    fingerprint = fingerprint_of(manifests.train)
    if checkpoint is not None:
        step, threads = check_checkpoint(checkpoint, fingerprint)
    between = BetweenSteps(
        LoopOptions(
            out=out,
            accumulate=config.optim.accumulate,
            batch_size=config.optim.batch_size,
            precise_bn=config.precise_bn,
            val_every_epochs=config.val_every_epochs,
            log_every_steps=config.log_every_steps,
            checkpoint_every_seconds=config.checkpoint_every_seconds,
            checkpoint_every_steps=config.checkpoint_every_steps,
            progress=config.progress,
            fingerprint=fingerprint,
            threads=threads,
        ),
        skipped,
        notes,
    )
    with quiet_lightning():
        trainer = _trainer(config, devices, nodes, between, step)
        if first_process:
            what = f"going on from step {step}" if checkpoint else "\n".join(report)
            sys.stderr.write(
                f"{config.model.name}: {manifests.train.describe()}; {plan.total_steps} steps of "
                f"{config.optim.batch_size} clips; {what}\n"
            )
        skipped.add(manifests.train.problems, warn=first_process, write=first_process)
        if manifests.val is not None:
            skipped.add(manifests.val.problems, warn=first_process, write=first_process, training=False)
        threads_before = torch.get_num_threads()
        if not on_gpu:
            torch.set_num_threads(threads)  # sums come out in another order with another number of threads
        try:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
        except StopRequestedError as stop:
            if first_process and stop.signal_number == signal.SIGUSR1:
                requeue_slurm_job()
            raise
        except (RuntimeError, VideoError) as error:
            raise _about_videos(error) from error
        finally:
            between.close()
            data.close()
            torch.set_num_threads(threads_before)
    results = {
        "model": config.model.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "classes": len(manifests.train.classes),
        "train_videos": videos,
        "seed": config.seed,
        "steps": plan.total_steps,
        "train_seconds": round(between.elapsed_seconds, 2),
        **{name: round(value, 6) for name, value in between.metrics.items()},
        "skipped_videos": len(skipped.reasons),
        "weights_sha256": weights_sha256(model),
    }
    if trainer.is_global_zero:
        model.metadata = describe_input(config.data, shape, loss)
        save_model(model, out / MODEL)
        text = json.dumps(results, indent=2) + "\n"
        write_whole(out / RESULTS, lambda partial: partial.write_text(text))
    if lock is not None:
        lock.close()
    return results


def weights_sha256(model: nn.Module) -> str:
    """The hash of a model's whole state: two runs are the same if and only if these are.

    >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> weights_sha256(one) == weights_sha256(other)
    False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of(manifest: Manifest) -> str:
    """A hash of the names and labels of the videos, in order, wherever they lie."""
    digest = hashlib.sha256(repr(manifest.classes).encode())
    for record in manifest.records:
        row = (Path(record.path).name, record.labels, record.start_seconds, record.end_seconds)
        digest.update(repr(row).encode())
    return digest.hexdigest()


def check_checkpoint(path: Path, fingerprint: str) -> tuple[int, int]:
    """The number of steps done when the checkpoint was written, and the threads torch worked with.

    Raises:
        ValueError: it belongs to a run with other training videos.
    """
    checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if checkpoint["nonlocal_nn"]["fingerprint"] != fingerprint:
        raise ValueError(
            "the training videos are not those the run was started with (files were added, removed or "
            "renamed, or labels changed), so it cannot go on: put them back, or start a new run"
        )
    return int(checkpoint["global_step"]), int(checkpoint["nonlocal_nn"]["threads"])


def _check_values(config: TrainConfig, videos: int) -> None:
    if config.resume and config.overwrite:
        raise ValueError("resume and overwrite contradict each other: go on with the run, or delete it?")
    batch_size = config.optim.batch_size
    if batch_size < 1:
        raise ValueError(f"optim.batch_size is {batch_size}; it must be at least 1")
    if batch_size > videos:
        raise ValueError(
            f"optim.batch_size is {batch_size}, but there are only {videos} training videos: "
            f"set it to {videos} or less"
        )
    for name in ("log_every_steps", "nodes"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    for name in ("precise_bn", "val_every_epochs", "seed", "checkpoint_every_seconds"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must not be negative")
    if config.optim.accumulate < 1:
        raise ValueError(f"optim.accumulate is {config.optim.accumulate}; it must be at least 1")
    if config.optim.clip_norm is not None and config.optim.clip_norm <= 0:
        raise ValueError(
            f"optim.clip_norm is {config.optim.clip_norm:g}; it must be more than 0, or null for none"
        )
    if config.checkpoint_every_steps is not None and config.checkpoint_every_steps < 1:
        raise ValueError(
            f"checkpoint_every_steps is {config.checkpoint_every_steps}; it must be at least 1, or null"
        )
    if config.data.std <= 0:
        raise ValueError(f"data.std is {config.data.std:g}; it must be more than 0")
    if config.data.workers is not None and config.data.workers < 0:
        raise ValueError(f"data.workers is {config.data.workers}; it must be 0 or more, or null")


def _processes(config: TrainConfig) -> tuple[int, int]:
    """Processes on each machine and machines: what torchrun started, where it did, else the config's."""
    if config.devices != "auto" and config.devices < 1:
        raise ValueError(f"devices is {config.devices}; it must be at least 1, or auto")
    if "TORCHELASTIC_RUN_ID" in os.environ and config.devices == "auto":
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    if config.devices != "auto":
        return config.devices, config.nodes
    on_gpus = config.accelerator != "cpu" and torch.cuda.is_available()
    return (torch.cuda.device_count() if on_gpus else 1), config.nodes


def _trainer(
    config: TrainConfig,
    devices: int,
    nodes: int,
    between: BetweenSteps,
    step: int,
) -> pl.Trainer:
    plugins: list[Any] = [WholeCheckpointIO()]
    if SLURMEnvironment.detect():
        # Lightning would save in the middle of a step; signals.py saves between steps and requeues the job
        # itself
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return pl.Trainer(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if devices == 1 and nodes == 1 else "ddp",
        precision={"32": "32-true"}.get(config.precision, config.precision),  # type: ignore[arg-type]
        accumulate_grad_batches=config.optim.accumulate,
        gradient_clip_val=config.optim.clip_norm,
        # One loader goes through all epochs (sampler.py), so that no epoch waits for workers to start. To
        # Lightning that is a single epoch, always resumed in its middle.
        max_epochs=1,
        logger=TensorBoardLogger(config.out, name=None, version="tensorboard", purge_step=step or None),
        callbacks=[between],
        plugins=plugins,
        default_root_dir=config.out,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _about_videos(error: Exception) -> Exception:
    """A worker's VideoError arrives wrapped in its traceback; its last line is the message."""
    text = str(error).strip()
    if isinstance(error, VideoError) or "VideoError" in text:
        return TooManyBadVideosError(
            text.splitlines()[-1].split("VideoError: ")[-1]
            + "; `nonlocal scan` lists every video that is broken"
        )
    return error
