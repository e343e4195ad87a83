"""What activation checkpointing saves and costs: bytes held for the backward pass, and time of both passes.

python3 run.py bench recompute          i3d_r50_nl5 on one clip of 32 x 160 x 160

In turns, minimum of some rounds. Bytes are those of the storages that autograd keeps, weights left out.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

import nonlocal_nn as nl
from nonlocal_nn.training.recompute import recompute_stages

VARIANTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "res2, res3": ("res2", "res3"),
    "all": ("res2", "res3", "res4", "res5"),
}


def measure(model: nn.Module, clip: Tensor) -> tuple[float, int]:
    """Seconds of a forward and backward pass, and bytes held in between."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(clip)
    torch.autograd.backward(logits.square().sum())
    seconds = time.perf_counter() - start
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    return seconds, sum(size for place, size in held.items() if place not in weights)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="i3d_r50_nl5")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    clip = torch.randn(1, 3, options.frames, options.side, options.side)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    held: dict[str, int] = {}
    for _ in range(options.rounds):
        for name, stages in VARIANTS.items():
            torch.manual_seed(0)
            model = nl.create_model(options.model)
            recompute_stages(model, stages)
            spent, held[name] = measure(model, clip)
            seconds[name].append(spent)
    size = f"{options.frames} x {options.side} x {options.side}"
    print(f"{options.model}, {size}, {torch.get_num_threads()} threads")
    for name in VARIANTS:
        share, least = held[name] / held["none"], min(seconds[name])
        times = least / min(seconds["none"])
        print(f"recompute {name:11} {held[name] / 1e6:7.0f} MB ({share:.2f}), {least:6.2f} s ({times:.2f})")


if __name__ == "__main__":
    main()
