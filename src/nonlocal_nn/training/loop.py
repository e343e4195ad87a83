"""What happens between two steps, in this order: broken videos, metrics, validation, checkpoint, stop.

The order is what makes a run resumable: a checkpoint holds everything that came before it, and nothing is
reported after it that a resumed run would not report again.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from nonlocal_nn.data.dataset import ClipBatch
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.training import precise_bn, processes
from nonlocal_nn.training.config import TrainConfig
from nonlocal_nn.training.datamodule import ClipDataModule
from nonlocal_nn.training.fsdp import put_together, whole_state
from nonlocal_nn.training.reports import MetricsCsv, TrainingProgress
from nonlocal_nn.training.run_folder import LAST, METRICS
from nonlocal_nn.training.schedule import epoch_ends
from nonlocal_nn.training.signals import StopRequestedError, StopSignals
from nonlocal_nn.training.skipped import SkippedVideos
from nonlocal_nn.training.task import ClassifierTask
from nonlocal_nn.training.validate import ValidationStoppedError, validate

_CLIPS_NAMED = 4  # of the batch of a loss that is not finite


class LossNotFiniteError(FloatingPointError):
    """Training has diverged, or its data are broken."""

    exit_code = 1


class BetweenSteps(pl.Callback):  # Lightning keeps its state in checkpoints under the name of the class
    """Reports, validates, saves and stops a training run; at its end measures the precise batch norm
    statistics.

    After training `metrics` has the last figures of each kind, `weights` the finished state dict, and
    `elapsed_seconds` the time spent training, of all the parts of an interrupted run together.

    Args:
        config: of the run.
        skipped: gets the videos that cannot be used.
        signals: say after each step whether to stop.
        fingerprint: of the training videos, for the checkpoint.
        threads: of torch, for the checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        skipped: SkippedVideos,
        signals: StopSignals,
        *,
        fingerprint: str,
        threads: int,
    ) -> None:
        self.config = config
        self.out = Path(config.out)
        self.skipped = skipped
        self.signals = signals
        self.fingerprint = fingerprint
        self.threads = threads
        self.metrics: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}
        self.elapsed_seconds = 0.0
        self._validated_step = -1
        self._ends: frozenset[int] = frozenset()
        self._pending: list[Problem] = []  # broken videos of this step, on this process
        self._csv: MetricsCsv | None = None
        self._progress: TrainingProgress | None = None
        self._saved_at = self._reported_at = self._clock = 0.0
        self._deaths_seen = 0  # of decoding processes, on this process
        self._asked_at = self._waited = 0.0  # for the next batch, since the last report

    # Lightning puts these into the checkpoint.
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside weights, optimizer and step."""
        return {
            "skipped": self.skipped.state(),
            "metrics": self.metrics,
            "elapsed_seconds": self._elapsed(),
            "validated_step": self._validated_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.skipped.load(state_dict["skipped"])
        self.metrics = dict(state_dict["metrics"])
        self.elapsed_seconds = float(state_dict["elapsed_seconds"])
        self._validated_step = int(state_dict["validated_step"])

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """What is checked before Lightning loads the rest."""
        checkpoint["nonlocal_nn"] = {
            "fingerprint": self.fingerprint,
            "threads": self.threads,
            "processes": trainer.world_size,
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the reports where the checkpoint stands."""
        task = _task(pl_module)
        self.signals.install()
        self._clock = self._saved_at = self._reported_at = self._asked_at = time.monotonic()
        self._ends = epoch_ends(task.plan, self.config.val_every_epochs)
        step = trainer.global_step
        if trainer.is_global_zero:
            self._csv = MetricsCsv(self.out / METRICS, from_step=step)
            if self.config.progress:
                self._progress = TrainingProgress(task.plan.total_steps, step)
        if step in self._ends and self._validated_step != step:  # stopped in the middle of it
            self._validate_or_stop(trainer, task)

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: ClipBatch,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """A batch is there: how long it was waited for."""
        self._waited += time.monotonic() - self._asked_at

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: ClipBatch,
        batch_idx: int,
    ) -> None:
        """Once a step is complete (with its accumulated parts), everything that comes between it and the
        next.
        """
        try:
            self._between_steps(trainer, _task(pl_module), batch, batch_idx)
        finally:
            self._asked_at = time.monotonic()

    def _between_steps(
        self, trainer: pl.Trainer, task: ClassifierTask, batch: ClipBatch, batch_idx: int
    ) -> None:
        self._pending += self.skipped.unseen(batch.skipped)
        if (batch_idx + 1) % self.config.optim.accumulate:
            return
        step = trainer.global_step
        last = step == task.plan.total_steps
        stop, bad, save, broken = processes.maximum(
            [
                self._stop_signal(trainer),
                len(self._pending),
                self._save_is_due(trainer, step),
                # A look at a number on a GPU makes the step wait: there only before a report or a save.
                int(task.device.type == "cpu" and task.first_bad_batch() is not None),
            ],
            task.device,
        )
        if broken or save or stop or last or step % self.config.log_every_steps == 0:
            self._check_losses(trainer, task)
        try:
            if bad:
                self._report_skipped(trainer)
            if step % self.config.log_every_steps == 0 or last:
                self._report_training(trainer, task)
            elif self._progress is not None:
                self._progress.advance(step)
            if step in self._ends and not stop:
                self._validate(trainer, task)
        except ValidationStoppedError:
            stop = self._stop_signal(trainer)
        if save or stop or last:
            self._save(trainer)
        if stop:
            raise StopRequestedError(stop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Precise batch norm and the last validation, with the final weights. Interrupted, they are done
        again from the checkpoint of the last step, with the same outcome.
        """
        task = _task(pl_module)
        if self.config.precise_bn:
            self._show_phase("batch norm statistics")
            precise_bn.update_statistics(
                task.model,
                self._measured_clips(trainer, task),
                reduce_mean=processes.mean,
                context=trainer.precision_plugin.forward_context,
            )
        self._validate_or_stop(trainer, task)
        self.weights = whole_state(task.model)
        self.elapsed_seconds = self._elapsed()
        self._clock = time.monotonic()

    def on_exception(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Remove the progress bar."""
        self.close()

    def close(self) -> None:
        """Remove the progress bar."""
        if self._progress is not None:
            self._progress.stop()

    def _elapsed(self) -> float:
        return self.elapsed_seconds + (time.monotonic() - self._clock if self._clock else 0.0)

    def _stop_signal(self, trainer: pl.Trainer) -> int:
        # Lightning's own flag: a SIGTERM that came before `on_train_start` installed our handler
        return self.signals.received or (signal.SIGTERM if trainer.received_sigterm else 0)

    def _save_is_due(self, trainer: pl.Trainer, step: int) -> int:
        every = self.config.checkpoint_every_steps
        died = _data(trainer).deaths > self._deaths_seen  # what comes next may be the death of this one
        by_time = time.monotonic() - self._saved_at >= self.config.checkpoint_every_seconds
        in_step = every is not None and step % every == 0
        return int((trainer.is_global_zero and by_time) or in_step or died)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.out / LAST)
        self._deaths_seen = _data(trainer).deaths
        self._saved_at = time.monotonic()

    def _report_skipped(self, trainer: pl.Trainer, problems: list[Problem] | None = None) -> None:
        """Gather the videos that any process skipped, so that all processes stop together if there are too
        many.
        """
        training = problems is None
        found = processes.gather(self._pending) if training else list(problems or ())
        if training:
            self._pending = []
        self.skipped.add(found, warn=trainer.is_global_zero, write=trainer.is_global_zero, training=training)

    def _check_losses(self, trainer: pl.Trainer, task: ClassifierTask) -> None:
        """Stop all processes where a loss since the last look is not finite; nothing is saved."""
        own = task.first_bad_batch()
        task.recent.clear()
        found = processes.gather([] if own is None else [own])
        if not found:
            return
        step, loss, indices = min(found)
        records = _data(trainer).train.manifest.records
        clips = ", ".join(records[index].path for index in indices[:_CLIPS_NAMED])
        more = f" and {len(indices) - _CLIPS_NAMED} more" if len(indices) > _CLIPS_NAMED else ""
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        last = self.out / LAST
        kept = f"{last} is of an earlier step" if last.exists() else "there is no checkpoint yet"
        raise LossNotFiniteError(
            f"the loss became {loss} at step {step} (learning rate {rate:g}, clips of {clips}{more}). The "
            "learning rate is probably too high; lower optim.lr, add schedule.warmup or set optim.clip_norm, "
            f"and look at these videos. Nothing was saved since: {kept}"
        )

    def _report_training(self, trainer: pl.Trainer, task: ClassifierTask) -> None:
        step = trainer.global_step
        sums = processes.total(
            [float(task.loss_sum), float(task.correct_sum), float(task.clips_seen)], task.device
        )
        task.loss_sum = task.correct_sum = 0.0
        task.clips_seen = 0
        now = time.monotonic()
        loss, clips = sums[0] / sums[2], sums[2]
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        values = {
            "epoch": step / task.plan.steps_per_epoch,
            "lr": rate,
            "train_loss": loss,
            "clips_per_second": clips / max(now - self._reported_at, 1e-9),
            "waiting": min(1.0, self._waited / max(now - self._reported_at, 1e-9)),
        }
        self._waited = 0.0
        if task.loss_name == "cross_entropy":
            values["train_top1"] = 100 * sums[1] / clips
        self._reported_at = now
        self._log(trainer, values)
        if self._progress is not None:
            self._progress.update(step, epoch=values["epoch"], loss=loss, lr=rate)

    def _validate(self, trainer: pl.Trainer, task: ClassifierTask) -> None:
        data = _data(trainer)
        if not data.has_val:
            return
        self._show_phase("validation")
        started = time.monotonic()
        with put_together(task.model):
            metrics, problems = validate(
                task.model,
                data.val_batches(),
                task.loss_name,
                task.prepare,
                context=trainer.precision_plugin.forward_context,
                # several processes would have to agree in the middle of it: there it goes on to its end
                should_stop=lambda: self._stop_signal(trainer) != 0 and not processes.is_distributed(),
            )
        self._reported_at += time.monotonic() - started  # clips per second are those of training
        self._validated_step = trainer.global_step
        self._report_skipped(trainer, problems)
        self._log(trainer, metrics)
        if self._progress is not None:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            epoch = trainer.global_step / task.plan.steps_per_epoch
            self._progress.say(f"epoch {epoch:.2f}  {figures}")

    def _validate_or_stop(self, trainer: pl.Trainer, task: ClassifierTask) -> None:
        try:
            self._validate(trainer, task)
        except ValidationStoppedError:
            raise StopRequestedError(self._stop_signal(trainer)) from None

    def _measured_clips(self, trainer: pl.Trainer, task: ClassifierTask) -> Iterator[Tensor]:
        """The clips of the batches that would come next, so that they depend on the seed and the length
        alone.
        """
        data = _data(trainer)
        one_pass = math.ceil(data.num_videos / self.config.optim.batch_size)
        for batch in data.batches(task.plan.total_steps, min(self.config.precise_bn, one_pass)):
            stop, bad = processes.maximum(
                [self._stop_signal(trainer), len(self.skipped.unseen(batch.skipped))], task.device
            )
            if stop:
                raise StopRequestedError(stop)
            self._pending = self.skipped.unseen(batch.skipped)
            if bad:
                self._report_skipped(trainer)
            yield task.prepare(batch.video)

    def _log(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        self.metrics.update(values)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if self._csv is not None:
            self._csv.add(trainer.global_step, values)

    def _show_phase(self, name: str) -> None:
        if self._progress is not None:
            self._progress.phase(name)


def _task(module: pl.LightningModule) -> ClassifierTask:
    assert isinstance(module, ClassifierTask)
    return module


def _data(trainer: pl.Trainer) -> ClipDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ClipDataModule)
    return data
