"""The data sets of a run, and their batches as Lightning and the loop around it ask for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch

from nonlocal_nn.data.dataset import ClipBatch, ClipDataset, ViewDataset, collate_samples
from nonlocal_nn.data.steady import FixedBatches, SteadyLoader
from nonlocal_nn.data.transforms import TrainTransform, ViewTransform
from nonlocal_nn.training.config import TrainConfig
from nonlocal_nn.training.inputs import ClipShape, Manifests
from nonlocal_nn.training.sampler import SampleStream, StepBatches
from nonlocal_nn.training.signals import ignore_stop_signals
from nonlocal_nn.training.validate import CentreClips, collate_centre_clips


def make_datasets(
    config: TrainConfig, manifests: Manifests, shape: ClipShape
) -> tuple[ClipDataset, ViewDataset | None]:
    """Random clips of the training videos; one centre clip of each validation video."""
    train = ClipDataset(
        manifests.train,
        clip_frames=shape.frames,
        frame_stride=shape.stride,
        transform=TrainTransform(crop=shape.crop, jitter=shape.jitter, flip=config.data.flip),
        seed=config.seed,
        labels=config.data.labels,
        known=manifests.known_train,
    )
    if manifests.val is None:
        return train, None
    val = ViewDataset(
        manifests.val,
        clip_frames=shape.frames,
        frame_stride=shape.stride,
        clips=1,
        transform=ViewTransform(short_side=shape.test_short_side, crop=shape.crop, crops=1),
        known=manifests.known_val,
    )
    return train, val


class ClipDataModule(pl.LightningDataModule):
    """Training batches from any step on, and validation clips, each process its share.

    Args:
        train, val: see `make_datasets`.
        config: of the run.
        total_steps: optimizer steps of the whole run.
        workers: decoding processes beside this process.
    """

    def __init__(
        self,
        train: ClipDataset,
        val: ViewDataset | None,
        config: TrainConfig,
        *,
        total_steps: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val
        self.config = config
        self.total_steps = total_steps
        self.workers = workers
        groups = None if config.data.group_by is None else train.manifest.records.groups()
        self._stream = SampleStream(len(train), config.seed, groups)
        self._loaders: list[SteadyLoader[Any]] = []
        self._val_loader: SteadyLoader[CentreClips] | None = None

    def check_shares(self, processes: int) -> None:
        """Raise ValueError where the batch cannot be shared out evenly over the processes."""
        optim = self.config.optim
        StepBatches(self._stream, optim.batch_size, 0, accumulate=optim.accumulate, processes=processes)

    @property
    def num_videos(self) -> int:
        """Training videos."""
        return len(self.train)

    @property
    def has_val(self) -> bool:
        """Whether there are validation videos."""
        return self.val is not None

    @property
    def deaths(self) -> int:
        """Decoding processes that died so far."""
        return sum(loader.deaths for loader in self._loaders)

    def train_dataloader(self) -> SteadyLoader[ClipBatch]:
        """One loader for the whole run, from the step on that Lightning has restored by now (0 in a new
        run).
        """
        assert self.trainer is not None
        return self._loader(self.trainer.global_step, self.total_steps)

    def batches(self, first_step: int, count: int) -> Iterator[ClipBatch]:
        """The `count` batches, as they go through the model, of the steps from `first_step` on."""
        steps = math.ceil(count / self.config.optim.accumulate)
        return itertools.islice(iter(self._loader(first_step, first_step + steps)), count)

    def val_batches(self) -> SteadyLoader[CentreClips]:
        """This process's share of the validation videos, in order."""
        assert self.val is not None
        if self._val_loader is not None:
            return self._val_loader
        rank, processes = self._rank()
        share = range(rank, len(self.val), processes)
        size = max(1, self.config.optim.batch_size // (processes * self.config.optim.accumulate))
        loader: SteadyLoader[CentreClips] = SteadyLoader(
            self.val,
            FixedBatches(share, size),
            collate_centre_clips,
            batch_bytes=self._clip_bytes * size,
            workers=min(self.workers, len(share)),
            worker_init=ignore_stop_signals,
        )
        self._loaders.append(loader)
        self._val_loader = loader
        return loader

    def close(self) -> None:
        """End the worker processes now, even where an exception still holds on to what they work for."""
        for loader in self._loaders:
            loader.close()

    def _loader(self, start_step: int, stop_step: int) -> SteadyLoader[ClipBatch]:
        rank, processes = self._rank()
        batches = StepBatches(
            self._stream,
            batch_size=self.config.optim.batch_size,
            start_step=start_step,
            stop_step=stop_step,
            accumulate=self.config.optim.accumulate,
            rank=rank,
            processes=processes,
        )
        loader: SteadyLoader[ClipBatch] = SteadyLoader(
            self.train,
            batches,
            collate_samples,
            batch_bytes=self._clip_bytes * batches.part,
            workers=self.workers,
            worker_init=ignore_stop_signals,
            pin_memory=torch.cuda.is_available(),
        )
        self._loaders.append(loader)
        return loader

    @property
    def _clip_bytes(self) -> int:
        """What a clip takes on its way from a worker: bytes of RGB pixels."""
        return 3 * self.train.clip_frames * self.train.transform.crop**2

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
