"""One training step of a video classifier, as a LightningModule."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from nonlocal_nn._typing import Float
from nonlocal_nn.data.dataset import ClipBatch
from nonlocal_nn.data.defaults import MEAN, STD
from nonlocal_nn.data.transforms import normalize
from nonlocal_nn.training.config import LossName, OptimConfig
from nonlocal_nn.training.fsdp import is_sharded, shard_stages
from nonlocal_nn.training.optim import as_targets, make_loss, make_optimizer
from nonlocal_nn.training.schedule import Plan, lr_at


class ClassifierTask(pl.LightningModule):
    """Loss, optimizer and learning rate around a model; every step depends on the checkpoint and its number
    alone.

    >>> from nonlocal_nn.training.config import ScheduleConfig
    >>> from nonlocal_nn.training.schedule import make_plan
    >>> plan = make_plan(ScheduleConfig(iterations=10), videos=50, batch_size=10)
    >>> task = ClassifierTask(nn.Flatten(), OptimConfig(), plan, "cross_entropy", seed=0)
    >>> task(torch.zeros(2, 4)).shape
    torch.Size([2, 4])

    Args:
        model: clips to logits (batch, classes).
        optim: see OptimConfig.
        plan: the learning rate's schedule in steps.
        loss: "cross_entropy" or "sigmoid".
        seed: of dropout, together with the step and the process.
        mean, std: normalise pixels of 0..255.
        fsdp: share the parameters out over the processes, where there are several.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        plan: Plan,
        loss: LossName,
        seed: int,
        mean: float = MEAN,
        std: float = STD,
        fsdp: bool = False,
    ) -> None:
        super().__init__()
        self.fsdp = fsdp
        self.model = model
        self.optim = optim
        self.plan = plan
        self.loss_name = loss
        self.loss = make_loss(loss, optim.label_smoothing)
        self.seed = seed
        self.mean, self.std = mean, std
        # since the last report; on the device, so that no step waits for them
        self.loss_sum: Tensor | float = 0.0
        self.correct_sum: Tensor | float = 0.0
        self.clips_seen = 0
        # step, clips (by place in the set) and loss of each batch since the last look at them
        self.recent: list[tuple[int, Tensor, Tensor]] = []

    def first_bad_batch(self) -> tuple[int, float, list[int]] | None:
        """Step, loss and clips of the first of the recent batches whose loss is not finite."""
        for step, indices, loss in self.recent:
            if not torch.isfinite(loss):
                return step, float(loss), indices.tolist()
        return None

    def forward(self, clips: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.model(clips)
        return logits

    def configure_model(self) -> None:
        """Lightning's hook, before the optimizer is made."""
        if self.fsdp and self.device_mesh is not None and not is_sharded(self.model):
            shard_stages(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Lightning's hook. There is no scheduler: `on_train_batch_start` sets the rate from the step
        alone.
        """
        return make_optimizer(self.model, self.optim)

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Set what must not depend on earlier steps of this process: learning rate and random
        state.
        """
        rate = lr_at(self.global_step, self.optim.lr, self.plan)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        torch.manual_seed(step_seed(self.seed, self.global_step, batch_idx, self.global_rank))

    def transfer_batch_to_device(
        self,
        batch: ClipBatch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> ClipBatch:
        """Lightning's hook: the tensors, as bytes; they become floats on the device."""
        return batch._replace(
            video=batch.video.to(device, non_blocking=True), labels=batch.labels.to(device, non_blocking=True)
        )

    def prepare(self, video: Tensor) -> Tensor:
        """Pixels of 0..255 to what the model sees, on its device."""
        return normalize(video.to(self.device, non_blocking=True), self.mean, self.std)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The mean loss over this process's part of the batch."""
        logits = self(self.prepare(batch.video)).float()
        targets = as_targets(batch.labels, logits.shape[1], self.loss_name)
        loss = self.loss(logits, targets)
        with torch.no_grad():
            count = len(targets)
            self.clips_seen += count
            self.recent.append((self.trainer.global_step + 1, batch.indices, loss.detach()))
            self.loss_sum = self.loss_sum + loss.detach() * count
            if self.loss_name == "cross_entropy":
                self.correct_sum = self.correct_sum + (logits.argmax(1) == targets).sum()
        return loss


def step_seed(seed: int, step: int, part: int, rank: int) -> int:
    """A seed for torch from (seed, step, part, process): well mixed, so that neighbours have nothing in
    common.

    >>> step_seed(0, 1, 0, 0) != step_seed(0, 0, 1, 0)
    True
    """
    return int(np.random.SeedSequence([seed, step, part, rank]).generate_state(1, np.uint64)[0] >> 1)
