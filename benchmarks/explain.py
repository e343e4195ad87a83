"""What looking costs: one query of one block as a share of the forward pass, its memory, and a whole page.

    python benchmarks/explain.py                  # i3d_r50_nl5, a query at 32x224x224, a page at 8x224x224
    python benchmarks/explain.py --part query
    python benchmarks/explain.py --part page

Limits: a query (theta and phi of the block, and one row) less than 10 % of the forward pass, with memory in
proportion to the positions; the page less than 30 s on two cores and 10 MB. Prints a table; exit code 1
where a limit is missed. Linux, for the memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import nonlocal_nn as nl
from _memory import resident_bytes
from nonlocal_nn.explain.capture.affinity import BlockAffinity, capture
from nonlocal_nn.explain.explorer import write_explorer

QUERY_SHARE, PAGE_SECONDS, PAGE_BYTES = 0.10, 30.0, 10_000_000


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="i3d_r50_nl5")
    parser.add_argument("--part", choices=("query", "page", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=2, help="of the forward pass; the median counts")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = nl.create_model(arguments.model).eval()
    passed = True
    if arguments.part in ("query", "all"):
        passed &= query(model, arguments.rounds)
    if arguments.part in ("page", "all"):
        passed &= page(model)
    return 0 if passed else 1


def query(model: torch.nn.Module, rounds: int) -> bool:
    """The table of one query for each block; whether all stay under the limit."""
    clip = torch.randn(1, 3, 32, 224, 224)
    inputs: dict[str, torch.Tensor] = {}
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, nl.NonLocalBlock)}
    with torch.no_grad():
        model(clip)
        forward = median(lambda: model(clip), rounds)
        captured_seconds = median(lambda: capture(model, clip), rounds)
        handles = [
            block.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
            for name, block in blocks.items()
        ]
        captured = capture(model, clip)
        for handle in handles:
            handle.remove()
    table = Table(title=f"32x224x224: forward pass {forward:.2f} s, captured {captured_seconds:.2f} s")
    columns = (
        "block",
        "positions x keys",
        "theta, phi ms",
        "one row ms",
        "share %",
        "row memory MB",
        "all of f/C MB",
    )
    for column in columns:
        table.add_column(column, justify="right")
    passed = True
    for name, found in captured.blocks.items():
        x = inputs[name]
        embed = median(lambda x=x, name=name: blocks[name].embeddings(x), 5)
        centre = [found.queries.positions // 2]
        row = median(lambda found=found, centre=centre: found.rows(centre), 9)
        memory = peak_of(found, centre)
        share = (embed + row) / forward
        passed &= share < QUERY_SHARE
        whole = found.queries.positions * found.keys.positions * 4 / 1e6
        table.add_row(
            name,
            f"{found.queries.positions} x {found.keys.positions}",
            f"{1000 * embed:.1f}",
            f"{1000 * row:.2f}",
            f"{100 * share:.2f}",
            f"{memory / 1e6:.1f}",
            f"{whole:.1f}",
        )
    Console(width=140).print(table)
    return passed


def page(model: torch.nn.Module) -> bool:
    """The time from a clip to the file, and its size."""
    clip = torch.randn(1, 3, 8, 224, 224).clamp(-1.9, 2.4)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        captured = capture(model, clip, title="noise.mp4")
        between = time.perf_counter()
        file = write_explorer(captured, Path(folder) / "page.html")
        end = time.perf_counter()
        size = file.stat().st_size
    print(
        f"page at 8x224x224: {end - start:.2f} s (capture {between - start:.2f}, page {end - between:.2f}), "
        f"{size / 1e6:.2f} MB"
    )
    return end - start < PAGE_SECONDS and size < PAGE_BYTES


def median(run: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peak_of(found: BlockAffinity, positions: list[int]) -> int:
    """Bytes that a row takes at its highest, beside what was kept before."""
    start = resident_bytes("VmRSS", reset=True)
    found.rows(positions)
    return max(0, resident_bytes("VmHWM") - start)


if __name__ == "__main__":
    sys.exit(main())
