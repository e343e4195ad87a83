"""What one non-local block costs a detector: time and peak memory of inference and of a training step.

    python3 run.py bench detection                         # Mask R-CNN R50 at 320 and 800 pixels
    python3 run.py bench detection --device cuda --detector mask_rcnn_r101 --rounds 10

Both detectors have the same weights (a new block changes no detection), and take turns in one process; the
fastest of several rounds counts. Peak memory is that of a process of its own for each: on a CPU its largest
resident size, on a GPU what torch allocated. To reach: at most 1.06 times the time, 1.08 times the memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nonlocal_nn as nl
from _machine import describe
from _memory import resident_bytes

VARIANTS = ("", "_nl1")
MODES = ("inference", "training")
HEIGHT, WIDTH = 480, 640


def detectors(name: str, device: str, variants: Sequence[str] = VARIANTS) -> dict[str, nn.Module]:
    """Without and with the block; both with the same weights."""
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {variant: nl.create_detector(name + variant) for variant in variants}
    first = next(iter(made.values()))
    for detector in made.values():
        detector.load_state_dict(first.state_dict(), strict=False)
        # Random weights are sure of nothing; the head for masks is to have its 100 detections.
        detector.get_submodule("roi_heads").score_thresh = 0.0
        detector.to(device)
    return made


def way_through(detector: nn.Module, mode: str, side: int, device: str) -> Callable[[], object]:
    """One inference, or one training step, on an image of 640 x 480 brought to a shorter side."""
    transform: Any = detector.get_submodule("transform")
    transform.min_size = (side,)
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, HEIGHT, WIDTH, generator=generator).to(device)]
    if mode == "inference":
        detector.eval()

        def infer() -> object:
            with torch.inference_mode():
                return detector(images)

        return infer
    corner = torch.rand(8, 2, generator=generator) * torch.tensor([WIDTH - 200.0, HEIGHT - 200.0])
    boxes = torch.cat([corner, corner + 40 + 150 * torch.rand(8, 2, generator=generator)], dim=1)
    masks = torch.zeros(8, HEIGHT, WIDTH, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        masks[number, y1:y2, x1:x2] = 1
    target: dict[str, Tensor] = {"boxes": boxes, "labels": torch.arange(1, 9), "masks": masks}
    targets = [{name: value.to(device) for name, value in target.items()}]
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1e-6)
    detector.train()

    def step() -> object:
        torch.manual_seed(2)
        loss = sum(detector(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        return optimizer.step()

    return step


def seconds_of(way: Callable[[], object], device: str) -> float:
    """Of one call; on a GPU, until it is done."""
    start = time.perf_counter()
    way()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(name: str, variant: str, mode: str, side: int, device: str) -> int:
    """Of a process that does nothing else."""
    command = [
        sys.executable,
        __file__,
        "--detector",
        name,
        "--device",
        device,
        "--peak",
        variant,
        mode,
        str(side),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", default="mask_rcnn_r50", help="default %(default)s")
    parser.add_argument("--sides", type=int, nargs="+", default=[320, 800], help="shorter sides in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest counts (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/detection.json"))
    parser.add_argument("--peak", nargs=3, metavar=("VARIANT", "MODE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        variant, mode, side = options.peak
        detector = detectors(options.detector, options.device, [variant])[variant]
        way = way_through(detector, mode, int(side), options.device)
        for _ in range(2):
            way()
        on_gpu = options.device.startswith("cuda")
        # Not ru_maxrss, which begins at that of the process that started this one.
        print(torch.cuda.max_memory_allocated() if on_gpu else resident_bytes("VmHWM"))
        return
    made = detectors(options.detector, options.device)
    rows = []
    for side in options.sides:
        for mode in MODES:
            ways = {variant: way_through(made[variant], mode, side, options.device) for variant in VARIANTS}
            for way in ways.values():
                seconds_of(way, options.device)
            best = dict.fromkeys(VARIANTS, float("inf"))
            for _ in range(options.rounds):
                for variant, way in ways.items():
                    best[variant] = min(best[variant], seconds_of(way, options.device))
            peak = {v: peak_bytes(options.detector, v, mode, side, options.device) for v in VARIANTS}
            row = {"side": side, "mode": mode, "seconds": best, "peak_bytes": peak}
            rows.append(row)
            print(
                f"{options.detector} {side:4} {mode:9}  {best['']:7.3f} s -> {best['_nl1']:7.3f} s "
                f"({best['_nl1'] / best['']:.3f})  {peak[''] / 1e6:7.0f} MB -> {peak['_nl1'] / 1e6:7.0f} MB "
                f"({peak['_nl1'] / peak['']:.3f})",
                flush=True,
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = describe(torch.get_num_threads(), options.device)
    options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    print(f"{machine['gpu'] or machine['cpu']}, torch {torch.__version__}; written to {options.out}")


if __name__ == "__main__":
    main()
