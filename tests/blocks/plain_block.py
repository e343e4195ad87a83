"""The non-local block straight from the paper's definitions: explicit positions, all pairs."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from nonlocal_nn import NonLocalBlock


def randomise(block: NonLocalBlock) -> NonLocalBlock:
    """Weights and statistics that make every part of the block matter."""
    with torch.no_grad():
        for value in (*block.parameters(), *block.buffers()):
            if value.is_floating_point():
                value.normal_(std=0.5)
        if block.norm is not None:
            block.norm.running_var.uniform_(0.5, 2)
    return block


def _conv(conv, rows: Tensor) -> Tensor:
    y = rows @ conv.weight.flatten(1).T
    return y if conv.bias is None else y + conv.bias


def _pool(x: Tensor, dims: int) -> Tensor:
    """Max over 2x2 windows in space (dims=1: over 2) of x (batch, *positions, channels); odd ends dropped."""
    first = 2 if dims == 3 else 1
    for axis in range(first, dims + 1):
        even = x.shape[axis] // 2 * 2
        x = x.narrow(axis, 0, even)
        x = torch.maximum(
            x[(slice(None),) * axis + (slice(0, None, 2),)], x[(slice(None),) * axis + (slice(1, None, 2),)]
        )
    return x


def _sees(block: NonLocalBlock, query: tuple[int, ...], key: tuple[int, ...], frames: int) -> bool:
    if block.dims < 3:
        return True
    run = frames // block.temporal_groups
    same_run = query[0] // run == key[0] // run
    if block.span == "space":
        return query[0] == key[0]
    if block.span == "time":
        return same_run and query[1:] == key[1:]
    return same_run


def plain_affinity_and_g(block: NonLocalBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """f/C (batch, queries, keys) and g (batch, keys, inner)."""
    rows = x.movedim(1, -1)
    pools = block.subsample and block.span != "time"
    before = _pool(rows, block.dims) if pools and block.subsample_at == "input" else rows
    phi, g = before if block.phi is None else _conv(block.phi, before), _conv(block.g, before)
    if pools and block.subsample_at == "embedding":
        phi, g = _pool(phi, block.dims), _pool(g, block.dims)
    theta = rows if block.theta is None else _conv(block.theta, rows)
    frames = x.shape[2]
    queries = list(itertools.product(*map(range, theta.shape[1:-1])))
    keys = list(itertools.product(*map(range, phi.shape[1:-1])))
    mask = torch.tensor([[_sees(block, query, key, frames) for key in keys] for query in queries])
    theta, phi, g = (value.flatten(1, -2) for value in (theta, phi, g))
    if block.pairwise == "concatenation":
        pairs = torch.cat(
            [
                theta[:, :, None].expand(-1, -1, len(keys), -1),
                phi[:, None].expand(-1, len(queries), -1, -1),
            ],
            dim=3,
        )
        f = (pairs @ block.w_f).relu() * mask
        return f / mask.sum(1, keepdim=True), g
    product = block.scale * torch.einsum("bqd,bkd->bqk", theta, phi)
    if block.pairwise == "dot_product":
        return product * mask / mask.sum(1, keepdim=True), g
    f = product.exp() * mask
    return f / f.sum(2, keepdim=True), g


def plain_block(block: NonLocalBlock, x: Tensor) -> Tensor:
    """z = norm(W_z y) + x, the norm with its running statistics."""
    affinity, g = plain_affinity_and_g(block, x)
    z = _conv(block.W_z, affinity @ g)
    if block.norm is not None:
        norm = block.norm
        z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return x + z.transpose(1, 2).reshape(x.shape)
