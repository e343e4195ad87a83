"""Lightning's checkpoint files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from nonlocal_nn._files import write_whole


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
