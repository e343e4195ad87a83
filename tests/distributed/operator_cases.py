"""What must be true of split positions, on every rank; test_sharded.py starts the ranks."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nonlocal_nn import distributed as sharded
from nonlocal_nn.ops import dispatch, equation
from tests import ranks
from tests.ops.largest_tensor import LargestTensor
from tests.ops.operands import NAMES, inputs


def layouts(world: int) -> dict[str, tuple[list[int], list[int]]]:
    """Queries and keys of each rank."""
    ranks = range(world)
    return {
        "odd": ([5 + 2 * rank for rank in ranks], [3 + rank for rank in ranks]),
        "empty": ([4 * (rank % 2) for rank in ranks], [5 * (1 - rank % 2) for rank in ranks]),
        "keys elsewhere": ([6 if rank == 0 else 0 for rank in ranks], [0] * (world - 1) + [7]),
        "one key": ([1] * world, [0, 1] + [0] * (world - 2)),
        "no queries": ([0] * world, [2] * world),
    }


def own_part(x: Tensor, sizes: list[int], rank: int) -> Tensor:
    return x.split(sizes, dim=1)[rank]


def leaves(whole: tuple[Tensor, ...], queries: list[int], keys: list[int], rank: int) -> tuple[Tensor, ...]:
    parts = (own_part(x, sizes, rank) for x, sizes in zip(whole, (queries, keys, keys), strict=True))
    return tuple(part.detach().clone().requires_grad_() for part in parts)


class Part(NamedTuple):
    """This rank's part of a result: as it computed it, and as the unsplit reference has it."""

    ours: Tensor
    theirs: Tensor
    largest: float  # of all of the reference's result

    def error(self, ours: Tensor) -> float:
        """The largest error of other values for the same, relative to the largest value on any rank."""
        return (ours - self.theirs).abs().max().item() / self.largest


def split_and_whole(
    name: str, whole: tuple[Tensor, ...], dy: Tensor, queries: list[int], keys: list[int], rank: int,
    autocast: bool = False, **options: object,
) -> list[Part]:  # fmt: skip
    """y and the gradients."""
    own = leaves(whole, queries, keys, rank)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = getattr(sharded, name)(*own, **options, group=ranks.group())
    ours = [y.detach(), *torch.autograd.grad(y, own, own_part(dy, queries, rank).to(y.dtype))]
    whole = tuple(x.detach().clone().requires_grad_() for x in whole)
    y = getattr(equation, name)(*whole, **options)
    theirs = [y.detach(), *torch.autograd.grad(y, whole, dy.to(y.dtype))]
    sizes = (queries, queries, keys, keys)
    return [
        Part(a, own_part(b, part, rank), b.abs().max().item() if b.numel() else 0.0)
        for a, b, part in zip(ours, theirs, sizes, strict=True)
    ]


@contextmanager
def chunks_of(size: int) -> Iterator[None]:
    limits = dataclasses.replace(dispatch.THRESHOLDS, cpu_chunk_bytes=size, chunk_rows=1)
    before = dispatch.set_thresholds(limits)
    try:
        yield
    finally:
        dispatch.set_thresholds(before)


def case_float64_is_the_reference(rank: int, world: int) -> None:
    for name in NAMES:
        for queries, keys in layouts(world).values():
            for batch, d, channels in ((2, 3, 4), (1, 1, 1), (0, 3, 4), (3, 5, 37)):
                whole = inputs(name, batch, sum(queries), sum(keys), d, channels)
                dy = torch.randn(batch, sum(queries), channels, dtype=torch.float64)
                for ours, theirs, _ in split_and_whole(name, whole, dy, queries, keys, rank):
                    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def case_several_chunks_of_rows(rank: int, world: int) -> None:
    queries, keys = [31 + rank for rank in range(world)], [20 + 7 * rank for rank in range(world)]
    for chunk_bytes in (100, 500, 20_000):  # less than a row; some rows; several batch entries
        with chunks_of(chunk_bytes):
            whole = inputs("gaussian", 3, sum(queries), sum(keys), 4, 5)
            dy = torch.randn(3, sum(queries), 5, dtype=torch.float64)
            for ours, theirs, _ in split_and_whole("gaussian", whole, dy, queries, keys, rank, scale=0.7):
                torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def case_float32_stays_close_to_float64(rank: int, world: int) -> None:
    queries, keys = [300 + 31 * rank for rank in range(world)], [200 + 17 * rank for rank in range(world)]
    for name in NAMES:
        whole = inputs(name, 1, sum(queries), sum(keys), 64, 32, torch.float32)
        scaled = (whole[0] / 8, *whole[1:]) if name == "gaussian" else whole  # logits of variance 1
        dy = torch.randn(1, sum(queries), 32)
        ours = split_and_whole(name, scaled, dy, queries, keys, rank)
        exact = split_and_whole(name, tuple(x.double() for x in scaled), dy.double(), queries, keys, rank)
        for mine, truth, limit in zip(ours, exact, (2e-6, 2e-5, 2e-5, 2e-5), strict=True):
            assert truth.error(mine.ours) <= limit, name


