"""Squeeze-and-excitation, global context and self-attention beside timm's, Conv2d and the dense form.

    python3 run.py bench neighbours                    # the table: two threads (wall) and one (CPU)
    python3 run.py bench neighbours --rounds 3 --only attention

Calls take turns, and the least of the rounds counts; weights are copied, and outputs compared first. Maps of
three axes have no block in timm: there its formula with Conv3d stands in. Peaks of memory above the inputs
are those of a fresh process, in MB.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from timm.layers import GlobalContext, SEModule
from torch import Tensor, nn

import nonlocal_nn as nl
from _memory import resident_bytes

Call = Callable[[], object]

SHAPES = ((32, 256, 56, 56), (32, 2048, 7, 7), (8, 512, 4, 28, 28))
SIDES = (56, 112)


class Excitation3d(nn.Module):
    """timm's formula, for video."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv3d(channels, hidden, 1), nn.Conv3d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(torch.relu(self.fc1(x.mean((2, 3, 4), keepdim=True))))
        return x * gate.sigmoid()


def excitation(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    channels, hidden = shape[1], shape[1] // 16
    theirs = SEModule(channels, rd_channels=hidden) if len(shape) == 4 else Excitation3d(channels, hidden)
    ours = nl.SqueezeExcitation(channels, hidden=hidden)
    with torch.no_grad():
        for mine, other in ((ours.W_1, theirs.fc1), (ours.W_2, theirs.fc2)):
            mine.weight.copy_(other.weight.flatten(1))
            mine.bias.copy_(other.bias)
    return {"nonlocal_nn": ours, "timm": theirs}


def context(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    channels, hidden = shape[1], shape[1] // 16
    theirs = GlobalContext(channels, rd_channels=hidden, fuse_add=True, fuse_scale=False)
    ours = nl.GlobalContext(channels, hidden=hidden)
    assert ours.add is not None
    assert ours.w_k is not None
    assert isinstance(ours.add.norm, nn.LayerNorm)
    ours.add.norm.eps = 1e-6
    with torch.no_grad():
        nn.init.normal_(theirs.mlp_add.fc2.weight, std=0.1)
        ours.w_k.copy_(theirs.conv_attn.weight.flatten())
        for mine, other in ((ours.add.W_v1, theirs.mlp_add.fc1), (ours.add.W_v2, theirs.mlp_add.fc2)):
            mine.weight.copy_(other.weight.flatten(1))
            mine.bias.copy_(other.bias)
    return {"nonlocal_nn": ours, "timm": theirs}


class Dense(nn.Module):
    """The same layer with its heads x N x N weights."""

    def __init__(self, layer: nl.SelfAttention2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.layer._axes(x, tuple(x.shape[2:]))
        scores = (rows[:, :, None, :, None] + columns[:, None, :, None, :]).flatten(3).flatten(1, 2)
        values = torch.einsum("hoi,bik->bhok", self.layer.value, x.flatten(2))
        y = torch.einsum("bhok,hqk->boq", values, scores.softmax(2)).view(x.shape)
        return y + self.layer.bias[:, None, None]


def attention() -> dict[str, nn.Module]:
    ours = nl.SelfAttention2d(64, 64, 9)
    return {"nonlocal_nn": ours, "Conv2d 3x3": nn.Conv2d(64, 64, 3, padding=1), "dense": Dense(ours)}


def cases() -> dict[str, tuple[Callable[[], dict[str, nn.Module]], tuple[int, ...], str]]:
    """Name -> modules, shape, pass."""
    found: dict[str, tuple[Callable[[], dict[str, nn.Module]], tuple[int, ...], str]] = {}
    for shape in SHAPES:
        size = "x".join(map(str, shape))
        for part in ("inference", "with shortcut and ReLU", "forward + backward"):
            found[f"SE {size}, {part}"] = (lambda shape=shape: excitation(shape), shape, part)
        if len(shape) == 4:
            for part in ("inference", "forward + backward"):
                found[f"GC {size}, {part}"] = (lambda shape=shape: context(shape), shape, part)
    for side in SIDES:
        for part in ("inference", "forward + backward"):
            found[f"attention {side}x{side}, {part}"] = (attention, (1, 64, side, side), part)
    return found


def calls(name: str) -> dict[str, Call]:
    """Those of a case; outputs of the first two that should agree are compared."""
    make, shape, part = cases()[name]
    torch.manual_seed(0)
    modules, x = make(), torch.randn(shape)
    shortcut, dy = torch.randn(shape), torch.randn(shape)
    if name.startswith("attention 112"):
        modules.pop("dense")  # 10 GB
    with torch.no_grad():
        other = modules.get("timm") or modules.get("dense")
        if other is not None:
            torch.testing.assert_close(modules["nonlocal_nn"](x), other(x), rtol=1e-3, atol=1e-3)

    def of(module: nn.Module) -> Call:
        if part == "forward + backward":
            leaves = [x.clone().requires_grad_(), *(p for p in module.parameters() if p.requires_grad)]
            return lambda: torch.autograd.grad(module(leaves[0]), leaves, dy)
        module.requires_grad_(False)
        if part == "inference":
            return lambda: module(x)
        if isinstance(module, nl.SqueezeExcitation):
            return lambda: torch.relu_(module(x, shortcut))
        return lambda: torch.relu(module(x) + shortcut)

    return {who: of(module) for who, module in modules.items()}


def measured(name: str, rounds: int, threads: int) -> dict[str, tuple[float, float]]:
    """Who -> least wall and CPU seconds."""
    torch.set_num_threads(threads)
    found = calls(name)
    best: dict[str, tuple[float, float]] = {}
    for call in found.values():
        call()
    for _ in range(rounds):
        for who, call in found.items():
            gc.collect()
            wall, used = time.perf_counter(), time.process_time()
            call()
            took = (time.perf_counter() - wall, time.process_time() - used)
            best[who] = tuple(map(min, best.get(who, took), took))  # type: ignore[assignment]
    return best


def peak(name: str, who: str) -> float:
    """MB above what is there before the call, in this process."""
    torch.set_num_threads(1)
    call = calls(name)[who]
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    kept = call()
    del kept
    return (resident_bytes("VmHWM") - before) / 1e6


def in_fresh_process(*words: str) -> str:
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--times-of", nargs=2, metavar=("CASE", "THREADS"), help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", nargs=2, metavar=("CASE", "WHO"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.times_of:
        print(json.dumps(measured(given.times_of[0], given.rounds, int(given.times_of[1]))))
        return
    if given.peak_of:
        print(peak(*given.peak_of))
        return
    table = Table("case", "", "2 threads: wall ms", "ours / it", "1 thread: CPU ms", "ours / it", "peak MB")
    for name in (name for name in cases() if name.startswith(given.only)):
        words = ("--rounds", str(given.rounds), "--times-of", name)
        two, one = (json.loads(in_fresh_process(*words, threads)) for threads in ("2", "1"))
        for who in two:
            cells = [f"{1e3 * two[who][0]:.2f}", f"{two['nonlocal_nn'][0] / two[who][0]:.2f}"]
            cells += [f"{1e3 * one[who][1]:.2f}", f"{one['nonlocal_nn'][1] / one[who][1]:.2f}"]
            table.add_row(name, who, *cells, f"{float(in_fresh_process('--peak-of', name, who)):.0f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
