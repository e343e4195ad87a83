"""Follows the axes of an input through any network while it runs: which pixels does a map's position see?

>>> import torch
>>> from torch import nn
>>> network = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, 1), nn.ReLU())
>>> image = torch.zeros(1, 3, 64, 96)
>>> with AxisTrace() as trace, torch.no_grad():
...     trace.start(image)
...     features = network(image)
>>> trace.axes_of(features)[2]
(Axis(axis=1, size=16, first=0.0, step=4.0, receptive=11.0),)

Every torch function that the network calls is seen (a TorchFunctionMode), whether it comes from a module,
from `torch.nn.functional` or from a method of a tensor. Each tensor carries, for each of its dimensions, the
`Axis` of the input that lies along it:

- convolutions, pools, padding and slices shift and stretch an axis as their arguments say;
- permutations and reshapes carry axes along, also several in one dimension (tokens, frames in the batch);
- a sum or a concatenation holds what all of its terms see;
- whatever else keeps a size keeps its axis, and what changes a size is taken to spread the new positions
  evenly over the old ones, as adaptive pools and interpolation do;
- products of matrices mix positions: what comes out has no axes until it is added to something that has.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from nonlocal_nn.explain.capture.axis_rules import RULES, Axes, Call, carried, joined, plain
from nonlocal_nn.explain.capture.geometry import Axis

# Functions after which no dimension is what it was. "__get__" reads attributes, such as x.mT.
_MIXES = {
    *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot", "cdist"),
    *("as_strided", "fold", "unfold", "gather", "scatter", "rot90", "moveaxis", "movedim", "__get__"),
}
# Functions that put together or take apart along a dimension: which of their arguments names it.
_ALONG = {"cat": 1, "concat": 1, "concatenate": 1, "split": 2, "split_with_sizes": 2, "chunk": 2}


class AxisTrace(TorchFunctionMode):
    """While it is entered, every tensor computed from `start`'s is known by `axes_of`."""

    def __init__(self) -> None:
        super().__init__()
        self._known: MutableMapping[Tensor, Axes] = WeakTensorKeyDictionary()

    def start(self, x: Tensor) -> None:
        """The input: (batch, channels, n), (batch, channels, height, width) or (..., frames, height, width).

        Raises ValueError for another number of axes.
        """
        if not 3 <= x.dim() <= 5:
            raise ValueError(
                f"expected (batch, channels, *positions) with 1, 2 or 3 position axes, got {tuple(x.shape)}"
            )
        positions = tuple(x.shape[2:])
        axes = (Axis(3 - len(positions) + number, size) for number, size in enumerate(positions))
        self._known[x] = (plain(x.shape[0]), plain(x.shape[1]), *((axis,) for axis in axes))

    def axes_of(self, x: Tensor) -> Axes | None:
        """What lies along each dimension of x; None where it does not come from the input, or mixes it."""
        return self._known.get(x)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, and note what lies along the dimensions of what it gives."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = [result] if isinstance(result, Tensor) else result
        if isinstance(outputs, (tuple, list)) and any(isinstance(output, Tensor) for output in outputs):
            name = getattr(func, "__name__", "")
            for output in outputs:
                if isinstance(output, Tensor):
                    # A call in a form that no rule foresees must not stop the network: it is not followed.
                    try:
                        axes = self._after(name, args, kwargs, output)
                    except (TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError):
                        axes = None
                    if axes is not None:
                        self._known[output] = axes
                    elif output in self._known:  # changed in place
                        del self._known[output]
        return result

    def _after(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Axes | None:
        inputs = [tensor for tensor in _tensors((args, kwargs)) if tensor in self._known]
        if not inputs or name in _MIXES:
            return None
        shape = tuple(output.shape)
        rule = RULES.get(name)
        if rule is not None:
            return rule(self._known[inputs[0]], Call(args, kwargs), shape)
        terms = [carried(self._known[tensor], tuple(tensor.shape), shape) for tensor in inputs]
        axes = joined([term for term in terms if term is not None])
        if axes is not None and name in _ALONG:
            dim = Call(args, kwargs).value(_ALONG[name], "dim", 0) % len(shape)
            axes = (*axes[:dim], plain(shape[dim]), *axes[dim + 1 :])
        return axes


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)) and depth < 4:
        for item in value:
            yield from _tensors(item, depth + 1)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth + 1)
