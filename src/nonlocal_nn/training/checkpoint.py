"""Files that are whole or not there at all, whatever kills the process while it writes them.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "results.json"
>>> write_whole(path, lambda partial: partial.write_text("{}"))
>>> path.read_text()
'{}'
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

LAST = Path("checkpoints") / "last.ckpt"  # within the run folder


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, make sure that it is on the disk, and only then put it in its
    place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    write(partial)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(path)  # atomic: until here the file that was there before is untouched
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all and read without running code in them."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the checkpoint; only the first process calls this."""
        if storage_options is not None:
            raise TypeError("WholeCheckpointIO writes to a local or shared disk; it has no storage options")
        write_whole(Path(path), lambda partial: torch.save(checkpoint, partial))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = "cpu",
        weights_only: bool | None = True,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Read it back; anything but tensors and plain values is refused."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint
