"""How long cells will take, before they are run: a few steps of each network are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from nonlocal_nn.experiments.cells import Cell
from nonlocal_nn.experiments.image_cells import AnyCell
from nonlocal_nn.experiments.tables import Table
from nonlocal_nn.models.build import build_model

_FRAMES = 8
_STARTING_SECONDS = 1.5  # reading lists, making the run's parts, writing files: of each cell
_DECODE_SECONDS = 0.0016  # of 8 frames of 48 x 48, opening the file included, where no file is there yet
_IMAGE_SECONDS = 0.0002  # of decoding one of 32 x 32
_DECODED = 20  # videos that are timed


def estimate_seconds(table: Table, cells: Sequence[AnyCell], threads: int) -> dict[str, float]:
    """Seconds of one process for every unfinished cell, by key."""
    todo = [cell for cell in cells if cell.results() is None]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        step = {name: _seconds_a_step(table, name, todo) for name in {cell.variant for cell in todo}}
    finally:
        torch.set_num_threads(before)
    videos = {cell.train.data.train for cell in todo if isinstance(cell, Cell)}
    decoding = {data: _seconds_a_frame(data) for data in videos}
    return {
        cell.key: _seconds(cell, *step[cell.variant], decoding[cell.train.data.train])
        if isinstance(cell, Cell)
        else _STARTING_SECONDS + cell.images.count * _IMAGE_SECONDS + cell.steps * step[cell.variant][0]
        for cell in todo
    }


def _seconds(cell: Cell, training: float, testing: float, a_frame: float) -> float:
    schedule, batch = cell.train.schedule, cell.train.optim.batch_size
    videos = _videos(cell)
    steps = schedule.iterations or math.ceil(schedule.epochs * videos[0] / batch)
    decode = a_frame * (cell.train.data.clip_frames or _FRAMES)
    views = videos[1] * cell.test.clips * (1 if cell.test.full_frame else cell.test.crops)
    return (
        _STARTING_SECONDS
        + steps * (training + batch * decode)
        + cell.train.precise_bn * (testing + batch * decode)
        + views * (testing / batch + decode)
    )


def _seconds_a_frame(data: str) -> float:
    """Of decoding, opening the file included."""
    from nonlocal_nn.data.decode import VideoReader
    from nonlocal_nn.data.manifest import read_manifest

    if not Path(data).exists():
        return _DECODE_SECONDS / _FRAMES
    paths = [record.path for record in read_manifest(data).records[:_DECODED]]
    start = time.perf_counter()
    for path in paths:
        with VideoReader(path) as reader:
            reader.read(range(min(_FRAMES, reader.num_frames)))
    return (time.perf_counter() - start) / len(paths) / _FRAMES


def _videos(cell: Cell) -> tuple[int, int]:
    """To train on, to test on."""
    if cell.question is not None:
        return cell.question.train_videos, cell.question.test_videos
    from nonlocal_nn.data.manifest import read_manifest

    train = read_manifest(cell.train.data.train, where=cell.train.data.train_where)
    test = read_manifest(cell.test.data, where=cell.test.where)
    return len(train.records), len(test.records)


def _seconds_a_step(table: Table, name: str, cells: Sequence[AnyCell]) -> tuple[float, float]:
    """Of a training step, and of a forward pass of as many clips."""
    cell = next(cell for cell in cells if cell.variant == name)
    spec = table[name].spec
    frames, side = cell.clip_of(spec)
    batch = cell.batch_size
    model = build_model(spec.replace(num_classes=2), seed=0)
    clips, labels = torch.randn(batch, 3, frames, side, side), torch.zeros(batch, dtype=torch.long)
    training, testing = [], []
    for _ in range(4):
        start = time.perf_counter()
        F.cross_entropy(model(clips), labels).backward()  # type: ignore[no-untyped-call]
        training.append(time.perf_counter() - start)
        with torch.inference_mode():
            start = time.perf_counter()
            model.eval()(clips)
            testing.append(time.perf_counter() - start)
        model.train()
    return min(training[1:]), min(testing[1:])
