"""Cases that run on every rank of a real gloo group: one start of the processes runs all cases of a module.

A case is a function `case_...(rank, world)` of a module; it passes where it returns on every rank. The module
itself is what the processes run:

    if __name__ == "__main__":
        ranks.run_cases(sys.modules["__main__"])
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist

SECONDS_FOR_A_MESSAGE = 20
SECONDS_FOR_ALL_CASES = 150

_group: dist.ProcessGroup | None = None


def group() -> dist.ProcessGroup:
    """The group of all ranks, in a case."""
    assert _group is not None
    return _group


def case_names(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if name.startswith("case_")]


def outcomes(module: ModuleType, world: int) -> dict[str, list[str]]:
    """Start `world` processes; for each case what each rank has to say about it, "" where it passed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    repository = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        try:
            for rank in range(world):
                command = [sys.executable, "-m", module.__name__, str(rank), str(world), folder]
                processes.append(subprocess.Popen(command, cwd=repository, env=environment))
            deadline = time.monotonic() + SECONDS_FOR_ALL_CASES
            for process in processes:
                process.wait(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass  # the cases that did not end are missing below
        finally:
            for process in processes:
                process.kill()
                process.wait()
        said = []
        for rank in range(world):
            lines = Path(folder, f"{rank}.jsonl")
            said.append(dict(map(json.loads, lines.read_text().splitlines())) if lines.exists() else {})
    return {name: [own.get(name, "did not end") for own in said] for name in case_names(module)}


def run_cases(module: ModuleType) -> None:
    """What each process does: rank, world and a folder for both rendezvous and outcomes are its arguments."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    timeout = timedelta(seconds=SECONDS_FOR_A_MESSAGE)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=world,
        timeout=timeout,
    )
    with (folder / f"{rank}.jsonl").open("w") as out:
        for name in case_names(module):
            global _group
            _group = dist.new_group(timeout=timeout)  # one that no earlier case has left in disorder
            torch.manual_seed(0)  # the same whole on every rank
            try:
                getattr(module, name)(rank, world)
                said = ""
            except Exception:
                said = traceback.format_exc()
            out.write(json.dumps([name, said]) + "\n")
            out.flush()
    dist.barrier()
    dist.destroy_process_group()
