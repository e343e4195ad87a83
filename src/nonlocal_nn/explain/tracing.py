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

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from nonlocal_nn.explain.geometry import Axis


@dataclass(frozen=True)
class Plain:
    """A dimension that is no axis of the input, such as channels, or of which that is not known."""

    size: int


# What lies along one dimension of a tensor, outermost first; empty where its size is 1.
Along = tuple[Axis | Plain, ...]
Axes = tuple[Along, ...]

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
        self._known[x] = (_plain(x.shape[0]), _plain(x.shape[1]), *((axis,) for axis in axes))

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
        rule = _RULES.get(name)
        if rule is not None:
            return rule(self._known[inputs[0]], _Call(args, kwargs), shape)
        terms = [_carried(self._known[tensor], tuple(tensor.shape), shape) for tensor in inputs]
        axes = _joined([term for term in terms if term is not None])
        if axes is not None and name in _ALONG:
            dim = _Call(args, kwargs).value(_ALONG[name], "dim", 0) % len(shape)
            axes = (*axes[:dim], _plain(shape[dim]), *axes[dim + 1 :])
        return axes


class _Call:
    """The arguments of a call, by position or by name."""

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    def value(self, index: int, name: str, default: Any) -> Any:
        value = self.args[index] if index < len(self.args) else self.kwargs.get(name, default)
        return default if value is None else value

    def numbers(self, index: int, name: str, default: Any, axes: int) -> list[int]:
        """One whole number for each axis."""
        value = self.value(index, name, default)
        if isinstance(value, (tuple, list)):
            return [int(v) for v in (value if len(value) > 1 else list(value) * axes)]
        return [int(value)] * axes


def _convolved(axes: Axes, call: _Call, shape: tuple[int, ...], n: int) -> Axes:
    kernel = list(call.value(1, "weight", None).shape[2:])
    stride, dilation = call.numbers(3, "stride", 1, n), call.numbers(5, "dilation", 1, n)
    padding = call.value(4, "padding", 0)
    if padding == "same":
        before = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    else:
        before = [0] * n if padding == "valid" else call.numbers(4, "padding", 0, n)
    return _windowed(Axis.window, axes, shape, kernel, stride, before, dilation)


def _transposed(axes: Axes, call: _Call, shape: tuple[int, ...], n: int) -> Axes:
    kernel = list(call.value(1, "weight", None).shape[2:])
    stride, padding = call.numbers(3, "stride", 1, n), call.numbers(4, "padding", 0, n)
    dilation = call.numbers(7, "dilation", 1, n)
    return _windowed(Axis.transposed_window, axes, shape, kernel, stride, padding, dilation)


def _pooled(axes: Axes, call: _Call, shape: tuple[int, ...], n: int, dilated: bool) -> Axes:
    kernel = call.numbers(1, "kernel_size", 1, n)
    stride = call.numbers(2, "stride", kernel, n)
    padding = call.numbers(3, "padding", 0, n)
    dilation = call.numbers(4, "dilation", 1, n) if dilated else [1] * n
    channel = len(shape) - n - 1
    pooled = _windowed(Axis.window, axes, shape, kernel, stride, padding, dilation)
    return (*pooled[:channel], axes[channel], *pooled[channel + 1 :])


def _windowed(
    window: Callable[[Axis, int, int, int, int, int], Axis],
    axes: Axes,
    shape: tuple[int, ...],
    *arguments: Sequence[int],
) -> Axes:
    """The last dimensions, one for each kernel size, seen through windows; before them stand channels."""
    n = len(arguments[0])
    channel = len(shape) - n - 1
    changed: list[Along] = [*axes[:channel], _plain(shape[channel])]
    for along, size, kernel, stride, padding, dilation in zip(axes[-n:], shape[-n:], *arguments, strict=True):
        axis = _single(along)
        seen = None if axis is None else window(axis, kernel, stride, padding, dilation, size)
        changed.append(_plain(size) if seen is None else (seen,))
    return tuple(changed)


def _padded(axes: Axes, call: _Call, shape: tuple[int, ...]) -> Axes:
    given = list(call.value(1, "pad", ()))
    before = dict(enumerate(given[::2]))  # from the last dimension on
    changed = []
    for number, (along, size) in enumerate(zip(axes, shape, strict=True)):
        from_last = len(shape) - 1 - number
        axis = _single(along)
        if from_last not in before:
            changed.append(along)
        elif axis is None:
            changed.append(_plain(size))
        else:
            changed.append((axis.moved(-before[from_last], size),))
    return tuple(changed)


def _narrowed(axes: Axes, call: _Call, shape: tuple[int, ...]) -> Axes:
    dim, start = call.value(1, "dim", 0), int(call.value(2, "start", 0))
    dim %= len(shape)
    axis = _single(axes[dim])
    along = _plain(shape[dim]) if axis is None else (axis.moved(start, shape[dim]),)
    return (*axes[:dim], along, *axes[dim + 1 :])


def _selected(axes: Axes, call: _Call, shape: tuple[int, ...]) -> Axes:
    dim = call.value(1, "dim", 0) % (len(shape) + 1)
    return axes[:dim] + axes[dim + 1 :]


