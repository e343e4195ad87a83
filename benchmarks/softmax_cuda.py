"""The softmax average on a GPU: every way to compute it, side by side.

    python3 run.py bench softmax_cuda                     # all shapes and types, a few minutes
    python3 run.py bench softmax_cuda --shapes res4 --dtypes bfloat16 --ways plain half flash

For each shape and type: time of forward and of forward + backward (the least and the median of --runs, taken
in turns: every way once, then every way again), the peak of memory beside the inputs, and the error of y
against float64. Prints tables and the order of speed; writes all of it to --out
after each shape. Without a CUDA GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from nonlocal_nn._files import write_whole
from nonlocal_nn.ops.softmax import SoftmaxAverage

Average = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Shape(NamedTuple):
    positions: int
    d: int
    channels: int
    what: str


SHAPES = {
    "res2": Shape(32 * 56 * 56, 128, 128, "32x56x56, embedded gaussian"),
    "res3": Shape(32 * 28 * 28, 256, 256, "32x28x28, embedded gaussian"),
    "res4": Shape(32 * 14 * 14, 512, 512, "32x14x14, embedded gaussian"),
    "gaussian": Shape(32 * 14 * 14, 1024, 512, "32x14x14, gaussian"),
    "long": Shape(64 * 56 * 56, 64, 64, "64x56x56"),
}
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
PASSES = ("forward", "forward + backward")
CHOICES = ("rows", "half", "flash", "efficient")  # the forms of ops/dispatch.py


# --- the ways ---


def plain(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    """What a non-local block usually does."""
    return (scale * (theta @ phi.transpose(1, 2))).softmax(dim=2) @ g


def rows(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    work = torch.float32
    y: Tensor = SoftmaxAverage.apply(theta.to(work), phi.to(work), g.to(work), scale, "linear", None)[0]
    return y.to(g.dtype)


def attention(backend: SDPBackend) -> Average:
    def average(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
        with sdpa_kernel([backend]):
            return scaled_dot_product_attention(theta[:, None], phi[:, None], g[:, None], scale=scale)[:, 0]

    return average


class _SameBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
        ctx.inputs = [x.detach().requires_grad_() for x in (theta, phi, g)]
        with torch.enable_grad():
            ctx.y = attention(SDPBackend.FLASH_ATTENTION)(*ctx.inputs, scale)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        torch.use_deterministic_algorithms(True)
        try:
            return (*torch.autograd.grad(ctx.y, ctx.inputs, dy), None)
        finally:
            torch.use_deterministic_algorithms(False)


def flash_same_bits(theta: Tensor, phi: Tensor, g: Tensor, scale: float) -> Tensor:
    """Flash with a backward pass under `torch.use_deterministic_algorithms(True)`."""
    y: Tensor = _SameBits.apply(theta, phi, g, scale)
    return y


def flex() -> Average:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda theta, phi, g, scale: compiled(theta[:, None], phi[:, None], g[:, None], scale=scale)[:, 0]


def ways() -> dict[str, Average]:
    """Name -> way."""
    return {
        "plain": plain,
        "rows": rows,
        "half": half,
        "flash": attention(SDPBackend.FLASH_ATTENTION),
        "flash, same bits": flash_same_bits,
        "efficient": attention(SDPBackend.EFFICIENT_ATTENTION),
        "cudnn": attention(SDPBackend.CUDNN_ATTENTION),
        "flex": flex(),
    }


# --- measuring ---


def measure(
    shape: Shape,
    kind: str,
    found: dict[str, Average],
    runs: int,
    device: torch.device,
    tick: Callable[[], None],
) -> dict[str, dict[str, Any]]:
    """Name -> {"error": ..., a pass: {"ms": ..., ...}} or {"failed": why}."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    sizes = (shape.d, shape.d, shape.channels, shape.channels)
    theta, phi, g, dy = (
        torch.randn(1, shape.positions, size, device=device).to(DTYPES[kind]) for size in sizes
    )
    inputs = [x.requires_grad_() for x in (theta, phi, g)]
    scale = shape.d**-0.5
    results: dict[str, dict[str, Any]] = {}
    for name, way in found.items():  # once to compile, for the error and for the memory
        results[name] = try_way(way, inputs, dy, scale, device)
        tick()
    times: dict[tuple[str, str], list[float]] = {
        (name, part): [] for name, result in results.items() for part in PASSES if part in result
    }
    for _ in range(runs):
        for (name, part), seconds in times.items():
            seconds.append(timed(found[name], inputs, dy, scale, part, device))
            tick()
    for (name, part), seconds in times.items():
        results[name][part] |= {"ms": min(seconds) * 1e3, "median_ms": statistics.median(seconds) * 1e3}
    return results


def run_once(way: Average, inputs: list[Tensor], dy: Tensor, scale: float, part: str) -> Tensor:
    theta, phi, g = inputs
    if part == "forward":
        with torch.no_grad():
            return way(theta, phi, g, scale)
    y = way(theta, phi, g, scale)
    torch.autograd.grad(y, inputs, dy)
    return y.detach()


def timed(
    way: Average, inputs: list[Tensor], dy: Tensor, scale: float, part: str, device: torch.device
) -> float:
    synchronize(device)
    start = time.perf_counter()
    run_once(way, inputs, dy, scale, part)
    synchronize(device)
    return time.perf_counter() - start


