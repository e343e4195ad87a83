"""What became of every tensor when weights were put into a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors, each in the order of its file or network.

    >>> report = LoadReport(placed=("stem.conv.weight",), mismatched={"head.fc.bias": ((400,), (4,))})
    >>> print(report)
    1 tensors placed
    other shape, left as they were: head.fc.bias (file 400, network 4)
    """

    placed: tuple[str, ...] = ()
    """Tensors of the network that took their values from the file."""
    missing: tuple[str, ...] = ()
    """Tensors of the network that the file lacks; they keep their values."""
    unused: tuple[str, ...] = ()
    """Tensors of the file that the network lacks."""
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Tensors in both of another shape (in the file, in the network); they keep their values."""
    implied: tuple[str, ...] = ()
    """Tensors of the network that the file need not name, as its layout fixes them: the zero bias of a W_z
    without one, the mean 0 and variance 1 of a folded norm, step counters."""

    @property
    def complete(self) -> bool:
        """Whether file and network have the same tensors."""
        return not (self.missing or self.unused or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.placed)} tensors placed"]
        if self.implied:
            lines.append(f"fixed by the layout: {_short(self.implied)}")
        if self.missing:
            lines.append(f"not in the file, left as they were: {_short(self.missing)}")
        if self.mismatched:
            shapes = [
                f"{name} (file {_shape(theirs)}, network {_shape(ours)})"
                for name, (theirs, ours) in self.mismatched.items()
            ]
            lines.append(f"other shape, left as they were: {_short(shapes)}")
        if self.unused:
            lines.append(f"not in the network, left out: {_short(self.unused)}")
        return "\n".join(lines)


def compare(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> LoadReport:
    """What would be placed if `given` were put into a network whose state dict is `wanted`.

    Batch norm's step counter (num_batches_tracked) is in no report where one side lacks it: frozen norms have
    none.
    """
    shapes = {
        name: (tuple(given[name].shape), tuple(tensor.shape))
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    }
    return LoadReport(
        placed=tuple(name for name in wanted if name in given and name not in shapes),
        missing=tuple(name for name in wanted if name not in given and not _is_counter(name)),
        unused=tuple(name for name in given if name not in wanted and not _is_counter(name)),
        mismatched=shapes,
    )


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _short(names: list[str] | tuple[str, ...], limit: int = 12) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
