"""Batch norm over all processes, on every rank; test_sync_norm.py starts the ranks."""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from torch import nn

import nonlocal_nn as nl
from nonlocal_nn.training.sync_norm import synchronise_norms
from tests import ranks


def case_norms_over_all_processes_are_those_of_one(rank: int, world: int) -> None:
    """Loss, every gradient and every running statistic, in float64, of uneven shares too."""
    model = nl.create_model("c2d_tiny_nl2", num_classes=2, base_width=4).double()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)  # blocks that take part
    shared = synchronise_norms(copy.deepcopy(model), on_gpu=False)
    x, y = torch.randn(5, 3, 4, 24, 24).double(), torch.tensor([0, 1, 0, 1, 1])
    whole = nn.functional.cross_entropy(model(x), y, reduction="sum")
    torch.autograd.backward(whole)
    mine = torch.arange(5).tensor_split(world)[rank]
    part = nn.functional.cross_entropy(shared(x[mine]), y[mine], reduction="sum")
    torch.autograd.backward(part)
    total = part.detach().clone()
    dist.all_reduce(total)
    torch.testing.assert_close(total, whole.detach(), rtol=1e-10, atol=1e-10)
    for one, two in zip(model.parameters(), shared.parameters(), strict=True):
        assert two.grad is not None
        grad = two.grad.clone()
        dist.all_reduce(grad)
        torch.testing.assert_close(grad, one.grad, rtol=1e-8, atol=1e-8)
    for buffer, other in zip(model.buffers(), shared.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, rtol=1e-10, atol=1e-10)


if __name__ == "__main__":
    ranks.run_cases(sys.modules["__main__"])
