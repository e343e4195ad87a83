"""What a measurement ran on, and of which code it speaks."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
from pathlib import Path

import numpy
import torch

from _memory import machine_bytes

ROOT = Path(__file__).resolve().parents[1]


def describe(threads: int, device: str = "cpu") -> dict[str, object]:
    """The machine and the versions, as they are saved beside the figures."""
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "threads": threads,
        "memory_bytes": machine_bytes("MemTotal"),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
    }


def cpu_name() -> str:
    """The CPU's name, with family and model where the name alone says little."""
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def git_commit() -> str | None:
    """The commit, with "+" where files differ from it; None outside of a checkout."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def code_digest() -> str:
    """Changes when the measured code or the measuring code does: older rows are then measured anew."""
    digest = hashlib.sha256()
    folders = [ROOT / "src/nonlocal_nn/ops", ROOT / "src/nonlocal_nn/blocks", ROOT / "benchmarks"]
    for file in sorted(path for folder in folders for path in folder.rglob("*.py")):
        if file.name not in ("_figures.py", "_tables.py", "load.py", "pipeline.py", "train_step.py"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