def case_half_precision_is_no_further_from_float64_than_the_plain_form(rank: int, world: int) -> None:
    queries, keys = [70 + rank for rank in range(world)], [60 - rank for rank in range(world)]
    for name in NAMES:
        for dtype in (torch.float16, torch.bfloat16):
            whole = inputs(name, 1, sum(queries), sum(keys), 16, 8, dtype)
            dy = torch.randn(1, sum(queries), 8).to(dtype)
            ours = split_and_whole(name, whole, dy, queries, keys, rank)
            doubles = tuple(x.double() for x in whole)
            exact = split_and_whole(name, doubles, dy.double(), queries, keys, rank)
            for (mine, plain, _), (_, truth, _) in zip(ours, exact, strict=True):
                assert mine.dtype == dtype
                assert (mine.double() - truth).norm() <= (plain.double() - truth).norm(), name


def case_autocast_changes_nothing_inside(rank: int, world: int) -> None:
    sizes = [9 + rank for rank in range(world)]
    for name in NAMES:
        whole = inputs(name, 1, sum(sizes), sum(sizes), 16, 8, torch.float32)
        dy = torch.randn(1, sum(sizes), 8)
        outside = split_and_whole(name, whole, dy, sizes, sizes, rank)
        inside = split_and_whole(name, whole, dy, sizes, sizes, rank, autocast=True)
        for mine, plain in zip(inside, outside, strict=True):
            assert torch.equal(mine.ours, plain.ours)


def case_logits_of_ten_thousand_keep_their_differences(rank: int, world: int) -> None:
    sizes = [40 + rank for rank in range(world)]
    for dtype, limit in ((torch.float16, 1e-3), (torch.bfloat16, 4e-3), (torch.float32, 1e-3)):
        theta, phi, g, dy = (torch.randn(1, sum(sizes), 4).to(dtype) for _ in range(4))
        theta[..., 0] = phi[..., 0] = 100
        ours = split_and_whole("gaussian", (theta, phi, g), dy, sizes, sizes, rank)
        doubles = tuple(x.double() for x in (theta, phi, g))
        exact = split_and_whole("gaussian", doubles, dy.double(), sizes, sizes, rank)
        for mine, truth in zip(ours, exact, strict=True):
            assert truth.error(mine.ours) <= limit


def case_maxima_that_grow_and_shrink_along_the_ring(rank: int, world: int) -> None:
    """Each shard's logits lie hundreds above or below the others', so that one shard has all the weight."""
    sizes = [6] * world
    for heights in (range(world), range(world, 0, -1), [(3 * r) % world for r in range(world)]):
        theta, phi, g = (x.detach() for x in inputs("gaussian", 2, 6 * world, 6 * world, 3, 4))
        theta[..., 0] = 1
        for part, height in zip(phi.split(6, dim=1), heights, strict=True):
            part[..., 0] = 400.0 * height
        dy = torch.randn(2, 6 * world, 4, dtype=torch.float64)
        for ours, theirs, _ in split_and_whole("gaussian", (theta, phi, g), dy, sizes, sizes, rank):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)  # logits near 1e3


