"""Outputs and gradients of the library as a user reaches them, to compare two versions of it bit for bit.

    python -m tests.freeze.numbers record OUT.pt        with the one version on PYTHONPATH, then the other
    python -m tests.freeze.numbers compare OLD.pt NEW.pt

Bits depend on the processor and the number of threads, so that these numbers are no files of the repository:
record both versions on one machine. `compare` lists what is not equal, with the largest error relative to the
largest number, and ends with 1 if anything is.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
import torch.distributed as dist
from torch import Tensor

import nonlocal_nn as nl

FUNCTIONS = ("gaussian", "gaussian of itself", "dot_product", "concatenation")
# batch, queries, keys, d, channels
SIZES = {
    "one position": (1, 1, 1, 1, 1),
    "odd": (2, 7, 5, 3, 2),
    "7x7": (2, 49, 49, 64, 64),
    "14x14 pooled": (4, 196, 49, 64, 64),
    "28x28": (1, 784, 784, 64, 64),
    "res4": (1, 784, 196, 512, 512),
    "res4 of 16 frames": (1, 3136, 784, 128, 128),
    "long rows": (1, 700, 5000, 16, 16),
    "longest rows": (1, 600, 25000, 8, 8),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def operands(function: str, size: tuple[int, ...], dtype: torch.dtype, layout: str) -> list[Tensor]:
    batch, queries, keys, d, channels = size
    torch.manual_seed(sum(size))

    def make(positions: int, width: int) -> Tensor:
        if layout == "maps":
            return torch.randn(batch, width, positions).to(dtype).mT
        return torch.randn(batch, positions, width).to(dtype)

    theta, phi, g = make(queries, d) * d**-0.5, make(keys, d), make(keys, channels)
    if function == "concatenation":
        return [theta[:, :, 0].clone(), phi[:, :, 0].clone(), g]
    return [phi, g] if function == "gaussian of itself" else [theta, phi, g]


def call(function: str, tensors: list[Tensor], **options: int | None) -> Tensor:
    if function == "gaussian of itself":
        return nl.functional.gaussian(tensors[0], tensors[0], tensors[1], **options)
    return getattr(nl.functional, function)(*tensors, **options)


def with_gradients(run: Callable[[list[Tensor]], Tensor], tensors: list[Tensor]) -> dict[str, Tensor]:
    leaves = [tensor.clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]
    y = run(leaves)
    torch.manual_seed(1)
    grads = torch.autograd.grad(y, leaves, torch.randn(y.shape).to(y.dtype))
    return {"y": y.detach(), **{f"gradient {n}": grad for n, grad in enumerate(grads)}}


def operators() -> Iterator[tuple[str, dict[str, Tensor]]]:
    for function in FUNCTIONS:
        for name, size in SIZES.items():
            for dtype in DTYPES:
                if dtype != torch.float32 and name in ("28x28", "res4 of 16 frames", "longest rows"):
                    continue
                for layout in ("rows", "maps"):
                    key = f"{function} / {name} / {dtype} / {layout}"
                    tensors = operands(function, size, dtype, layout)
                    yield f"{key} / inference", {"y": call(function, tensors)}
                    yield key, with_gradients(lambda x, f=function: call(f, x), tensors)
                if "gaussian" in function and dtype == torch.float32:
                    for budget in (0, 100_000):
                        made = with_gradients(
                            lambda x, f=function, b=budget: call(f, x, memory_budget=b), tensors
                        )
                        yield f"{function} / {name} / budget {budget}", made


def transforms() -> Iterator[tuple[str, dict[str, Tensor]]]:
    for function in FUNCTIONS:
        for name in ("odd", "14x14 pooled"):
            tensors = operands(function, SIZES[name], torch.float32, "rows")

            def run(x: list[Tensor], f: str = function) -> Tensor:
                return torch.compile(lambda *inputs: call(f, list(inputs)), fullgraph=True)(*x)

            yield f"{function} / {name} / compile", with_gradients(run, tensors)
            stacked = [torch.stack([tensor, 2 * tensor]) for tensor in tensors]
            mapped = torch.func.vmap(lambda *inputs, f=function: call(f, list(inputs)))
            yield f"{function} / {name} / vmap", {"y": mapped(*stacked)}
            if name == "odd":
                leaves = [x.double().requires_grad_() for x in tensors]
                y = call(function, leaves)
                first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
                second = torch.autograd.grad(sum(grad.square().sum() for grad in first), leaves)
                yield f"{function} / second derivatives", {str(n): x for n, x in enumerate(second)}


BLOCKS: dict[str, dict[str, object]] = {
    "default": {},
    "gaussian": {"pairwise": "gaussian", "scale": True},
    "dot": {"pairwise": "dot_product", "scale": True},
    "concatenation": {"pairwise": "concatenation", "norm": None},
    "input": {"subsample_at": "input", "scale": True},
    "whole": {"subsample": False},
    "space": {"span": "space"},
    "time": {"span": "time", "pairwise": "dot_product"},
    "groups": {"temporal_groups": 2, "pairwise": "concatenation"},
    "released": {"init": "released", "norm": "frozen"},
    "2d": {"dims": 2},
    "1d": {"dims": 1, "pairwise": "gaussian"},
}


def _block(options: dict[str, object]) -> nl.NonLocalBlock:
    torch.manual_seed(3)
    block = nl.NonLocalBlock(16, **options)  # type: ignore[arg-type]
    if block.norm is not None:
        block.norm.weight.data.fill_(0.7)
    else:
        torch.nn.init.normal_(block.W_z.weight)
    return block


def blocks() -> Iterator[tuple[str, dict[str, Tensor]]]:
    for name, options in BLOCKS.items():
        for dtype in (torch.float32, torch.bfloat16):
            block = _block(options).to(dtype)
            torch.manual_seed(4)
            x = torch.randn(2, 16, *(4, 6, 8)[-block.dims :]).to(dtype)
            made = with_gradients(lambda inputs, b=block: b(inputs[0]), [x])
            y = block(x)
            parameters = torch.autograd.grad(y.float().square().sum(), list(block.parameters()))
            made |= {str(n): gradient for n, gradient in enumerate(parameters)}
            yield f"block {name} / {dtype}", made
            rows = block.affinity(x, torch.tensor([0, 3, 7]))
            yield f"block {name} / {dtype} / affinity", {"rows": rows}
    torch.manual_seed(5)
    model = nl.create_model("c2d_tiny_nl2", num_classes=4)
    x = torch.randn(2, 3, 8, 48, 48)
    y = model(x)
    y.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    yield "model", {"y": y.detach(), **grads}


def split(rank: int, folder: str) -> None:
    """A rank of two: what operators and a block give for its half."""
    dist.init_process_group("gloo", init_method=(Path(folder) / "meet").as_uri(), rank=rank, world_size=2)
    torch.set_num_threads(1)
    made = {}
    group = dist.group.WORLD
    for function in ("gaussian", "dot_product", "concatenation"):
        for dtype in (torch.float32, torch.bfloat16):
            tensors = operands(function, (1, 300, 200, 16, 8), dtype, "rows")
            own = [tensor.chunk(2, dim=1)[rank].contiguous() for tensor in tensors]
            sharded = getattr(nl.functional.sharded, function)
            made[f"{function} / {dtype}"] = with_gradients(lambda x, s=sharded: s(*x, group=group), own)
    for name in ("default", "gaussian", "dot", "concatenation"):
        for dtype in (torch.float32, torch.bfloat16):
            block = _block({**BLOCKS[name], "norm": None}).to(dtype).shard_over(group)
            torch.manual_seed(4)
            x = torch.randn(2, 16, 4, 6, 8).to(dtype).chunk(2, dim=2)[rank].contiguous()
            made[f"block {name} / {dtype}"] = with_gradients(lambda inputs, b=block: b(inputs[0]), [x])
    torch.save(made, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def sharded() -> Iterator[tuple[str, dict[str, Tensor]]]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(split, (folder,), nprocs=2)
        for rank in range(2):
            for name, made in torch.load(Path(folder) / f"{rank}.pt").items():
                yield f"split, rank {rank} / {name}", made


def record(path: Path) -> None:
    made = {}
    for part in (operators, transforms, blocks, sharded):
        for name, tensors in part():
            made[name] = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    torch.save(made, path)
    print(f"{len(made)} calls of {nl.__file__}")


def compare(old: Path, new: Path) -> int:
    before, after = torch.load(old), torch.load(new)
    different = 0
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            print(f"{name}: only in {'new' if name in after else 'old'}")
            different += 1
            continue
        worst = 0.0
        equal = before[name].keys() == after[name].keys()
        for key in before[name]:
            x, y = before[name][key], after[name].get(key)
            if y is None or not torch.equal(x, y):
                equal = False
                if y is not None and x.shape == y.shape:
                    error = (x.double() - y.double()).abs().max() / x.double().abs().max().clamp(min=1e-30)
                    worst = max(worst, error.item())
        if not equal:
            print(f"{name}: {worst:.1e}")
            different += 1
    print(f"{different} of {len(before)} differ")
    return int(different > 0)


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    if what == "record":
        record(Path(paths[0]))
    else:
        sys.exit(compare(*map(Path, paths)))
