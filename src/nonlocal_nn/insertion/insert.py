"""Blocks into a network that is built already, by the names of its layers.

>>> import torch
>>> from torch import nn
>>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
>>> names = list(network.state_dict())
>>> x = torch.randn(2, 3, 32, 32)
>>> before = network(x)
>>> network = insert_blocks(network, after=["1"])
>>> torch.equal(network(x), before), set(names) < set(network.state_dict())
(True, True)

How it is done, and why. The block becomes a child of the layer, `nonlocal_block` (`kinds.py` has the names
of others), and a forward hook of the layer applies it. The layer itself stays where it is and what it is:
every name of `state_dict()` and `named_parameters()` is as before, `isinstance`, indexing and the layer's
attributes work, and the block's weights appear beside the layer's ("layer2.1.nonlocal_block.theta.weight").
A wrapper in the layer's place would change the names of parameters, or make them differ from those of the
state dict, which breaks sharded checkpoints and optimizers that go by name; a new neighbour in a Sequential
or ModuleList would change the indices that the network's own code may use; a subclass made on the spot could
not be pickled. The tests show that the hook works in torch.compile (one graph), DistributedDataParallel,
activation checkpointing, deepcopy and pickle.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.jit import ScriptModule

from nonlocal_nn._names import nearest_names
from nonlocal_nn.blocks.grid import Grouping
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.blocks.options import BlockOptions, Init, Norm, Span, SubsampleAt
from nonlocal_nn.insertion.kinds import CHILDREN, OTHER_CHILD, Maker, child_of, maker
from nonlocal_nn.insertion.layer_outputs import LayerOutput, layer_outputs
from nonlocal_nn.ops.cpu.workspace import check_budget
from nonlocal_nn.pairwise import PairwiseFunction

CHILD = CHILDREN["nonlocal"]
_HANDLE = "_nonlocal_block_hook"

# Wrappers that look at the parameters or the code once, when they are made: what comes later is not seen.
_WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel would not average the gradients of the new weights",
    "FullyShardedDataParallel": "FullyShardedDataParallel would not shard the new weights",
    "FSDPModule": "fully_shard would not shard the new weights",
    "OptimizedModule": "torch.compile may go on with the code it has compiled",
}

Model = TypeVar("Model", bound=nn.Module)


def insert_blocks(
    model: Model,
    after: str | Sequence[str],
    inner_channels: int | None = None,
    pairwise: str | PairwiseFunction = "embedded_gaussian",
    dims: int | None = None,
    subsample: bool = True,
    subsample_at: SubsampleAt = "embedding",
    span: Span = "spacetime",
    temporal_groups: int = 1,
    scale: bool = False,
    norm: Norm | None = "batch",
    *,
    init: Init = "paper",
    memory_budget: int | None = None,
    example_input: Any = None,
    block: str | Maker = "nonlocal",
    block_options: Mapping[str, Any] | None = None,
) -> Model:
    """Put a new block after each named layer; the model is changed in place and returned.

    >>> from torch import nn
    >>> body = nn.ModuleDict({"conv": nn.Conv3d(3, 4, 3), "act": nn.ReLU()})
    >>> model = insert_blocks(nn.Sequential(*body.values()), after=["0"], pairwise="dot_product")
    >>> model[0].nonlocal_block.channels, model[0].nonlocal_block.dims
    (4, 3)

    Outputs stay as they are, to the last bit, until the blocks are trained; weights saved before load into
    the model with `strict=False`, the blocks' names alone missing. Insert before the optimizer is made (it
    must know the new weights), before DistributedDataParallel and torch.compile, and after what replaces the
    named layers by others (`SyncBatchNorm.convert_sync_batchnorm` forgets the hooks of a batch norm).

    The block takes channels, dtype, device and mode (train or eval) of the layer's output, found without
    computing anything on the model's own weights, see `layer_outputs`. Its weights can be trained even where
    the layer's are frozen.

    Args:
        model: any network, also one with half precision weights or on the meta device.
        after: names as in `model.named_modules()`, each once. A plain `nn.Sequential` stands for its last
            part. After a block there can be another: "layer2.1.nonlocal_block". A layer with weights that
            runs several times in a forward pass gets one block, which runs each time.
        dims: 1, 2 or 3 position axes; None: as the layer's output has, which must be as many as the input's.
            Given, it also says that the axes are ``(batch, channels, *positions)`` where nothing else tells.
        inner_channels, pairwise, subsample, subsample_at, span, temporal_groups, scale, norm, init: of every
            block, see `NonLocalBlock`.
        memory_budget: of every block, too.
        block: "nonlocal", a `NonLocalBlock`; "squeeze_excitation" or "global_context"; or a function of the
            channels and the number of position axes that returns a module, whose outputs have the shape of
            its inputs. Those with a name start as the identity.
        block_options: of a squeeze_excitation or global_context, as {"reduction": 4}.
        example_input: what the model is called with: a tensor or list as the only argument, a tuple of
            arguments or a dict of keyword arguments. None: made up from the first convolution. If given, its
            size is checked against the options, too (too small to subsample, frames that do not divide).

    Raises:
        ValueError: a layer, block or option that does not exist (the nearest names are given); a layer that
            is named twice, has a block or is no place for one; options that do not go together; a model that
            does not run on the example input or is wrapped already. The model is then unchanged.
    """
    check_budget(memory_budget)
    child = child_of(block)
    options = BlockOptions(
        inner_channels,
        pairwise,
        3 if dims is None else dims,
        subsample,
        subsample_at,
        span,
        temporal_groups,
        scale,
        norm,
        init,
    )
    make: Maker | None = None
    if block == "nonlocal":
        if block_options:
            raise ValueError(
                f"block_options {sorted(block_options)}: a non-local block's are arguments of their own"
            )
    else:
        _only_defaults(dataclasses.replace(options, dims=3), block)
        make = maker(block, block_options or {})
    places = _places(model, [after] if isinstance(after, str) else list(after))
    outputs = layer_outputs(model, list(places.values()), example_input, attach=attach)
    made: dict[str, nn.Module] = {}
    for name, place in places.items():
        output = outputs[place]
        axes = _dims(name, output, dims)
        if make is None:
            here = dataclasses.replace(options, dims=axes)
            new: nn.Module = NonLocalBlock(output.shape[1], **here.arguments(), memory_budget=memory_budget)
        else:
            new = make(output.shape[1], axes)
            if not isinstance(new, nn.Module):
                raise ValueError(f"block made a {type(new).__name__} for layer {name!r}, no torch.nn.Module")
        if example_input is not None and isinstance(new, NonLocalBlock):
            _check_size(name, new, output)
        layer = model.get_submodule(place)
        made[place] = new.to(output.device, output.dtype).train(layer.training)
    for place, new in made.items():
        attach(model.get_submodule(place), new, child)
    return model


def _only_defaults(options: BlockOptions, block: str | Maker) -> None:
    """Refuse what another block would not look at."""
    given = dataclasses.asdict(options)
    different = [name for name, value in dataclasses.asdict(BlockOptions()).items() if given[name] != value]
    if different:
        raise ValueError(
            f"{', '.join(different)}: options of a non-local block, with block={block!r}; give its own as "
            "block_options={...}"
        )


def attach(layer: nn.Module, block: nn.Module, child: str = CHILD) -> None:
    """Make `block` a child of `layer` that is applied to its output.

    The block comes before other hooks, so that they, too, see what follows the block. The handle is kept
    because unpickling it is what tells torch that the hook's number is taken: without it, the next hook that
    is registered on a model that was pickled whole would replace the block in silence.
    """
    layer.add_module(child, block)
    hook = apply_block if child == CHILD else functools.partial(apply_child, child)
    vars(layer)[_HANDLE] = layer.register_forward_hook(hook, prepend=True)


def apply_block(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
    """The forward hook of a layer that has a block. A function of a module, so that it can be pickled."""
    block = layer.get_submodule(CHILD)
    y: Tensor = block(output)
    return y


def apply_child(child: str, layer: nn.Module, _: Any, output: Tensor) -> Tensor:
    """The same for a child of another name."""
    y: Tensor = layer.get_submodule(child)(output)
    return y


def _places(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """For every name the layer that gets the block: itself, or the last part of a plain Sequential."""
    if not names:
        raise ValueError("after names no layer; give at least one, such as after=['layer3.4']")
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[str, str] = {}
    taken: dict[nn.Module, str] = {}
    for name in names:
        if not isinstance(name, str) or not name or name not in modules:
            raise ValueError(_no_such_layer(name, [known for known in modules if known]))
        place = _last_part(name, modules[name])
        _refuse_wrapped(place, modules)
        layer = modules[place]
        if layer in taken:
            raise ValueError(
                f"{name!r} and {taken[layer]!r} are the same place; to put a second block behind the first, "
                f"call insert_blocks again with {f'{place}.{CHILD}'!r}"
            )
        there = [child for child in (*CHILDREN.values(), OTHER_CHILD) if hasattr(layer, child)]
        if there and _HANDLE in vars(layer):
            raise ValueError(
                f"layer {place!r} has a block already; to put another behind it, insert after "
                f"{f'{place}.{there[0]}'!r}"
            )
        taken[layer] = name
        places[name] = place
    return places


def _refuse_wrapped(place: str, modules: dict[str, nn.Module]) -> None:
    """Refuse a layer that is, or stands inside, something that has looked at the network already."""
    parts = place.split(".")
    for end in range(len(parts) + 1):
        name = ".".join(parts[:end])
        module = modules[name]
        where = f"the model's part {name!r}" if name else "the model"
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                raise ValueError(
                    f"{where} is wrapped in {kind.__name__} already: {_WRAPPERS[kind.__name__]}. "
                    "Insert the blocks first, then wrap"
                )
        if isinstance(module, ScriptModule):
            raise ValueError(f"{where} is TorchScript, which cannot be changed; insert before scripting it")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(f"{where} is compiled already; insert the blocks first, then compile")


def _last_part(name: str, layer: nn.Module) -> str:
    while (
        not isinstance(layer, ScriptModule)
        and type(layer).forward is nn.Sequential.forward
        and len(layer._modules)
    ):
        child, part = list(layer._modules.items())[-1]
        assert part is not None
        name, layer = f"{name}.{child}", part
    return name


def _no_such_layer(name: Any, known: Sequence[str]) -> str:
    text = f"the model has no layer {name!r}"
    if not isinstance(name, str) or not name:
        return f"{text}; a name is as in model.named_modules(), such as {known[0]!r}" if known else text
    near = nearest_names(name, known, count=4)
    parent = name
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    inside = [other for other in known if parent and other.rpartition(".")[0] == parent]
    near = list(dict.fromkeys([*inside[-4:], *near])) if inside else near
    if not near:
        near = [other for other in known if "." not in other]
    return f"{text}; the nearest are {', '.join(near)}"


def _dims(name: str, output: LayerOutput, dims: int | None) -> int:
    axes = len(output.shape) - 2
    if dims is None and output.input_axes is not None and output.input_axes != len(output.shape):
        raise ValueError(
            f"layer {name!r} gives out {output.shape}, {len(output.shape)} axes for an input of "
            f"{output.input_axes}; if they are (batch, channels, *positions), say so with dims={axes}"
        )
    if dims is None and not output.axes_known:
        raise ValueError(
            f"layer {name!r} gives out {output.shape}, and nothing tells which axis is channels: the network "
            "takes this size alone, and the layer has no convolution or norm of that many. If "
            f"the axes are (batch, channels, *positions), say so with dims={axes}; a block cannot stand "
            "where channels come last"
        )
    if dims is not None and dims != axes:
        raise ValueError(f"dims={dims}, but layer {name!r} gives out {output.shape}: dims={axes}")
    return axes


def _check_size(name: str, block: NonLocalBlock, output: LayerOutput) -> None:
    positions = output.shape[2:]
    try:
        block.key_shape(positions)
        if block.dims == 3:
            Grouping(block.span, block.temporal_groups).frames_per_group(positions[0])
    except ValueError as error:
        raise ValueError(f"layer {name!r} gives out {output.shape}: {error}") from error