def _stacked(axes: Axes, call: _Call, shape: tuple[int, ...]) -> Axes:
    dim = call.value(1, "dim", 0) % len(shape)
    return (*axes[:dim], _plain(shape[dim]), *axes[dim:])


def _carried(axes: Axes, before: tuple[int, ...], after: tuple[int, ...]) -> Axes | None:
    """What one term of an elementwise operation (or an unknown one) brings to a result of shape `after`."""
    if len(before) != len(after):
        return None
    carried: list[Along] = []
    for along, old, new in zip(axes, before, after, strict=True):
        axis = _single(along)
        if old == new:
            carried.append(along)
        elif axis is None or old == 1:  # broadcast, or another number of channels
            carried.append(_plain(new))
        else:
            carried.append((axis.resized(new),))
    return tuple(carried)


def _joined(terms: Sequence[Axes]) -> Axes | None:
    """Dimension by dimension what is known, and where several know, receptive fields that hold all."""
    if not terms:
        return None
    joined: list[Along] = []
    for alongs in zip(*terms, strict=True):
        known = [along for along in alongs if along and all(isinstance(part, Axis) for part in along)]
        best: Along = known[0] if known else alongs[0]
        for other in known[1:]:
            parts = list(zip(best, other, strict=False))
            if len(best) == len(other) and all(_alike(a, b) for a, b in parts):
                best = tuple(a.joined(b) for a, b in parts if isinstance(a, Axis) and isinstance(b, Axis))
        joined.append(best)
    return tuple(joined)


def _alike(a: Axis | Plain, b: Axis | Plain) -> bool:
    if not isinstance(a, Axis) or not isinstance(b, Axis):
        return False
    return (a.axis, a.size) == (b.axis, b.size) and abs(a.step - b.step) < 1e-9


def _permuted(axes: Axes, call: _Call, _: tuple[int, ...]) -> Axes:
    given = call.kwargs.get("dims", call.args[1:])
    order = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    return tuple(axes[dim] for dim in order)


def _exchanged(axes: Axes, call: _Call, _: tuple[int, ...]) -> Axes:
    a, b = call.value(1, "dim0", 0), call.value(2, "dim1", 1)
    order = list(axes)
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def _indexed(axes: Axes, call: _Call, shape: tuple[int, ...]) -> Axes | None:
    index = call.args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(item is not None and item is not Ellipsis for item in items)
    missing = [slice(None)] * (len(axes) - used)
    place = items.index(Ellipsis) if Ellipsis in items else len(items)
    items[place : place + 1] = missing
    left = iter(axes)
    found: list[Along] = []
    for item in items:
        if item is None:
            found.append(())
        elif isinstance(item, int):
            next(left)
        elif isinstance(item, slice):
            along = next(left)
            axis, size = _single(along), shape[len(found)]
            whole = item.start in (None, 0) and item.stop is None and item.step in (None, 1)
            if whole:
                found.append(along)
            elif axis is None:
                found.append(_plain(size))
            else:
                start, _, step = item.indices(axis.size)
                found.append((axis.moved(start, size, step),))
        else:
            return None
    return tuple(found)


def _reshaped(axes: Axes, _: _Call, shape: tuple[int, ...]) -> Axes | None:
    """The same parts in order, cut into other dimensions; None where a cut goes through a part unevenly."""
    parts = [part for along in axes for part in along if part.size > 1]
    found: list[Along] = []
    for size in shape:
        taken: list[Axis | Plain] = []
        while prod(part.size for part in taken) < size:
            need, rest = divmod(size, prod(part.size for part in taken))
            if rest or not parts:
                return None
            part = parts.pop(0)
            if part.size > need:
                if part.size % need:
                    return None
                # the outer positions are runs of the inner ones
                parts.insert(0, Plain(part.size // need))
                part = part.resized(need) if isinstance(part, Axis) else Plain(need)
            taken.append(part)
        if prod(part.size for part in taken) != size:
            return None
        found.append(tuple(taken))
    return tuple(found)


def _single(along: Along) -> Axis | None:
    return along[0] if len(along) == 1 and isinstance(along[0], Axis) else None


def _plain(size: int) -> Along:
    return () if size == 1 else (Plain(size),)


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)) and depth < 4:
        for item in value:
            yield from _tensors(item, depth + 1)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth + 1)


_Rule = Callable[[Axes, _Call, tuple[int, ...]], Axes | None]
_RULES: dict[str, _Rule] = {
    **{f"conv{n}d": partial(_convolved, n=n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": partial(_transposed, n=n) for n in (1, 2, 3)},
    **{f"max_pool{n}d": partial(_pooled, n=n, dilated=True) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": partial(_pooled, n=n, dilated=True) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": partial(_pooled, n=n, dilated=False) for n in (1, 2, 3)},
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _exchanged),
    "permute": _permuted,
    "__getitem__": _indexed,
    "pad": _padded,
    "narrow": _narrowed,
    "select": _selected,
    "unbind": _selected,
    "stack": _stacked,
}