def try_way(
    way: Average, inputs: list[Tensor], dy: Tensor, scale: float, device: torch.device
) -> dict[str, Any]:
    """The memory of each pass that runs, the error, and why the first one that does not run does not."""
    result: dict[str, Any] = {}
    for part in PASSES:
        try:
            y = run_once(way, inputs, dy, scale, part)  # compiles
            if part == PASSES[0]:
                result["error"] = error(y, inputs, scale)
            del y
            before = memory(device, reset=True)
            run_once(way, inputs, dy, scale, part)
            result[part] = {"peak_mb": (memory(device) - before) / 1e6}
        except Exception as why:  # a kernel that does not take the shape raises whatever it likes
            lines = str(why).strip().splitlines() or [""]
            result["failed"] = f"{part}: {type(why).__name__}: {lines[0]}"[:200]
        if "failed" in result:
            break
    if device.type == "cuda":
        torch.cuda.empty_cache()  # after the exception, which holds what was allocated, is gone
    return result


def error(y: Tensor, inputs: list[Tensor], scale: float) -> float:
    """Largest difference from float64 in some of the rows, relative to the largest number there."""
    theta, phi, g = (x.detach() for x in inputs)
    some = torch.linspace(0, theta.shape[1] - 1, min(128, theta.shape[1]), device=theta.device).long()
    exact = plain(theta[:, some].double(), phi.double(), g.double(), scale)
    return ((y[:, some].double() - exact).abs().max() / exact.abs().max()).item()


def memory(device: torch.device, reset: bool = False) -> int:
    if device.type != "cuda":
        return 0
    synchronize(device)
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return torch.cuda.max_memory_allocated(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- saying it ---


def fastest(results: dict[str, dict[str, Any]], part: str, among: tuple[str, ...] | None = None) -> list[str]:
    names = [name for name, result in results.items() if part in result and (not among or name in among)]
    return sorted(names, key=lambda name: results[name][part]["ms"])


def table(title: str, results: dict[str, dict[str, Any]]) -> Table:
    made = Table(title=title, title_justify="left")
    made.add_column("")
    for part in PASSES:
        for column in (f"{part}, ms", "of plain", "peak MB"):
            made.add_column(column, justify="right")
    made.add_column("error of y", justify="right")
    for name, result in results.items():
        cells, best = [], False
        for part in PASSES:
            if part not in result:
                cells += ["-"] * 3
                continue
            ms = result[part]["ms"]
            base = results.get("plain", {}).get(part)
            cells += [
                f"{ms:.3f}",
                f"{base['ms'] / ms:.2f}x" if base else "",
                f"{result[part]['peak_mb']:.0f}",
            ]
            best = best or name == fastest(results, part)[0]
        cells.append(f"{result['error']:.1e}" if "error" in result else "-")
        made.add_row(name, *cells, style="bold" if best else "")
    return made


def order_of_speed(kind: str, shape: Shape, results: dict[str, dict[str, Any]], card: str) -> str:
    """The forms of ops/dispatch.py that ran, the fastest first, with what that rests on."""
    order = fastest(results, PASSES[1], CHOICES)
    times = ", ".join(f"{name} {results[name][PASSES[1]]['ms']:.1f} ms" for name in order)
    width = max(shape.d, shape.channels)
    return f"{card}, {kind}, N {shape.positions}, d {width}, forward + backward: {times}" if order else ""


def machine(device: torch.device) -> dict[str, Any]:
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    return {
        "card": torch.cuda.get_device_name(device),
        "capability": torch.cuda.get_device_capability(device),
        "memory_gb": round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": version,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(f"{name} ({shape.what}, d {shape.d})" for name, shape in SHAPES.items())
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help=f"of: {names}")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=["float32", "tf32", "bfloat16"],
        help="float32 multiplies exactly, tf32 float32 in TF32 (default: float32 tf32 bfloat16)",
    )
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="of the tables' first column (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="how often each is timed (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/softmax_cuda.json"))
    given = parser.parse_args()
    if given.runs < 1:
        parser.error(f"--runs must be at least 1, got {given.runs}")
    if not torch.cuda.is_available():
        print("softmax_cuda: no CUDA GPU here, nothing to measure")
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    report: dict[str, Any] = {"machine": machine(device), "runs": given.runs, "measured": []}
    console = Console()
    console.print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    try:
        for shape_name in given.shapes:
            for kind in given.dtypes:
                one_case(shape_name, kind, given.runs, device, report, console, given.ways)
                write_whole(given.out, lambda path: path.write_text(json.dumps(report, indent=2) + "\n"))
    except KeyboardInterrupt:
        console.print("stopped; what was measured is kept")
    for case in report["measured"]:
        if case["order"]:
            console.print(case["order"], markup=False, highlight=False, soft_wrap=True)
    if report["measured"]:
        console.print(f"written to {given.out}")
    return 0


def one_case(
    name: str,
    kind: str,
    runs: int,
    device: torch.device,
    report: dict[str, Any],
    console: Console,
    only: list[str] | None = None,
) -> None:
    """Measure one shape in one type, print it and add it to the report."""
    shape, found = SHAPES[name], ways()
    if only is not None:
        found = {way: average for way, average in found.items() if way in only}
    title = f"{name}: {shape.what}, N {shape.positions}, d {shape.d}, channels {shape.channels}, {kind}"
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"{name}, {kind}", total=len(found) * (1 + runs * len(PASSES)))
        results = measure(shape, kind, found, runs, device, lambda: progress.advance(task))
    console.print(table(title, results))
    for way, result in results.items():
        if "failed" in result:
            console.print(f"  {way}, {result['failed']}", markup=False, highlight=False, soft_wrap=True)
    card = report["machine"]["card"]
    report["measured"].append(
        {"shape": name, **shape._asdict(), "dtype": kind, "results": results}
        | {"fastest": {part: next(iter(fastest(results, part)), None) for part in PASSES}}
        | {"order": order_of_speed(kind, shape, results, card)}
    )


if __name__ == "__main__":
    sys.exit(main())
