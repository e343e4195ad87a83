"""What functions of torch do to the axes of the input that lie along a tensor's dimensions; see `tracing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from nonlocal_nn.explain.capture.geometry import Axis


@dataclass(frozen=True)
class Plain:
    """A dimension that is no axis of the input, such as channels, or of which that is not known."""

    size: int


# What lies along one dimension of a tensor, outermost first; empty where its size is 1.
Along = tuple[Axis | Plain, ...]
Axes = tuple[Along, ...]


class Call:
    """The arguments of a call, by position or by name."""

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    def value(self, index: int, name: str, default: Any) -> Any:
        """The argument at a position or of a name; the default where it is absent or None."""
        value = self.args[index] if index < len(self.args) else self.kwargs.get(name, default)
        return default if value is None else value

    def numbers(self, index: int, name: str, default: Any, axes: int) -> list[int]:
        """One whole number for each axis."""
        value = self.value(index, name, default)
        if isinstance(value, (tuple, list)):
            return [int(v) for v in (value if len(value) > 1 else list(value) * axes)]
        return [int(value)] * axes


def _convolved(axes: Axes, call: Call, shape: tuple[int, ...], n: int) -> Axes:
    kernel = list(call.value(1, "weight", None).shape[2:])
    stride, dilation = call.numbers(3, "stride", 1, n), call.numbers(5, "dilation", 1, n)
    padding = call.value(4, "padding", 0)
    if padding == "same":
        before = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    else:
        before = [0] * n if padding == "valid" else call.numbers(4, "padding", 0, n)
    return _windowed(Axis.window, axes, shape, kernel, stride, before, dilation)


def _transposed(axes: Axes, call: Call, shape: tuple[int, ...], n: int) -> Axes:
    kernel = list(call.value(1, "weight", None).shape[2:])
    stride, padding = call.numbers(3, "stride", 1, n), call.numbers(4, "padding", 0, n)
    dilation = call.numbers(7, "dilation", 1, n)
    return _windowed(Axis.transposed_window, axes, shape, kernel, stride, padding, dilation)


def _pooled(axes: Axes, call: Call, shape: tuple[int, ...], n: int, dilated: bool) -> Axes:
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
    changed: list[Along] = [*axes[:channel], plain(shape[channel])]
    for along, size, kernel, stride, padding, dilation in zip(axes[-n:], shape[-n:], *arguments, strict=True):
        axis = _single(along)
        seen = None if axis is None else window(axis, kernel, stride, padding, dilation, size)
        changed.append(plain(size) if seen is None else (seen,))
    return tuple(changed)


def _padded(axes: Axes, call: Call, shape: tuple[int, ...]) -> Axes:
    given = list(call.value(1, "pad", ()))
    before = dict(enumerate(given[::2]))  # from the last dimension on
    changed = []
    for number, (along, size) in enumerate(zip(axes, shape, strict=True)):
        from_last = len(shape) - 1 - number
        axis = _single(along)
        if from_last not in before:
            changed.append(along)
        elif axis is None:
            changed.append(plain(size))
        else:
            changed.append((axis.moved(-before[from_last], size),))
    return tuple(changed)


def _narrowed(axes: Axes, call: Call, shape: tuple[int, ...]) -> Axes:
    dim, start = call.value(1, "dim", 0), int(call.value(2, "start", 0))
    dim %= len(shape)
    axis = _single(axes[dim])
    along = plain(shape[dim]) if axis is None else (axis.moved(start, shape[dim]),)
    return (*axes[:dim], along, *axes[dim + 1 :])


def _selected(axes: Axes, call: Call, shape: tuple[int, ...]) -> Axes:
    dim = call.value(1, "dim", 0) % (len(shape) + 1)
    return axes[:dim] + axes[dim + 1 :]


def _stacked(axes: Axes, call: Call, shape: tuple[int, ...]) -> Axes:
    dim = call.value(1, "dim", 0) % len(shape)
    return (*axes[:dim], plain(shape[dim]), *axes[dim:])


def carried(axes: Axes, before: tuple[int, ...], after: tuple[int, ...]) -> Axes | None:
    """What one term of an elementwise operation (or an unknown one) brings to a result of shape `after`."""
    if len(before) != len(after):
        return None
    found: list[Along] = []
    for along, old, new in zip(axes, before, after, strict=True):
        axis = _single(along)
        if old == new:
            found.append(along)
        elif axis is None or old == 1:  # broadcast, or another number of channels
            found.append(plain(new))
        else:
            found.append((axis.resized(new),))
    return tuple(found)


def joined(terms: Sequence[Axes]) -> Axes | None:
    """Dimension by dimension what is known, and where several know, receptive fields that hold all."""
    if not terms:
        return None
    found: list[Along] = []
    for alongs in zip(*terms, strict=True):
        known = [along for along in alongs if along and all(isinstance(part, Axis) for part in along)]
        best: Along = known[0] if known else alongs[0]
        for other in known[1:]:
            parts = list(zip(best, other, strict=False))
            if len(best) == len(other) and all(_alike(a, b) for a, b in parts):
                best = tuple(a.joined(b) for a, b in parts if isinstance(a, Axis) and isinstance(b, Axis))
        found.append(best)
    return tuple(found)


def _alike(a: Axis | Plain, b: Axis | Plain) -> bool:
    if not isinstance(a, Axis) or not isinstance(b, Axis):
        return False
    return (a.axis, a.size) == (b.axis, b.size) and abs(a.step - b.step) < 1e-9


def _permuted(axes: Axes, call: Call, _: tuple[int, ...]) -> Axes:
    given = call.kwargs.get("dims", call.args[1:])
    order = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    return tuple(axes[dim] for dim in order)


def _exchanged(axes: Axes, call: Call, _: tuple[int, ...]) -> Axes:
    a, b = call.value(1, "dim0", 0), call.value(2, "dim1", 1)
    order = list(axes)
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def _indexed(axes: Axes, call: Call, shape: tuple[int, ...]) -> Axes | None:
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
                found.append(plain(size))
            else:
                start, _, step = item.indices(axis.size)
                found.append((axis.moved(start, size, step),))
        else:
            return None
    return tuple(found)


def _reshaped(axes: Axes, _: Call, shape: tuple[int, ...]) -> Axes | None:
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


def plain(size: int) -> Along:
    return () if size == 1 else (Plain(size),)


Rule = Callable[[Axes, Call, tuple[int, ...]], Axes | None]
RULES: dict[str, Rule] = {
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
