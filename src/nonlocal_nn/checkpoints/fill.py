"""A model filled with a file's tensors: all of them in one step, or none."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from nonlocal_nn._modes import meta_init
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.checkpoints.inflate import inflate_to
from nonlocal_nn.checkpoints.report import LoadReport, compare

Model = TypeVar("Model", bound=nn.Module)

_log = logging.getLogger(__name__)


def filled_model(
    build: Callable[[], Model],
    given: Mapping[str, Tensor],
    implied: Mapping[str, float],
    unused: tuple[str, ...],
    what: str,
    *,
    partial: bool,
    inflate: bool = False,
) -> tuple[Model, LoadReport]:
    """Build a model and give it the tensors of a file; in eval mode.

    Args:
        build: makes the model; called on the meta device, where weights cost nothing, unless some stay.
        given: the file's tensors, by the model's names. They become the model's own, without a copy.
        implied: names (or their last parts) of tensors that the layout fixes, with the value of all their
            numbers; used where `given` lacks them.
        unused: tensors of the file that have no name here, for the report.
        what: the file and its layout, for messages.
        partial: leave what is missing as it was built, what does not fit where it is, and say so. Otherwise
            both are errors.
        inflate: kernels without a time axis are inflated to what the model has.

    Raises:
        ValueError: the file does not fill the model.
    """
    with meta_init():
        model = build()
    wanted = model.state_dict()
    tensors: dict[str, Tensor] = {}
    implied_names: list[str] = []
    for name, own in wanted.items():
        if name in given:
            tensors[name] = inflate_to(given[name], own) if inflate else given[name]
        else:
            value = implied.get(name, implied.get(name.rpartition(".")[2]))
            if value is not None:
                tensors[name] = torch.full(own.shape, value, dtype=own.dtype)
                implied_names.append(name)
    for name, tensor in given.items():
        tensors.setdefault(name, tensor)
    found = compare(tensors, wanted)
    report = LoadReport(
        placed=tuple(name for name in found.placed if name not in set(implied_names)),
        missing=tuple(name for name in wanted if name not in tensors),
        unused=(*found.unused, *unused),
        mismatched=found.mismatched,
        implied=tuple(implied_names),
    )
    _check_dtypes(tensors, wanted, what)
    if not report.complete and not partial:
        raise ValueError(
            f"{what} does not fill the network it should be (partial=True places what fits): {report}"
        )
    if not report.placed:
        raise ValueError(f"{what}: no tensor fits the network it should be: {report}")
    fitting = [name for name in wanted if name in tensors and name not in found.mismatched]
    if len(fitting) < len(wanted):
        model = build()  # what the file lacks starts as in a new model
        wanted = model.state_dict()
    state = {name: tensor for name, tensor in wanted.items() if tensor.device.type != "meta"}
    state |= _as_weights({name: tensors[name] for name in fitting}, wanted)
    model.load_state_dict(state, assign=True)
    if not report.complete:
        warnings.warn(f"{what} was loaded in part: {report}", stacklevel=4)
    _warn_of_identity_blocks(model, what, stacklevel=5)
    _log.info("%s: %s", what, report)
    return model.eval(), report


def _warn_of_identity_blocks(model: nn.Module, what: str, stacklevel: int) -> None:
    """A block whose gamma (or W_z) is zero is the identity: the network runs, and runs without it."""
    off = [
        name or "the block"
        for name, block in model.named_modules()
        if isinstance(block, NonLocalBlock) and _is_identity(block)
    ]
    if off:
        warnings.warn(
            f"{what}: {len(off)} non-local block{'s' if len(off) > 1 else ''} switched off, as gamma of the "
            f"norm after W_z (without a norm, W_z) is all zero: {', '.join(off[:10])}. A new block is so "
            "until it is trained; in a trained network it means that its weights were not loaded",
            stacklevel=stacklevel,
        )


def _is_identity(block: NonLocalBlock) -> bool:
    last = block.W_z if block.norm is None else block.norm
    return isinstance(last.weight, Tensor) and not bool(last.weight.any())


def _check_dtypes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    for name, own in wanted.items():
        tensor = tensors.get(name)
        if tensor is not None and own.is_floating_point() and not tensor.is_floating_point():
            raise ValueError(f"{what}: {name} holds {tensor.dtype}, where weights are floating-point numbers")


def _as_weights(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the model's dtypes, dense, and no two in the same memory."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.to(wanted[name].dtype).contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen or tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()
        seen.add(storage)
        own[name] = tensor
    return own
