"""Capture: one forward pass, after which any row of f/C of every non-local block can be had.

>>> from nonlocal_nn.models.catalog import create_model
>>> model = create_model("c2d_tiny_nl2", num_classes=4)
>>> captured = capture(model, torch.randn(1, 3, 8, 48, 48))
>>> list(captured.blocks)
['res3.nonlocal0', 'res3.nonlocal1']
>>> block = captured.blocks["res3.nonlocal0"]
>>> centre = block.queries.nearest(frame=4, row=24, column=24)
>>> block.rows([centre]).shape, block.keys.shape
((1, 72), (8, 3, 3))

theta and phi of every block are kept, which takes memory in proportion to the positions; the matrix of all
positions with all keys is never made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonlocal_nn._modes import evaluating
from nonlocal_nn._names import nearest_names
from nonlocal_nn.data.defaults import MEAN, STD
from nonlocal_nn.explain.capture.axis_rules import Axes
from nonlocal_nn.explain.capture.block import BlockAffinity
from nonlocal_nn.explain.capture.geometry import Axis, GridGeometry
from nonlocal_nn.explain.capture.heads import Attending, affinities
from nonlocal_nn.explain.capture.tracing import AxisTrace
from nonlocal_nn.pairwise import PairwiseFunction

CLASSES_KEPT = 5


@runtime_checkable
class Relating(Protocol):
    """A block that weighs positions: all that is asked of one, so that any of its kind can be looked into.

    `NonLocalBlock` and `GlobalContext` are such blocks; layers of heads are `Attending`. The weights of a
    query are a row of f / C, made from theta at the query and phi at all keys.
    """

    span: str
    """"spacetime", "space" or "time": which positions a query sees."""
    temporal_groups: int
    """Runs of frames that see each other."""

    @property
    def function(self) -> PairwiseFunction:
        """F and C."""

    def embeddings(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of theta and phi: (batch, d, positions ...) and (batch, d, keys ...)."""

    def affinity_of(self, theta: Tensor, phi: Tensor, queries: Tensor) -> Tensor:
        """Rows (batch, query, key) for flat positions."""


@dataclass(frozen=True)
class Capture:
    """One clip, and what the non-local blocks of a network looked at in it.

    Attributes:
        frames: the pictures the network saw, uint8 RGB (frames, height, width, 3).
        frame_seconds: when each of them is shown in the video, where known.
        blocks: by name, in the order they ran; heads of self-attention one by one, "LAYER head 0" and so on.
        classes: the likeliest classes, best first: (name, score from 0 to 1); none where the network has no
            class scores.
        title: such as the video's name.
    """

    frames: NDArray[np.uint8]
    frame_seconds: tuple[float, ...] | None
    blocks: dict[str, BlockAffinity]
    classes: tuple[tuple[str, float], ...]
    title: str