def case_keys_of_weight_zero_and_nan(rank: int, world: int) -> None:
    sizes = [4] * world
    theta, phi, g = (x.detach() for x in inputs("gaussian", 1, 4 * world, 4 * world, 2, 3))
    theta[..., 0] = 1
    phi[:, 4:, 0] = -torch.inf  # all keys but those of rank 0
    y = sharded.gaussian(*(own_part(x, sizes, rank) for x in (theta, phi, g)), group=ranks.group())
    expected = own_part(equation.gaussian(theta, phi[:, :4], g[:, :4]), sizes, rank)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for name in NAMES:
        for which in (0, 1):
            whole = [x.detach() for x in inputs(name, 1, 4 * world, 4 * world, 2, 3)]
            whole[which][0, 5] = torch.nan
            own = (own_part(x, sizes, rank) for x in whole)
            plain = own_part(getattr(equation, name)(*whole), sizes, rank)
            assert torch.equal(getattr(sharded, name)(*own, group=ranks.group()).isnan(), plain.isnan())


def case_concatenation_does_not_cancel(rank: int, world: int) -> None:
    sizes = [100 + 9 * rank for rank in range(world)]
    for offset in (0.0, 1e6, -1e6, 1e12):
        a = torch.randn(1, sum(sizes)).double().mul(50).add(offset).float()
        b = torch.randn(1, sum(sizes)).double().mul(50).sub(offset).float()
        g = torch.rand(1, sum(sizes), 4)
        own = (own_part(x, sizes, rank) for x in (a, b, g))
        exact = equation.concatenation(a.double(), b.double(), g.double())
        y = sharded.concatenation(*own, group=ranks.group()).double()
        truth = own_part(exact, sizes, rank)
        torch.testing.assert_close(y, truth, rtol=2e-6, atol=2e-6 * exact.max().item())


def case_positions_may_lie_in_any_order_in_memory(rank: int, world: int) -> None:
    for name in NAMES:
        whole = tuple(x.detach() for x in inputs(name, 2, 5 * world, 5 * world, 3, 4))
        own = [own_part(x, [5] * world, rank) for x in whole]
        channels_first = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in own]
        assert not all(x.is_contiguous() for x in channels_first)
        function = getattr(sharded, name)
        torch.testing.assert_close(
            function(*channels_first, group=ranks.group()), function(*own, group=ranks.group())
        )


def case_only_some_inputs_need_gradients(rank: int, world: int) -> None:
    sizes = [5 + rank for rank in range(world)]
    for name in NAMES:
        whole = inputs(name, 1, sum(sizes), sum(sizes), 3, 2)
        dy = torch.randn(1, sum(sizes), 2, dtype=torch.float64)
        _, *complete = split_and_whole(name, whole, dy, sizes, sizes, rank)
        for wanted in ([0], [1], [2], [0, 1], [1, 2], [0, 2]):
            own = leaves(whole, sizes, sizes, rank)
            for index, x in enumerate(own):
                x.requires_grad_(index in wanted)
            y = getattr(sharded, name)(*own, group=ranks.group())
            some = torch.autograd.grad(y, [own[i] for i in wanted], own_part(dy, sizes, rank))
            for index, gradient in zip(wanted, some, strict=True):
                torch.testing.assert_close(gradient, complete[index].theirs, rtol=1e-11, atol=1e-11)
        with torch.no_grad():
            assert not getattr(sharded, name)(*own, group=ranks.group()).requires_grad


def case_a_loss_on_one_rank_reaches_the_keys_of_all(rank: int, world: int) -> None:
    for name in NAMES:
        own = leaves(inputs(name, 1, 4 * world, 4 * world, 3, 2), [4] * world, [4] * world, rank)
        y = getattr(sharded, name)(*own, group=ranks.group())
        loss = y.square().sum() if rank == 0 else 0 * y.sum()
        queries, keys, g = torch.autograd.grad(loss, own)
        assert g.any()
        assert keys.any()
        assert bool(queries.any()) == (rank == 0)


