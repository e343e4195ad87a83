"""Inputs and weights, the same for all contenders of a case and drawn from fixed seeds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import _ours
from _cases import Case
from nonlocal_nn import NonLocalBlock

LOGIT_DEVIATION = 2.0  # of the logits: some keys matter far more than others, none takes everything


@dataclass
class Operands:
    """`leaves` are what gradients are taken for, `dy` what comes back from the layer above."""

    case: Case
    device: str
    seed: int = 0
    leaves: dict[str, Tensor] = field(init=False)
    dy: Tensor = field(init=False)

    def __post_init__(self) -> None:
        draw = {"operator": operator_leaves, "block": block_leaves, "limit": limit_leaves}[self.case.level]
        generator = torch.Generator().manual_seed(self.seed)
        dtype = getattr(torch, self.case.dtype)
        leaves, dy_shape = draw(self.case, generator)
        self.leaves = {name: value.to(self.device, dtype) for name, value in leaves.items()}
        dy = torch.randn(dy_shape if self.case.backward else 0, generator=generator)
        self.dy = dy.to(self.device, dtype)
        for value in self.leaves.values():
            value.requires_grad_(self.case.backward)


def operator_leaves(case: Case, generator: torch.Generator) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """theta, phi, g (and w_f); where gaussian is not subsampled, theta is phi as in the block."""

    def rows(count: int, channels: int, deviation: float = 1.0) -> Tensor:
        return torch.randn(1, count, channels, generator=generator).mul_(deviation)

    deviation = embedding_deviation(case)
    leaves = {"theta": rows(case.queries, case.width, deviation)}
    if case.function != "gaussian" or case.subsample:
        leaves["phi"] = rows(case.keys, case.width, deviation)
    leaves["g"] = rows(case.keys, case.inner)
    if case.function == "concatenation":
        leaves["w_f"] = torch.randn(2 * case.inner, generator=generator) * (2 * case.inner) ** -0.5
    return leaves, (1, case.queries, case.inner)


def limit_leaves(case: Case, generator: torch.Generator) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """What the operator itself takes: for concatenation the scores a and b."""
    leaves, dy_shape = operator_leaves(case, generator)
    if case.function == "concatenation":
        a, b = (torch.randn(1, count, generator=generator) for count in (case.queries, case.keys))
        leaves = {"a": a, "b": b, "g": leaves["g"]}
    return leaves, dy_shape


def embedding_deviation(case: Case) -> float:
    """Of the entries of theta and phi."""
    if case.function == "concatenation":
        return 1.0
    if case.function == "gaussian":  # x_i . x_i stands out: it is about this deviation squared
        return LOGIT_DEVIATION * case.width**-0.5
    return LOGIT_DEVIATION**0.5 * case.width**-0.25


def block_leaves(case: Case, generator: torch.Generator) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """The map x."""
    x = torch.randn(case.batch, case.channels, *case.positions, generator=generator)
    if case.function == "gaussian":
        x *= embedding_deviation(case)
    return {"x": x}, tuple(x.shape)


def make_block(
    case: Case,
    device: str,
    memory_budget: int | None = None,
    subsample_at: str = "embedding",
    seed: int = 1,
) -> NonLocalBlock:
    """Our block with weights that make every part of it matter; training mode where gradients are taken."""
    block = _ours.block(
        memory_budget,
        channels=case.channels,
        inner_channels=case.inner,
        pairwise=case.function,
        dims=case.dims,
        subsample=case.subsample,
        subsample_at=subsample_at,
    )
    randomise(block, case, seed)
    return block.to(device, getattr(torch, case.dtype)).train(case.backward).requires_grad_(case.backward)


@torch.no_grad()
def randomise(block: NonLocalBlock, case: Case, seed: int) -> None:
    """Weights for maps of unit deviation (gaussian: smaller ones) that give the logits theirs."""
    generator = torch.Generator().manual_seed(seed)
    embedding = embedding_deviation(case)
    of_x = embedding if case.function == "gaussian" else 1.0
    for conv, deviation in ((block.theta, embedding), (block.phi, embedding), (block.g, 1.0)):
        if isinstance(conv, nn.Module):
            conv.weight.normal_(0, deviation / of_x * case.channels**-0.5, generator=generator)
            conv.bias.normal_(0, 0.1 * deviation, generator=generator)
    block.W_z.weight.normal_(0, case.inner**-0.5, generator=generator)
    if block.w_f is not None:
        block.w_f.normal_(0, (2 * case.inner) ** -0.5, generator=generator)
    assert isinstance(block.norm, nn.Module)
    block.norm.weight.uniform_(0.5, 1.5, generator=generator)
    block.norm.bias.normal_(0, 0.1, generator=generator)