def capture(
    model: nn.Module,
    clip: Tensor,
    *,
    blocks: Sequence[str] | None = None,
    frames: NDArray[np.uint8] | None = None,
    frame_seconds: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    title: str = "",
) -> Capture:
    """Run `clip` through `model` once and keep what is needed for any row of its blocks.

    >>> from nonlocal_nn.insertion.insert import insert_blocks
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
    >>> captured = capture(insert_blocks(network, after="1"), torch.rand(1, 3, 32, 32))
    >>> captured.blocks["1.nonlocal_block"].queries
    GridGeometry(shape=(1, 16, 16), first=(0.0, 0.0, 0.0), step=(1.0, 2.0, 2.0), receptive=(1.0, 3.0, 3.0))

    The model runs in eval mode and without gradients, on the device it is on; its mode is then what it was.

    Args:
        model: any network with non-local blocks.
        clip: what the model takes, a batch of one: (1, channels, frames, height, width), an image
            (1, channels, height, width) or a sequence (1, channels, n).
        blocks: names as in `model.named_modules()`; None: all of them.
        frames: the pictures that the clip was made from, uint8 (frames, height, width, 3); None: made of the
            clip.
        frame_seconds: when each frame is shown.
        classes: names of the model's outputs; None: `model.classes`, or numbers.
        title: for pictures.

    Raises:
        ValueError: a model without non-local blocks, a block that does not exist (the nearest are named) or
            does not run, a clip that is no batch of one, frames that do not fit it.
    """
    chosen = _chosen_blocks(model, blocks)
    if not 3 <= clip.dim() <= 5 or clip.shape[0] != 1:
        raise ValueError(
            "give one clip (1, channels, frames, height, width), image (1, channels, height, width) or "
            f"sequence (1, channels, n), not {tuple(clip.shape)}"
        )
    size = (1, 1, 1, *clip.shape[2:])[-3:]
    pictures = _pictures_of(clip) if frames is None else _checked_frames(frames, size)
    if frame_seconds is not None and len(frame_seconds) != len(pictures):
        raise ValueError(f"{len(frame_seconds)} frame_seconds for {len(pictures)} frames")
    output, found = _run(model, clip, chosen, size)
    ran = {block.layer or name for name, block in found.items()}
    if missing := [name for name in chosen if name not in ran] if blocks is not None else ():
        raise ValueError(f"block {missing[0]!r} does not run in the model's forward pass")
    if not found:
        raise ValueError("none of the model's non-local blocks runs in its forward pass")
    return Capture(
        frames=pictures,
        frame_seconds=None if frame_seconds is None else tuple(float(second) for second in frame_seconds),
        blocks=found,
        classes=_best_classes(model, output, classes),
        title=title,
    )


def _pictures_of(clip: Tensor) -> NDArray[np.uint8]:
    """A normalised clip as pictures; other values are stretched to the range of a picture."""
    values = clip.detach()[0].float().cpu()
    values = values.reshape(values.shape[0], *(1, 1, 1, *values.shape[1:])[-3:])
    if values.shape[0] != 3:
        values = values.mean(dim=0, keepdim=True).expand(3, -1, -1, -1)
    low, high = float(values.min()), float(values.max())
    normalised = (-MEAN / STD - 0.2, (255 - MEAN) / STD + 0.2)
    if low >= 0 and high <= 1:
        values = values * 255
    elif normalised[0] <= low and high <= normalised[1]:
        values = values * STD + MEAN
    elif low < 0 or high > 255:
        values = (values - low) / max(high - low, 1e-12) * 255
    pictures: NDArray[np.uint8] = values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy()
    return np.ascontiguousarray(pictures)


def _checked_frames(frames: NDArray[np.uint8], size: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The frames as they were given.

    Raises ValueError where they are no uint8 pictures of the clip's size (frames, height, width).
    """
    if frames.dtype != np.uint8 or frames.shape != (*size, 3):
        raise ValueError(
            f"frames must be uint8 {(*size, 3)}, as the clip has them, not {frames.dtype} {frames.shape}"
        )
    return np.ascontiguousarray(frames)


def _chosen_blocks(model: nn.Module, names: Sequence[str] | None) -> dict[str, Relating | Attending]:
    known = {
        name: module for name, module in model.named_modules() if isinstance(module, Relating | Attending)
    }
    if not known:
        raise ValueError(
            "the model has no non-local block to look into; nl.insert_blocks puts blocks into a network, and "
            "nl.list_models('*nl*') lists networks with some"
        )
    if names is None:
        return known
    for name in names:
        if name not in known:
            near = nearest_names(name, known, cutoff=0.5, otherwise=8)
            some = "the nearest are" if len(near) < len(known) else "there are"
            raise ValueError(f"the model has no non-local block {name!r}; {some} {', '.join(near)}")
    return {name: known[name] for name in names}


def _run(
    model: nn.Module, clip: Tensor, chosen: dict[str, Relating | Attending], size: tuple[int, int, int]
) -> tuple[Any, dict[str, BlockAffinity]]:
    """The model's output, and every run of a chosen block."""
    found: dict[str, BlockAffinity] = {}
    runs: dict[str, int] = {}
    trace = AxisTrace()
    place = next((tensor.device for tensor in model.parameters()), clip.device)
    clip = clip.detach().to(place).clone()  # a tensor of our own: the trace marks it, the model may change it

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            label = name if runs[name] == 1 else f"{name} (run {runs[name]})"
            block, x = chosen[name], args[0]
            grid = _grid(x, trace.axes_of(x), size)
            if isinstance(block, Attending):
                if len(x) > 1:
                    raise ValueError(f"{name} runs on a batch of {len(x)} for one clip")
                found.update({head.name: head for head in affinities(label, block, x, z, grid)})
            else:
                found[label] = _affinity(label, block, x, z, grid)

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name), prepend=True) for name in chosen]
    try:
        with evaluating(model), torch.no_grad(), trace:
            trace.start(clip)
            output = model(clip)
    finally:
        for handle in handles:
            handle.remove()
    return output, found


