"""What must be true of a block that is split over processes; test_sharded_block.py starts them."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys

import torch
from torch import Tensor

from nonlocal_nn import NonLocalBlock
from nonlocal_nn.functional import sharded
from tests import euclidean, ranks
from tests.blocks.plain_block import randomise
from tests.distributed.operator_cases import raised
from tests.ops.largest_tensor import LargestTensor

PAIRWISE = ["embedded_gaussian", "gaussian", "dot_product", "concatenation"]


def sizes_of(world: int, dims: int) -> list[int]:
    """Parts of the first position axis: pooled in 1 and 2 dimensions, so even there, but for the last."""
    if dims == 3:
        return [1 + rank % 3 for rank in range(world)]
    return [2 + 2 * (rank % 2) for rank in range(world - 1)] + [5]


def same_block_split(rank: int, world: int, dims: int, **options: object) -> None:
    block = randomise(NonLocalBlock(4, 3, dims=dims, **options)).double().eval()
    sizes = sizes_of(world, dims)
    x = torch.randn(2, 4, sum(sizes), *(3, 4)[: dims - 1], dtype=torch.float64, requires_grad=True)
    dz = torch.randn_like(x)
    split = copy.deepcopy(block).shard_over(ranks.group())
    mine = x.detach().split(sizes, dim=2)[rank].clone().requires_grad_()

    z = split(mine)
    z.backward(dz.split(sizes, dim=2)[rank])
    sharded.sum_gradients(split.parameters(), ranks.group())
    whole = block(x)
    whole.backward(dz)

    def close(ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    close(z, whole.split(sizes, dim=2)[rank])
    close(mine.grad, x.grad.split(sizes, dim=2)[rank])
    for ours, theirs in zip(split.parameters(), block.parameters(), strict=True):
        close(ours.grad, theirs.grad)


def case_clips(rank: int, world: int) -> None:
    subsample = [{"subsample": False}, {"subsample_at": "embedding"}, {"subsample_at": "input"}]
    spans = ["spacetime", "space", "time"]
    for pairwise, options, span in itertools.product(PAIRWISE, subsample, spans):
        same_block_split(rank, world, 3, pairwise=pairwise, span=span, **options)


def case_images_and_sequences(rank: int, world: int) -> None:
    for dims, pairwise in itertools.product((1, 2), PAIRWISE):
        same_block_split(rank, world, dims, pairwise=pairwise)


def case_scale_and_norms(rank: int, world: int) -> None:
    for norm in ("frozen", None):
        for pairwise in PAIRWISE[:3]:
            same_block_split(rank, world, 3, pairwise=pairwise, norm=norm, scale=True)


def case_frozen_network_before_the_block(rank: int, world: int) -> None:
    block = randomise(NonLocalBlock(4)).eval().shard_over(ranks.group())
    block(torch.randn(1, 4, 1, 4, 4)).sum().backward()  # x needs no gradient
    assert all(parameter.grad is not None for parameter in block.parameters())
    block.phi.requires_grad_(False)
    block.g.requires_grad_(False)
    block(torch.randn(1, 4, 1, 4, 4)).sum().backward()
    with torch.no_grad():
        block(torch.randn(1, 4, 1, 4, 4))


def case_bad_input_on_one_process_is_an_error_on_all(rank: int, world: int) -> None:
    block = NonLocalBlock(4).shard_over(ranks.group())
    good = torch.zeros(1, 4, 2, 4, 4)
    for bad, words in (
        (torch.zeros(1, 5, 2, 4, 4), f"rank 1 of {world}: expected (batch, 4, frames, height, width), got"),
        (torch.zeros(4, 4), f"rank 1 of {world}: expected (batch, 4, frames, height, width), got (4, 4)"),
        (torch.zeros(1, 4, 2, 1, 4), f"rank 1 of {world}: a map of (2, 1, 4) positions is too small"),
        (torch.zeros(1, 4, 0, 4, 4), f"rank 1 of {world}: each process needs a part of the map"),
        (torch.zeros(2, 4, 2, 4, 4), "the ranks must agree in batch, got batch=1 on rank 0 and batch=2 on"),
        (torch.zeros(1, 4, 2, 6, 4), "the ranks must agree in other position axes, got"),
        (good.double(), "the ranks must agree in dtype, got dtype=float32 on rank 0 and dtype=float64"),
        (good.clone().requires_grad_(), "the ranks must agree in gradients of x"),
    ):
        said = raised(lambda bad=bad: block(bad if rank == 1 else good))
        assert words in said, said
    assert torch.equal(block(good), good)
    odd = NonLocalBlock(4, dims=1).shard_over(ranks.group())
    said = raised(lambda: odd(torch.zeros(1, 4, 5 if rank == 0 else 4)))
    assert f"rank 0 of {world}: a part that is pooled by 2 must be of even size" in said, said


def case_copies_pickles_and_back(rank: int, world: int) -> None:
    block = randomise(NonLocalBlock(4)).eval()
    names = list(block.state_dict())
    frames = torch.randn(1, 4, world, 4, 4)
    alone, together = block(frames[:, :, rank : rank + 1]), block(frames)[:, :, rank : rank + 1]
    assert not torch.allclose(alone, together)
    assert block.shard_over(ranks.group()) is block
    assert list(block.state_dict()) == names
    mine = frames[:, :, rank : rank + 1]
    torch.testing.assert_close(block(mine), together)
    torch.testing.assert_close(copy.deepcopy(block)(mine), together)
    torch.testing.assert_close(pickle.loads(pickle.dumps(block))(mine), alone)
    assert "affinity needs all keys" in raised(lambda: block.affinity(mine, torch.tensor([0])))
    torch.testing.assert_close(block.shard_over(None)(mine), alone)
    assert block.affinity(mine, torch.tensor([0])).shape == (1, 1, 4)


def case_a_function_of_ones_own(rank: int, world: int) -> None:
    for span in ("spacetime", "space", "time"):
        same_block_split(rank, world, 3, pairwise=euclidean.FAST, span=span)
    block = NonLocalBlock(4, pairwise=euclidean.ALONE)
    said = raised(lambda: block.shard_over(ranks.group()))
    assert "pairwise='euclidean' has no form that is split over processes" in said, said


def case_half_precision_scores_are_as_exact_as_in_one_process(rank: int, world: int) -> None:
    """Rounded scores would turn keys with a_i + b_j near 0 on or off."""
    block = randomise(NonLocalBlock(32, 16, pairwise="concatenation", norm=None, subsample=False)).bfloat16()
    x = torch.randn(1, 32, world, 6, 6).bfloat16()
    whole = block(x)[:, :, rank : rank + 1]
    split = copy.deepcopy(block).shard_over(ranks.group())(x[:, :, rank : rank + 1])
    torch.testing.assert_close(split, whole, rtol=2**-8, atol=2**-8)


def case_the_memory_budget_is_kept(rank: int, world: int) -> None:
    x = torch.randn(1, 8, 2, 16, 16, requires_grad=True)
    budget, sizes = 60_000, []
    for memory_budget in (budget, None):
        block = randomise(NonLocalBlock(8, 4, memory_budget=memory_budget, subsample=False))
        block.shard_over(ranks.group())
        with LargestTensor() as largest:
            block(x).sum().backward()
        sizes.append(largest.bytes)
    assert sizes[0] <= budget < sizes[1], sizes


def case_temporal_groups_are_refused(rank: int, world: int) -> None:
    block = NonLocalBlock(4, temporal_groups=2)
    said = raised(lambda: block.shard_over(ranks.group()))
    assert f"temporal_groups=2 cannot be split over {world} processes" in said


if __name__ == "__main__":
    ranks.run_cases(sys.modules["__main__"])