def case_second_derivatives(rank: int, world: int) -> None:
    sizes = [3 + rank for rank in range(world)]
    for name in ("gaussian", "concatenation"):
        own = leaves(inputs(name, 1, sum(sizes), sum(sizes), 3, 2), sizes, sizes, rank)
        y = getattr(sharded, name)(*own, group=ranks.group())
        first = torch.autograd.grad(y.sum(), own, create_graph=True)
        assert raised(
            lambda grads=first: sum(x.sum() for x in grads).backward(), NotImplementedError
        ).startswith(f"{name} split over processes has first derivatives only")
    whole = inputs("dot_product", 1, sum(sizes), sum(sizes), 3, 2)

    def second(arguments: tuple[Tensor, ...], **options: object) -> tuple[Tensor, ...]:
        function = sharded.dot_product if options else equation.dot_product
        y = function(*arguments, **options)
        first = torch.autograd.grad(y.pow(3).sum(), arguments, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), arguments)

    ours, theirs = second(leaves(whole, sizes, sizes, rank), group=ranks.group()), second(whole)
    for mine, truth in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, own_part(truth, sizes, rank), rtol=1e-11, atol=1e-11)


def case_same_bits_on_repeated_runs(rank: int, world: int) -> None:
    sizes = [50 + rank for rank in range(world)]
    for name in NAMES:
        whole = inputs(name, 2, sum(sizes), sum(sizes), 8, 5, torch.float32)
        dy = torch.randn(2, sum(sizes), 5)
        runs = [split_and_whole(name, whole, dy, sizes, sizes, rank) for _ in range(3)]
        for first, *again in zip(*runs, strict=True):
            assert all(torch.equal(first.ours, other.ours) for other in again)


