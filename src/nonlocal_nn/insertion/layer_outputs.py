"""What the layers of a network give out: shape, dtype and device, without computing or changing anything.

>>> from torch import nn
>>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
>>> network(torch.zeros(1, 3, 32, 32)).shape
torch.Size([1, 2])
>>> outputs = layer_outputs(network, ["1"])
>>> outputs["1"].shape, outputs["1"].calls
((2, 8, 30, 30), 1)
"""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_map_only

from nonlocal_nn.insertion.model_copy import model_copy
from nonlocal_nn.ops.checks import without_autocast

# A clip or image that most networks take, by the number of axes of their first convolution; the others are
# for networks that are tied to one size (small images, MNIST, Inception, ...).
_SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((1024,), (16000,), (128,)),
    2: tuple((size, size) for size in (224, 32, 64, 28, 96, 128, 256, 299, 384, 512)),
    3: tuple(
        (frames, size, size)
        for frames, size in ((16, 112), (32, 224), (8, 224), (8, 48), (16, 224), (16, 32), (64, 224))
    ),
}
# What a larger or smaller input would not change: the path depends on values, which fake tensors lack.
_OF_NO_SIZE = (DynamicOutputShapeException, DataDependentOutputException, UnsupportedOperatorException)
_CONVS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_MAKE_REAL = "give example_input: what the model is called with (a tensor, a tuple or a dict of arguments)"

Attach = Callable[[nn.Module, nn.Module], None]
Description = tuple[tuple[int, ...], torch.dtype, torch.device]


@dataclass(frozen=True)
class LayerOutput:
    """What one layer gives out in one forward pass of the network.

    Attributes:
        shape: `(batch, channels, *positions)`.
        dtype, device: where a block after it must compute.
        calls: how often the layer runs in one forward pass.
        input_axes: axes of the network's only input, batch and channels included; None if it takes several.
        axes_known: something tells that the second axis is channels: it stays where the input grows, or the
            layer's own parts say so.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    calls: int
    input_axes: int | None
    axes_known: bool = True


def layer_outputs(
    model: nn.Module, layers: Sequence[str], example_input: Any = None, attach: Attach | None = None
) -> dict[str, LayerOutput]:
    """Run a copy of `model` once without computing (fake tensors) and say what the named layers gave out.

    The copy holds no weights. `model` itself does not run: its modes, statistics, gradients and hooks stay,
    as do the random number generators. A network that cannot run so (its path depends on values) runs for
    real, as a copy, if there is an example input; without one, the largest part of it that holds the layer
    and runs by itself does, without computing: of a detector, its backbone or a head.

    Args:
        model: any network, in any mode; the copy runs in eval mode.
        layers: names as in `model.named_modules()`.
        example_input: a tensor or list, the only argument; a tuple, the arguments; a dict, the keyword
            arguments. None: made up from the model's first convolution.
        attach: how a module is put after a layer. The copy then runs again, with modules that only count
            put after the layers, and that on a larger input where it takes one.

    Raises:
        ValueError: the model does not run on its input; a layer does not run, gives no tensor of 3 to 5 axes,
            gives another number of channels at each call or at another size; what is put after a layer runs
            more often than the layer itself. The text names the layer and says what to do.
    """
    _check_ready(model, example_input)
    try:
        return _outputs_of(model, layers, example_input, attach)
    except _DoesNotRunError as error:
        if example_input is not None or not error.by_values:
            raise
        found = _outputs_of_parts(model, layers, attach)
        if found is None:
            raise
        return found


class _DoesNotRunError(ValueError):
    """The model does not run on any input that was tried.

    Attributes: by_values: because its path depends on values.
    """

    by_values = False


class _NoChannelsError(ValueError):
    """The second axis of a layer's output grows with the input."""


def _outputs_of(
    model: nn.Module, layers: Sequence[str], example_input: Any, attach: Attach | None, part: str = ""
) -> dict[str, LayerOutput]:
    """What layers of a part of the model, by their names in the model, give out when that part runs."""
    failures: list[str] = []
    by_values = False
    for fake in (True, False) if example_input is not None else (True,):
        for arguments in _inputs(model.get_submodule(part), example_input):
            try:
                probe = _Probe(model.get_submodule(part), layers, fake, part)
                calls = probe.run(arguments)
            except Exception as error:
                failures.append(_first_line(error))
                by_values = isinstance(error, _OF_NO_SIZE)
                if by_values:
                    break
                continue
            outputs = {name: _output(model, name, calls.get(name, ()), arguments) for name in layers}
            if attach is not None:
                _check_after_attaching(probe, arguments, outputs, attach)
            return outputs
    what = "on example_input" if example_input is not None else f"on inputs of our own making; {_MAKE_REAL}"
    refused = _DoesNotRunError(f"the model does not run {what}. It says: {failures[-1]}")
    refused.by_values = by_values
    raise refused


