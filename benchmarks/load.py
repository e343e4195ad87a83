"""What loading a full-size i3d_r50_nl5 costs beside `torch.load` of the same weights.

    python benchmarks/load.py
    python benchmarks/load.py --out load.json

For each layout a fresh process notes its memory, loads the file, and notes the high-water mark: its growth
over the bytes of the weights is the memory ratio, and must not pass 2. Then, in the same process,
`torch.load` and `nonlocal_nn.load_model` take turns; the fastest round of each gives the time ratio, which
must stay under 2.
For layouts that torch.load cannot read (Caffe2's pickle, our safetensors), it reads the same tensors from a
.pth file. Exit code 1 if a limit is passed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _memory import resident_bytes

MEMORY_LIMIT, TIME_LIMIT = 2.0, 2.0
LAYOUTS = {"native": "embedding", "pyslowfast": "input", "caffe2": "input", "mmaction2": "embedding"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="i3d_r50_nl5", help="of the catalog (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing (default %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(Path(arguments.child[0]), Path(arguments.child[1]), arguments.rounds)))
        return 0

    results: dict[str, Any] = {"model": arguments.model, "machine": platform.platform(), "layouts": {}}
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        for layout in LAYOUTS:
            file, plain = write(arguments.model, layout, Path(folder))
            command = [sys.executable, __file__, "--rounds", str(arguments.rounds), "--child"]
            done = subprocess.run(
                [*command, str(file), str(plain)], check=True, capture_output=True, text=True
            )
            row = json.loads(done.stdout.splitlines()[-1])
            results["layouts"][layout] = row
            passed &= row["memory_ratio"] <= MEMORY_LIMIT and row["time_ratio"] < TIME_LIMIT
            print(
                f"{layout:10} memory {row['memory_ratio']:.2f} x weights ({row['weights_mb']:.0f} MB), "
                f"time {row['time_ratio']:.2f} x torch.load ({row['torch_load_seconds']:.2f} s)"
            )
            file.unlink()
    results["passed"] = passed
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if passed else 1


def write(name: str, layout: str, folder: Path) -> tuple[Path, Path]:
    """The file in its layout, and the file that torch.load reads in comparison."""
    import torch

    import nonlocal_nn as nl
    from nonlocal_nn.checkpoints.export import export_model

    model = nl.create_model(name, subsample_at=LAYOUTS[layout], stem="slowfast")
    for module in model.modules():
        if isinstance(module, nl.NonLocalBlock) and module.norm is not None:
            torch.nn.init.ones_(module.norm.weight)  # switched-off blocks would be warned of
    file = folder / f"model.{layout}"
    export_model(model, file, layout)
    plain = folder / "plain.pth"
    torch.save(model.state_dict(), plain)
    return file, file if layout in ("pyslowfast", "mmaction2") else plain


def measure(file: Path, plain: Path, rounds: int) -> dict[str, float]:
    """In a fresh process: memory first, then time."""
    import torch

    import nonlocal_nn as nl

    with tempfile.TemporaryDirectory() as folder:  # everything is imported before memory is looked at
        small = nl.create_model("c2d_tiny_nl1", num_classes=2)
        torch.nn.init.ones_(small.get_parameter("res3.nonlocal0.norm.weight"))
        nl.save_model(small, Path(folder) / "small.safetensors")
        nl.load_model(Path(folder) / "small.safetensors")
        torch.load(plain, weights_only=True, mmap=True)
    start = resident_bytes("VmRSS", reset=True)
    model = nl.load_model(file, stem=None if file.suffix == ".native" else "slowfast")
    peak = resident_bytes("VmHWM") - start
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    del model
    ours, theirs = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        state = torch.load(plain, map_location="cpu", weights_only=True)
        theirs.append(time.perf_counter() - begin)
        del state
        begin = time.perf_counter()
        model = nl.load_model(file, stem=None if file.suffix == ".native" else "slowfast")
        ours.append(time.perf_counter() - begin)
        del model
    return {
        "weights_mb": weights / 1e6,
        "peak_mb": peak / 1e6,
        "memory_ratio": peak / weights,
        "load_model_seconds": min(ours),
        "torch_load_seconds": min(theirs),
        "time_ratio": min(ours) / min(theirs),
        "rounds": rounds,
    }


if __name__ == "__main__":
    sys.exit(main())
