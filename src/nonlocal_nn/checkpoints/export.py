"""Models into the layouts other projects read; what one cannot say is an error before anything is written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonlocal_nn._files import write_whole
from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock
from nonlocal_nn.checkpoints.layouts import LAYOUTS, WRITTEN_LAYOUTS, Layout
from nonlocal_nn.checkpoints.pickled_arrays import write_arrays
from nonlocal_nn.checkpoints.recognise import Hints, implied_values, infer_spec, to_ours
from nonlocal_nn.checkpoints.save import save_model
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.models.video_resnet import VideoResNet
from nonlocal_nn.pairwise import get_pairwise

# What a network does not get from its weights; a published file says nothing of it.
_NOT_IN_FILES = ("name", "dropout", "frames", "crop", "nonlocal_init")
_HINTED = ("stem", "pairwise", "scale", "temporal_groups")


def export_model(model: VideoResNet | NonLocalBlock, path: str | Path, to: str) -> dict[str, Any]:
    """Write a model in a layout, whole or not at all; returns the hints with which it loads as it was.

    >>> import tempfile
    >>> from nonlocal_nn.models.catalog import create_model
    >>> model = create_model("c2d_tiny_nl1", pairwise="dot_product", subsample_at="input")
    >>> path = Path(tempfile.mkdtemp()) / "model.pyth"
    >>> export_model(model, path, "pyslowfast")
    {'stem': 'tiny', 'pairwise': 'dot_product'}

    Weights go to the file as they are: loading it with these hints gives the same tensors. Class names, the
    clip's size and dropout are kept by our own layout alone; step counters of batch norms not by Caffe2.

    Args:
        model: a network that has a spec; for "native" also a block.
        path: of the file; missing folders are made, an older file is replaced.
        to: "native", "pyslowfast", "mmaction2" or "caffe2".

    Raises:
        ValueError: the layout does not exist or cannot express the network; the text says what of it.
    """
    if to == "native":
        save_model(model, path)
        return {}
    if to not in WRITTEN_LAYOUTS:
        raise ValueError(f"no layout to write is called {to!r}; there are {', '.join(WRITTEN_LAYOUTS)}")
    if isinstance(model, NonLocalBlock):
        raise ValueError(
            f"a single block has no place in {LAYOUTS[to].owner}: only whole networks have; use native"
        )
    if model.spec is None:
        raise ValueError("the model has no spec, so nothing says which of its layers are which")
    layout = LAYOUTS[to]
    tensors = _their_tensors(model.state_dict(), model.spec, layout)
    hints = _hints(tensors, model, layout)
    _write(tensors, Path(path), layout, bare=model.spec.norm == "frozen")
    return hints


def _their_tensors(state: Mapping[str, Tensor], spec: VideoResNetSpec, layout: Layout) -> dict[str, Tensor]:
    """The tensors under the layout's names.

    Raises:
        ValueError: the layout has no name for one that matters.
    """
    _check(spec, layout)
    implied = implied_values(spec, layout)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        last = name.rpartition(".")[2]
        fixed = implied.get(name, implied.get(last))
        theirs = layout.to_theirs(name, subsample=spec.subsample, normed=spec.nonlocal_norm is not None)
        if fixed is not None and (theirs is None or last != "num_batches_tracked"):
            if last != "num_batches_tracked" and bool((tensor != fixed).any()):
                raise ValueError(f"{layout.owner} takes {name} to be {fixed:g}, and here it is not")
            continue
        if theirs is None:
            raise ValueError(f"{layout.owner} has no name for {name}")
        if name.endswith(".w_f"):
            tensor = tensor.reshape(1, -1, 1, 1)
        tensors[theirs] = tensor.detach().cpu()
    return tensors


def _check(spec: VideoResNetSpec, layout: Layout) -> None:
    """Raise for what the names and shapes of tensors, and the hints, cannot say."""

    def refuse(what: str) -> None:
        raise ValueError(f"{layout.owner} cannot express this network: {what}")

    folded = spec.norm == "frozen" and spec.norm_eps == 0
    if spec.norm == "frozen" and not (folded and layout.name == "caffe2"):
        refuse("its batch norms are frozen" + (" and folded" if folded else "; build it with norm='batch'"))
    if spec.norm == "batch" and spec.norm_eps != 1e-5:
        refuse(f"its batch norms add {spec.norm_eps:g} to the variance, theirs 1e-05")
    if spec.stage_strides != (1, 2, 2, 2)[: len(spec.stage_blocks)]:
        refuse(f"its stages have strides {spec.stage_strides}")
    if not spec.nonlocal_after:
        return
    if spec.pairwise not in layout.block.pairwise:
        refuse(f"its blocks are {spec.pairwise}; theirs can be {', '.join(layout.block.pairwise)}")
    if spec.scale and spec.pairwise not in layout.block.scaled:
        refuse(f"its {spec.pairwise} blocks scale theta . phi")
    if spec.span != "spacetime":
        refuse(f"its blocks look over {spec.span} alone")
    if not spec.subsample and layout.name != "mmaction2":
        refuse("its blocks do not subsample, and the names of their tensors could not say so")
    if spec.subsample and spec.subsample_at != layout.block.subsample_at:
        theirs = "x before phi and g" if layout.block.subsample_at == "input" else "phi and g"
        refuse(f"its blocks pool at subsample_at={spec.subsample_at!r}; theirs pool {theirs}")
    if layout.name == "mmaction2" and any(groups != 1 for groups in spec.temporal_groups.values()):
        refuse(f"its blocks see groups of frames {dict(spec.temporal_groups)}")


def _hints(tensors: Mapping[str, Tensor], model: VideoResNet, layout: Layout) -> dict[str, Any]:
    """What must be said when the file is read; checked by reading it in memory.

    Raises:
        ValueError: no hints give back the network.
    """
    spec = model.spec
    assert spec is not None
    named, unused = to_ours(tensors, layout)
    try:
        read = infer_spec(named, tensors, layout, Hints())
    except ValueError:  # the layout's own stem has another conv1
        read = infer_spec(named, tensors, layout, Hints(stem=spec.stem)).replace(stem=layout.stem)
    hints = {field: getattr(spec, field) for field in _HINTED if getattr(read, field) != getattr(spec, field)}
    if not spec.nonlocal_after:
        hints = {field: value for field, value in hints.items() if field == "stem"}
    if spec.pairwise not in layout.block.scaled:
        hints.pop("scale", None)
    function = get_pairwise(spec.pairwise)
    if function.scores or not function.embeds:  # the names of the tensors tell
        hints.pop("pairwise", None)
    again = infer_spec(named, tensors, layout, Hints(**hints))
    fields = spec.to_dict()
    if not spec.nonlocal_after:
        for field in ("pairwise", "scale", "subsample", "subsample_at", "span", "temporal_groups"):
            fields[field] = getattr(again, field)
        fields["nonlocal_norm"] = again.nonlocal_norm
    if not spec.subsample:
        fields["subsample_at"] = again.subsample_at
    other = [
        f"{field} {value!r} would be read as {getattr(again, field)!r}"
        for field, value in fields.items()
        if field not in _NOT_IN_FILES and getattr(again, field) != value
    ]
    state = model.state_dict()
    if unused or other or any(not torch.equal(tensor, state[name].cpu()) for name, tensor in named.items()):
        raise ValueError(f"{layout.owner} cannot express this network: {'; '.join(other) or 'other tensors'}")
    return hints


def _write(tensors: Mapping[str, Tensor], path: Path, layout: Layout, *, bare: bool) -> None:
    def caffe2(file: Path) -> None:
        arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
        write_arrays(file, arrays, key=None if bare else layout.key)

    def zipped(file: Path) -> None:
        # clone: a tensor that is a view would take its whole storage into the file
        plain = OrderedDict(
            (name, tensor.clone(memory_format=torch.contiguous_format)) for name, tensor in tensors.items()
        )
        content: dict[str, Any] = {str(layout.key): plain}
        if layout.name == "mmaction2":
            content = {"meta": {}, **content}
        torch.save(content, file)

    write_whole(path, caffe2 if layout.name == "caffe2" else zipped)