def _affinity(name: str, block: Relating, x: Tensor, z: Tensor, queries: GridGeometry) -> BlockAffinity:
    theta, phi = block.embeddings(x)
    keys_shape = (1, 1, *phi.shape[2:])[-3:]
    keys = queries.pooled((queries.shape[0], keys_shape[1], keys_shape[2]))
    images = x.shape[0]  # more than one: a network that folds frames into the batch
    positions, each = queries.positions // images, keys.positions // images

    def compute(wanted: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = np.zeros((len(wanted), keys.positions), np.float32)
        image, inside = np.divmod(wanted, positions)
        for number in np.unique(image):
            of_image = np.flatnonzero(image == number)
            row = block.affinity_of(
                theta[number : number + 1], phi[number : number + 1], torch.from_numpy(inside[of_image])
            )
            rows[of_image, number * each : (number + 1) * each] = row[0].float().cpu().numpy()
        return rows

    change = (z - x).float().norm(dim=1).flatten()
    return BlockAffinity(
        name=name,
        function=block.function,
        span=block.span if images == 1 else "space",
        temporal_groups=block.temporal_groups,
        queries=queries,
        keys=keys,
        compute_rows=compute,
        responses=change.cpu().numpy(),
    )


def _grid(x: Tensor, axes: Axes | None, size: tuple[int, int, int]) -> GridGeometry:
    """The grid of x's positions; along an axis that could not be followed, spread evenly over the input."""
    parts = [part for along in (*axes[:1], *axes[2:]) for part in along] if axes is not None else []
    order = [part.axis if isinstance(part, Axis) else -1 for part in parts]
    known = {part.axis: part for part in parts if isinstance(part, Axis)}
    if -1 not in order and order == sorted(set(order)) and len(order) >= x.dim() - 2:
        grid = [known.get(axis, Axis(axis, 1)) for axis in range(3)]
        if grid[0].size * grid[1].size * grid[2].size == x.shape[0] * x[0, 0].numel():
            return GridGeometry.of_axes(*grid)
    if x.shape[0] != 1:
        raise ValueError(
            f"a non-local block runs on a batch of {x.shape[0]} for one clip, and which part of the clip "
            "each stands for could not be followed"
        )
    shape = (1, 1, 1, *x.shape[2:])[-3:]
    grid = []
    for axis in range(3):
        part = known.get(axis)
        fits = part is not None and part.size == shape[axis]
        grid.append(part if fits and part is not None else Axis(axis, size[axis]).resized(shape[axis]))
    return GridGeometry.of_axes(*grid)


def _best_classes(
    model: nn.Module, output: Any, names: Sequence[str] | None
) -> tuple[tuple[str, float], ...]:
    """The likeliest classes, if the output is one row of logits."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != 1 or output.shape[1] < 2:
        return ()
    logits = output[0].float().cpu()
    known = getattr(model, "classes", None) if names is None else names
    if known is not None and len(known) != len(logits):
        raise ValueError(f"{len(known)} class names for the model's {len(logits)} outputs")
    metadata = getattr(model, "metadata", {})
    several = isinstance(metadata, dict) and metadata.get("multi_label") == "true"
    scores = (logits.sigmoid() if several else logits.softmax(dim=0)).numpy()
    best = np.argsort(-scores, kind="stable")[:CLASSES_KEPT]
    return tuple((str(index) if known is None else str(known[index]), float(scores[index])) for index in best)