def case_no_tensor_is_larger_than_linear_in_the_shard(rank: int, world: int) -> None:
    positions, d, channels = 400, 8, 64
    shard = positions * channels * 4
    with chunks_of(shard // 4):
        for name in NAMES:
            whole = inputs(name, 1, positions * world, positions * world, d, channels, torch.float32)
            own = leaves(whole, [positions] * world, [positions] * world, rank)
            with LargestTensor() as largest:
                getattr(sharded, name)(*own, group=ranks.group()).sum().backward()
            # less than two shards of g and far less than positions x positions
            assert shard <= largest.bytes <= 1.5 * shard, (name, largest.bytes)


def case_groups_within_the_world(rank: int, world: int) -> None:
    """Each half of the processes is a group of its own: ranks in a group are not those in the world."""
    half = world // 2
    halves = [list(range(half)), list(range(half, world))]
    groups = [dist.new_group(ranks) for ranks in halves]
    which = rank // half
    own_group, place = groups[which], halves[which].index(rank)
    for name in NAMES:
        both = [inputs(name, 1, 5 * half, 4 * half, 3, 2) for _ in halves]
        own = leaves(both[which], [5] * half, [4] * half, place)
        y = getattr(sharded, name)(*own, group=own_group)
        expected = own_part(getattr(equation, name)(*both[which]), [5] * half, place)
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    other = groups[1 - which]
    words = raised(lambda: sharded.gaussian(*(torch.zeros(1, 2, 2),) * 3, group=other))
    assert "a process group that this process is a member of" in words, words


def raised(function: Callable[[], object], kind: type[Exception] = ValueError) -> str:
    try:
        function()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def case_bad_input_on_one_rank_is_an_error_on_all(rank: int, world: int) -> None:
    good = {
        "theta": torch.zeros(2, 5, 3), "phi": torch.zeros(2, 4, 3), "g": torch.zeros(2, 4, 2), "scale": 1.0,
    }  # fmt: skip
    wide = {"theta": torch.zeros(2, 5, 6), "phi": torch.zeros(2, 4, 6)}
    doubles = {name: x.double() for name, x in good.items() if isinstance(x, Tensor)}
    cases: list[tuple[dict[str, object], str]] = [
        ({"theta": torch.zeros(5, 3)}, f"rank 1 of {world}: expected .* tensors of rank 3, got theta (5, 3)"),
        ({"g": torch.zeros(2, 7, 2)}, f"rank 1 of {world}: g needs one row for each key of phi, got theta"),
        ({"g": doubles["g"]}, f"rank 1 of {world}: the inputs must share one floating-point dtype"),
        ({"phi": None}, f"rank 1 of {world}: 'NoneType' object has no attribute"),
        (wide, "the ranks must agree in d, got d=3 on rank 0 and d=6 on rank 1"),
        ({"g": torch.zeros(2, 4, 9)}, "agree in channels, got channels=2 on rank 0 and channels=9 on rank 1"),
        (doubles, "agree in dtype, got dtype=float32 on rank 0 and dtype=float64 on rank 1"),
        ({name: good[name][:1] for name in ("theta", "phi", "g")}, "agree in batch, got batch=2 on rank 0"),
        ({"g": torch.zeros(2, 4, 2, requires_grad=True)}, "agree in inputs that require gradients, got"),
        ({"scale": 0.5}, "agree in scale, got scale=1.0 on rank 0 and scale=0.5 on rank 1"),
        ({"scale": 1e400}, "agree in scale, got scale=1.0 on rank 0 and scale=inf on rank 1"),
    ]
    for change, words in cases:
        arguments = good | (change if rank == 1 else {})
        said = raised(lambda arguments=arguments: sharded.gaussian(**arguments, group=ranks.group()))
        assert all(part in said for part in words.split(" .* ")), said
        if "scale" not in change:
            arguments.pop("scale")
            said = raised(lambda arguments=arguments: sharded.dot_product(**arguments, group=ranks.group()))
            assert all(part in said for part in words.split(" .* ")), said
    scores = {"a": torch.zeros(2, 5), "b": torch.zeros(2, 4), "g": torch.zeros(2, 4, 2)}
    for change, words in (
        ({"b": torch.zeros(2, 3)}, f"rank 1 of {world}: g needs one row for each key of b"),
        ({"g": torch.zeros(2, 4, 5)}, "the ranks must agree in channels"),
        ({name: x.half() for name, x in scores.items()}, "the ranks must agree in dtype"),
    ):
        arguments = scores | (change if rank == 1 else {})
        assert words in raised(
            lambda arguments=arguments: sharded.concatenation(**arguments, group=ranks.group())
        )
    # another function; far too long an error; and then all is well again
    x = torch.zeros(2, 3, 3)
    wrong = sharded.dot_product if rank == 1 else sharded.gaussian
    assert "agree in function, got function=gaussian on rank 0" in raised(
        lambda: wrong(x, x, x, group=ranks.group())
    )
    long = torch.zeros([1] * 60 + [0]) if rank == 1 else x
    for _ in range(2):
        assert "rank 1 of" in raised(lambda: sharded.gaussian(long, long, long, group=ranks.group()))
    torch.testing.assert_close(sharded.gaussian(x, x, x + 1, group=ranks.group()), torch.ones(2, 3, 3))


def case_no_key_on_any_rank_is_an_error(rank: int, world: int) -> None:
    for name in NAMES:
        queries = torch.zeros(1, 2) if name == "concatenation" else torch.zeros(1, 2, 3)
        words = raised(
            lambda name=name, q=queries: getattr(sharded, name)(
                q, q[:, :0], torch.zeros(1, 0, 4), group=ranks.group()
            )
        )
        assert words == f"at least one key is needed to average over, got none on all {world} ranks"


def case_sum_gradients(rank: int, world: int) -> None:
    everywhere, only_first, nowhere = (torch.ones(3, requires_grad=True) for _ in range(3))
    double, frozen = torch.ones(2, 2, dtype=torch.float64, requires_grad=True), torch.ones(2)
    ((rank + 1) * everywhere).sum().backward()
    ((rank + 1) * double).sum().backward()
    if rank == 0:
        (5 * only_first).sum().backward()
    sharded.sum_gradients([everywhere, frozen, only_first, double, nowhere], ranks.group())
    total = world * (world + 1) / 2
    assert torch.equal(everywhere.grad, torch.full((3,), total))
    assert torch.equal(double.grad, torch.full((2, 2), total, dtype=torch.float64))
    assert torch.equal(only_first.grad, torch.full((3,), 5.0))
    assert nowhere.grad is None
    assert frozen.grad is None
    sharded.sum_gradients([], ranks.group())
    words = raised(lambda: sharded.sum_gradients([everywhere, double][: 1 + (rank == 1)], ranks.group()))
    assert (
        words == "the ranks must agree in parameters, got parameters=1 on rank 0 and parameters=2 on rank 1"
    )


if __name__ == "__main__":
    ranks.run_cases(sys.modules["__main__"])