def _outputs_of_parts(
    model: nn.Module, layers: Sequence[str], attach: Attach | None
) -> dict[str, LayerOutput] | None:
    """What the layers give out in the largest part around each that runs by itself; None where none does.

    A part that takes a list of tensors may run on one tensor and go through its batch: then channels are no
    channels there, and a smaller part is asked.
    """
    outputs: dict[str, LayerOutput] = {}
    hopeless: set[str] = set()
    for layer in layers:
        words = layer.split(".")
        for end in range(1, len(words) + 1):
            part = ".".join(words[:end])
            if part in hopeless or _first_conv(model.get_submodule(part)) is None:
                continue
            try:
                outputs |= _outputs_of(model, [layer], None, attach, part)
                break
            except _DoesNotRunError:
                hopeless.add(part)
            except _NoChannelsError:
                if end == len(words):
                    raise
        else:
            return None
    return outputs


class _Probe:
    """A copy of a model, without weights (fake) or with, that notes what some layers give out.

    The model may be the part of another one; the layers are named as in that.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], fake: bool, part: str = "") -> None:
        self._part = part
        self.mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        self.layers = layers
        self.devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        # No weight is copied: the copy's are fake, or, where it computes, the model's own, which eval mode
        # and no_grad leave as they are; other tensors may be counters, so they are its own.
        self.model = model_copy(model, self._tensor).eval()
        self.calls: dict[str, list[Description | str]] = defaultdict(list)
        for name in layers:
            self.module(name).register_forward_hook(self._note(name), prepend=True)

    def module(self, name: str) -> nn.Module:
        """The copy of a layer."""
        return self.model.get_submodule(name[len(self._part) :].lstrip("."))

    def _tensor(self, tensor: Tensor) -> Tensor:
        if self.mode is not None:
            return self.mode.from_tensor(tensor)
        return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()

    def _note(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.calls[name].append((tuple(output.shape), output.dtype, output.device))
            else:
                self.calls[name].append(_kind(output))

        return note

    def run(self, arguments: Any) -> dict[str, list[Description | str]]:
        """What each layer gave out, call by call: shape, dtype and device, or words for what is no tensor."""
        self.calls.clear()
        cuda = [device for device in self.devices if device.type == "cuda"]
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=cuda))
            stack.enter_context(torch.no_grad())
            stack.enter_context(_quiet())
            for kind in sorted({device.type for device in self.devices}):
                stack.enter_context(without_autocast(torch.device(kind)))
            if self.mode is not None:
                arguments = tree_map_only(Tensor, self.mode.from_tensor, arguments)
                stack.enter_context(self.mode)
                if isinstance(arguments, _Blank):
                    arguments = (
                        torch.empty(arguments.shape, dtype=arguments.dtype, device=arguments.device),
                    )
            else:
                arguments = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), arguments)
            if isinstance(arguments, dict):
                self.model(**arguments)
            else:
                self.model(*arguments if isinstance(arguments, tuple) else (arguments,))
        return dict(self.calls)


@dataclass(frozen=True)
class _Blank:
    """A tensor of unknown values that is made when the model runs, as a fake one."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Counter(nn.Module):
    """Gives back what it gets and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x


def _check_ready(model: nn.Module, example_input: Any) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet (a lazy layer): run the model once, then insert")
    if example_input is None and _first_conv(model) is None:
        raise ValueError(f"the model has no convolution that would tell what it takes; {_MAKE_REAL}")


def _first_conv(model: nn.Module) -> tuple[nn.Module, int] | None:
    for module in model.modules():
        for kind, dims in _CONVS.items():
            if isinstance(module, kind):
                return module, dims
    return None


def _inputs(model: nn.Module, example_input: Any) -> Iterator[Any]:
    """The arguments to try: those given, or some of the first convolution's channels and number of axes."""
    if example_input is not None:
        yield example_input
        return
    found = _first_conv(model)
    assert found is not None
    conv, dims = found
    weight, groups = conv.weight, conv.groups
    assert isinstance(weight, Tensor)
    assert isinstance(groups, int)
    for size in _SIZES[dims]:
        yield _Blank((2, weight.shape[1] * groups, *size), weight.dtype, weight.device)


