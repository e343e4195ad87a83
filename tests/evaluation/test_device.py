"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from nonlocal_nn.evaluation.device import autocast, choose_device


def test_auto_is_cuda_or_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [("gpu", "no device is called 'gpu'"), ("cuda:1", "finds 1 CUDA GPUs"), ("mps", "no Apple GPU")],
)
def test_refuses_what_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=said):
        choose_device(name)


def test_autocast_refuses_other_formats() -> None:
    with pytest.raises(ValueError, match="'half'"):
        autocast(torch.device("cpu"), "half")  # type: ignore[arg-type]
