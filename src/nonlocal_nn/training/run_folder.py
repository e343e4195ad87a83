"""The run folder: what is in it, whether a run may start, go on, or is finished, and its lock.

config.yaml          the whole configuration: `nonlocal train --config config.yaml` is this run again
metrics.csv          loss, accuracy, learning rate by step; tensorboard/ has the same
checkpoints/last.ckpt    what --resume goes on from
skipped.csv          videos that could not be used, with reasons
model.safetensors    the finished model
results.json         its figures; written last, so a folder that has it is finished
.lock                held by the process that trains
"""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from nonlocal_nn._files import write_whole
from nonlocal_nn.training.config import TrainConfig, differences, load_config, save_config

LAST = Path("checkpoints") / "last.ckpt"
CONFIG = "config.yaml"
METRICS = "metrics.csv"
RESULTS = "results.json"
SKIPPED = "skipped.csv"
LOCK = ".lock"


class RunInUseError(ValueError):
    """Another process is training in this run folder."""


def lock_run_folder(out: Path) -> AbstractContextManager[object]:
    """Lock the folder, made where missing: two processes in it would overwrite each other's checkpoints.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "run"
    >>> with lock_run_folder(out):
    ...     sorted(path.name for path in out.iterdir())
    ['.lock']

    The lock is held from the call to the end of the `with` block, or of the process, whatever ends it. Forked
    decoding workers do not share it (since filelock 4): those that outlive a killed run for a moment do not
    keep it from being resumed.

    Raises:
        RunInUseError: another process holds the lock.
        FileExistsError: `out` is a file.
    """
    from filelock import FileLock, Timeout

    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; out must name a folder to make")
    out.mkdir(parents=True, exist_ok=True)
    # A soft lock, for file systems without locks, would outlive a process that is killed.
    lock = FileLock(out / LOCK, fallback_to_soft=False)
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        raise RunInUseError(
            f"another process is training in {out}; wait for it, stop it, or choose another out folder"
        ) from None


def finished_results(config: TrainConfig) -> dict[str, Any] | None:
    """What results.json holds if `config.resume` and the run in its folder is finished; else None.

    Raises:
        ValueError: it was a run of another configuration.
    """
    out = Path(config.out)
    if not config.resume or not (out / RESULTS).exists():
        return None
    _check_same(config, out)
    results: dict[str, Any] = json.loads((out / RESULTS).read_text())
    return results


def open_run(config: TrainConfig, *, first_process: bool = True) -> bool:
    """Make the folder ready for this config and tell whether there is a checkpoint to go on from.

    >>> import tempfile
    >>> from nonlocal_nn.training.config import DataConfig
    >>> config = TrainConfig(out=tempfile.mkdtemp() + "/run", data=DataConfig(train="videos"))
    >>> open_run(config), sorted(path.name for path in Path(config.out).iterdir())
    (False, ['config.yaml'])

    Only the first process of several changes anything on the disk.

    Raises:
        ValueError: a config that differs from that of the run to go on with.
        FileExistsError: there is something in the folder and neither `resume` nor `overwrite` is given; or
            `overwrite` is, and it is not a run.
    """
    out = Path(config.out)
    if config.resume:
        if first_process:
            _check_same(config, out)
            _store(config, out)
        return (out / LAST).exists()
    if first_process:
        if _contents(out):
            _clear_folder(config, out)
        _store(config, out)
    return False


def _contents(out: Path) -> list[Path]:
    """What lies in the folder, but for the lock that this process holds; nothing where there is none."""
    return [path for path in out.iterdir() if path.name != LOCK] if out.is_dir() else []


def _clear_folder(config: TrainConfig, out: Path) -> None:
    is_run = (out / CONFIG).exists()
    if config.overwrite:
        if not is_run:
            raise FileExistsError(
                f"{out} is not empty and holds no run (no {CONFIG}); it is not deleted for you"
            )
        for path in _contents(out):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return
    if not is_run:
        raise FileExistsError(f"{out} is not empty; choose another out folder")
    state = "a finished run" if (out / RESULTS).exists() else "an unfinished run"
    raise FileExistsError(
        f"{out} holds {state}; choose another out folder, or go on with it (--resume), "
        "or have it deleted first (--overwrite)"
    )


def _check_same(config: TrainConfig, out: Path) -> None:
    path = out / CONFIG
    if not path.exists():
        if _contents(out):
            raise FileExistsError(f"{out} is not empty and holds no run (no {CONFIG}) to go on with")
        return
    changed = differences(load_config(path), config)
    if changed:
        raise ValueError(
            f"the run in {out} was started with another configuration, and going on with this one would give "
            "weights that neither describes. Different (run -> now): "
            + "; ".join(changed)
            + f". Give {path} as --config, or choose another out folder. To train longer, start a new run "
            f"from these weights: --model.weights {out} --out ANOTHER."
        )


def _store(config: TrainConfig, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / CONFIG, lambda partial: save_config(config, partial))