def _output(model: nn.Module, name: str, calls: Sequence[Description | str], arguments: Any) -> LayerOutput:
    layer = model.get_submodule(name)
    found: list[Description] = []
    for call in calls:
        if isinstance(call, str):
            raise ValueError(
                f"layer {name!r} ({type(layer).__name__}) gives out {call}; a block needs one tensor: "
                f"name a layer inside it{_children(name, layer)}"
            )
        found.append(call)
    if not found:
        raise ValueError(
            f"layer {name!r} ({type(layer).__name__}) never ran in the model's forward pass in eval mode: it "
            f"is a container, part of another path, or used without being called{_children(name, layer)}"
        )
    shape, dtype, device = found[-1]
    for other, _, _ in found:
        if not 3 <= len(other) <= 5:
            raise ValueError(
                f"layer {name!r} ({type(layer).__name__}) gives out {other}; a block needs "
                "(batch, channels, *positions) with 1, 2 or 3 position axes"
            )
        if other[1] != shape[1] or len(other) != len(shape):
            raise ValueError(
                f"layer {name!r} ({type(layer).__name__}) runs {len(found)} times in one forward pass and "
                f"gives out {other} and {shape}; one block cannot follow both: name the layer around it"
            )
    if len(found) > 1 and not any(True for _ in layer.parameters()):
        around = name.rpartition(".")[0]
        raise ValueError(
            f"layer {name!r} ({type(layer).__name__}) has no weights and runs {len(found)} times in one "
            "forward pass, so the block would stand at all those places; name the layer around it"
            + (f", {around!r}" if around else "")
        )
    axes = len(arguments.shape) if isinstance(arguments, (Tensor, _Blank)) else None
    return LayerOutput(shape, dtype, device, len(found), axes)


def _check_after_attaching(
    probe: _Probe, arguments: Any, outputs: dict[str, LayerOutput], attach: Attach
) -> None:
    """Run again with something put after every layer: is it run once, are channels still channels?"""
    counters = {name: _Counter() for name in outputs}
    for name, counter in counters.items():
        attach(probe.module(name), counter)
    problem: str | None = None
    seen: dict[str, list[Description | str]] = {}  # what the layers gave out on a larger input
    for trial in _trials(arguments, probe.mode):
        for counter in counters.values():
            counter.calls = 0
        larger = isinstance(trial, _Blank)
        try:
            probe.run(trial)
        except Exception as error:  # a larger input need not fit; the same one must
            problem = _first_line(error)
            if larger:  # what ran before it failed tells as much
                seen = {name: list(probe.calls[name]) for name in outputs}
        else:
            problem = None
            if larger:
                seen = {name: list(probe.calls[name]) for name in outputs}
            break
    for name, output in outputs.items():
        layer = probe.module(name)
        if counters[name].calls > len(probe.calls[name]):
            raise ValueError(
                f"layer {name!r} ({type(layer).__name__}) runs everything that is put into it, so a block "
                f"there would run twice; name a layer inside it{_children(name, layer)}, or the one after it"
            )
        for call in seen.get(name, ()):
            if not isinstance(call, str) and call[0][1] != output.shape[1]:
                raise _NoChannelsError(
                    f"layer {name!r} ({type(layer).__name__}) gives out {output.shape} and, for a larger "
                    f"input, {call[0]}: its second axis is not channels. A block needs "
                    "(batch, channels, *positions)"
                )
        if not seen.get(name):
            outputs[name] = dataclasses.replace(output, axes_known=_channels_come_first(layer, output.shape))
    if problem is not None:
        raise ValueError(f"the model does not run with something put after {', '.join(outputs)}: {problem}")


def _channels_come_first(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the parts of a layer say that its output has channels second: convolutions or norms of as many.

    Linear layers and layer norms of the last axis's size say the opposite.
    """
    first = last = False
    for part in layer.modules():
        for name in ("out_channels", "num_features", "num_channels", "channels"):
            first |= getattr(part, name, None) == shape[1]
        if isinstance(part, nn.Linear):
            last |= part.out_features == shape[-1]
        if isinstance(part, nn.LayerNorm):
            last |= tuple(part.normalized_shape) == shape[-1:]
    return first and not last


def _trials(arguments: Any, mode: FakeTensorMode | None) -> Iterator[Any]:
    """A larger input, where it costs nothing, then the same."""
    if mode is not None and isinstance(arguments, (Tensor, _Blank)) and len(arguments.shape) >= 3:
        batch, channels, *sizes = arguments.shape
        shape = (batch + 1, channels, *(2 * size for size in sizes))
        yield _Blank(shape, arguments.dtype, arguments.device)
    yield arguments


@contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log what they cannot do before they raise it; we say it in our own words."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def _children(name: str, layer: nn.Module) -> str:
    names = [
        f"{name}.{child}" for child, module in layer.named_children() if not isinstance(module, _Counter)
    ]
    if not names:
        return ""
    listed = names if len(names) <= 4 else [names[0], "...", names[-1]]
    return f" ({', '.join(listed)})"


def _kind(output: Any) -> str:
    if isinstance(output, dict):
        return f"a {type(output).__name__} of {', '.join(map(repr, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
