"""Batches where shared memory is small: through pipes, unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nonlocal_nn.data import loading
from nonlocal_nn.data.dataset import ClipBatch, Skipped, ViewSample
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.loading import ways_through
from nonlocal_nn.data.sampling import CropBox


def _small(monkeypatch: pytest.MonkeyPatch, free: int = 2**26) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(loading, "_said", False)


@pytest.mark.parametrize(
    "batch",
    [
        ClipBatch(
            torch.arange(2 * 3 * 4 * 5 * 6, dtype=torch.uint8).view(2, 4, 5, 6, 3).permute(0, 4, 1, 2, 3),
            torch.tensor([1, 0]),
            torch.tensor([7, 8]),
            (Problem("a.mp4", "is empty"),),
        ),
        ViewSample(
            torch.ones(3, 2, 4, 4, dtype=torch.uint8),
            torch.zeros(1, 2).long(),
            (CropBox(0, 0, 4, 4),),
            3,
            torch.tensor(1),
        ),
        Skipped(3, Problem("caf\udce9.mp4", "no such file")),
        ClipBatch(torch.empty(0, 3, 1, 2, 2, dtype=torch.uint8), torch.empty(0), torch.empty(0).long(), ()),
    ],
)
def test_what_arrives_is_what_was_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, batch: object
) -> None:
    _small(monkeypatch)
    collate, unpack = ways_through(lambda batch: batch, 2**24, 2, tmp_path)
    packed = collate(batch)
    assert isinstance(packed, bytes)  # no tensor, which would go through shared memory
    arrived = unpack(packed)
    assert type(arrived) is type(batch)
    for found, wanted in zip(arrived, batch, strict=True):  # type: ignore[call-overload]
        if isinstance(wanted, Tensor):
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
            if wanted.numel():
                assert found.stride() == wanted.stride()
        else:
            assert found == wanted
    said = capsys.readouterr().err
    assert "64 MiB free" in said
    assert "--shm-size" in said
    ways_through(len, 2**24, 2, tmp_path)
    assert not capsys.readouterr().err  # once


@pytest.mark.parametrize(("bytes_", "workers"), [(2**10, 2), (2**30, 0)])
def test_enough_shared_memory_or_no_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bytes_: int, workers: int
) -> None:
    _small(monkeypatch)
    assert ways_through(len, bytes_, workers, tmp_path)[0] is len


class _Numbers(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((2**18,), index)


def test_workers_send_through_pipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _small(monkeypatch, free=0)
    collate, unpack = ways_through(torch.stack, 2**22, 1, tmp_path)
    loader = DataLoader(_Numbers(), batch_size=2, num_workers=1, collate_fn=collate)
    assert [int(batch[1, 0]) for batch in map(unpack, loader)] == [1, 3, 5]
