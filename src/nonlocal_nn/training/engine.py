"""A run: its parts are made from the config, checked, and trained by Lightning's Trainer."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from nonlocal_nn._cores import cores_for_each
from nonlocal_nn._files import write_whole
from nonlocal_nn.checkpoints.native import MODEL_FILE
from nonlocal_nn.checkpoints.save import save_model
from nonlocal_nn.data.errors import VideoError
from nonlocal_nn.training.config import TrainConfig
from nonlocal_nn.training.datamodule import ClipDataModule, make_datasets
from nonlocal_nn.training.fsdp import is_sharded
from nonlocal_nn.training.inputs import Manifests, clip_shape, describe_input, fingerprint_of
from nonlocal_nn.training.loop import BetweenSteps
from nonlocal_nn.training.model import make_model
from nonlocal_nn.training.optim import make_optimizer, resolve_loss
from nonlocal_nn.training.processes import (
    default_threads,
    default_workers,
    leave_processes,
    process_counts,
    processes_are_joined,
    uses_gpu,
)
from nonlocal_nn.training.recompute import recompute_stages
from nonlocal_nn.training.run_folder import LAST, RESULTS, SKIPPED, lock_run_folder, open_run
from nonlocal_nn.training.schedule import make_plan
from nonlocal_nn.training.signals import StopSignals
from nonlocal_nn.training.skipped import SkippedVideos, TooManyBadVideosError
from nonlocal_nn.training.sync_norm import synchronise_norms
from nonlocal_nn.training.task import ClassifierTask
from nonlocal_nn.training.trainer import check_checkpoint, make_trainer, quiet_lightning


def run_training(
    config: TrainConfig, manifests: Manifests, signals: StopSignals, *, first_process: bool
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
    recompute_stages(model, config.recompute)
    if config.sync_norm:
        synchronise_norms(model, on_gpu=uses_gpu(config))
    if config.compile:
        model.compile()
    train_set, val_set = make_datasets(config, manifests, shape)
    task = ClassifierTask(
        model, config.optim, plan, loss, config.seed, config.data.mean, config.data.std, fsdp=config.fsdp
    )
    devices, nodes = process_counts(config)
    cores = cores_for_each(devices)
    workers = config.data.workers
    if workers is None:
        workers = default_workers(cores, on_gpu=uses_gpu(config))
    data = ClipDataModule(train_set, val_set, config, total_steps=plan.total_steps, workers=workers)
    data.check_shares(devices * nodes)
    make_optimizer(model, config.optim)  # only for what it refuses; Lightning asks the task for one later
    listed = videos + len(manifests.train.problems)
    skipped = SkippedVideos(out / SKIPPED, listed, config.data.max_bad_videos)

    with lock_run_folder(out) if first_process else nullcontext():
        checkpoint = out / LAST if open_run(config, first_process=first_process) else None
        step, threads = 0, default_threads(cores, workers, os.environ.get("OMP_NUM_THREADS"))
        fingerprint = fingerprint_of(manifests.train)
        if checkpoint is not None:
            standing = check_checkpoint(checkpoint, fingerprint)
            step, threads = standing.step, standing.threads
            if first_process and standing.processes not in (None, devices * nodes):
                norms = (
                    "" if config.sync_norm else "; batch norm that is trained sees other shares of the batch"
                )
                sys.stderr.write(
                    f"the run had {standing.processes} processes until step {step} and goes on with "
                    f"{devices * nodes}: the same clips in every step, other rounding{norms}\n"
                )
        between = BetweenSteps(config, skipped, signals, fingerprint=fingerprint, threads=threads)
        with quiet_lightning():
            trainer = make_trainer(config, devices, nodes, between, first_step=step)
            if first_process:
                sys.stderr.writelines(f"{note}\n" for note in manifests.notes(config.data.index))
                what = f"going on from step {step}" if checkpoint else "\n".join(report)
                sys.stderr.write(
                    f"{config.model.name}: {manifests.train.describe()}; {plan.total_steps} steps of "
                    f"{config.optim.batch_size} clips; {what}\n"
                )
            skipped.add(manifests.train.problems, warn=first_process, write=first_process)
            if manifests.val is not None:
                skipped.add(manifests.val.problems, warn=first_process, write=first_process, training=False)
            _fit(trainer, task, data, between, checkpoint, threads=None if uses_gpu(config) else threads)
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
            "weights_sha256": weights_sha256(between.weights),
        }
        if trainer.is_global_zero:
            if is_sharded(model):
                model, _ = make_model(config.model, manifests.train.classes, config.seed)
                model.load_state_dict(between.weights)
            model.metadata = describe_input(config.data, shape, loss)
            save_model(model, out / MODEL_FILE)
            text = json.dumps(results, indent=2) + "\n"
            write_whole(out / RESULTS, lambda partial: partial.write_text(text))
    return results


def _fit(
    trainer: pl.Trainer,
    task: ClassifierTask,
    data: ClipDataModule,
    between: BetweenSteps,
    checkpoint: Path | None,
    threads: int | None,
) -> None:
    """Train to the end, with `threads` of torch (None: as they are), and leave no worker process behind."""
    threads_before = torch.get_num_threads()
    joined_before = processes_are_joined()
    if threads is not None:
        torch.set_num_threads(threads)  # sums come out in another order with another number of threads
    try:
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
        if not joined_before:
            leave_processes()  # a process that ends with its group open may abort
    except (RuntimeError, VideoError) as error:
        raise _about_videos(error) from error
    finally:
        between.close()
        data.close()
        torch.set_num_threads(threads_before)


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """The hash of a model's whole state dict: two runs are the same if and only if these are.

    >>> one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> weights_sha256(one.state_dict()) == weights_sha256(other.state_dict())
    False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    if config.accelerator == "gpu" and not uses_gpu(config):
        raise ValueError(
            "accelerator is gpu, but torch finds no GPU here: install a build of torch for it, or take "
            "--accelerator cpu (or auto)"
        )
    if config.precision == "16-mixed" and not uses_gpu(config):
        raise ValueError(
            "precision is 16-mixed, which needs a GPU (on a CPU it would become bf16-mixed in silence); take "
            "--precision bf16-mixed or 32"
        )
    for name in ("log_every_steps", "nodes"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    for name in ("precise_bn", "val_every_epochs", "seed", "checkpoint_every_seconds"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must not be negative")
    if config.fsdp and config.compile:
        raise ValueError("fsdp and compile together were never tried; take one of them")
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


def _about_videos(error: Exception) -> Exception:
    """A worker's VideoError arrives wrapped in its traceback; its last line is the message."""
    text = str(error).strip()
    if isinstance(error, VideoError) or "VideoError" in text:
        return TooManyBadVideosError(
            text.splitlines()[-1].split("VideoError: ")[-1]
            + "; `nonlocal scan` lists every video that is broken"
        )
    return error
