"""The gates of squeeze-and-excitation: the mean scale of every channel, by class (Hu et al. 2018, Fig. 5).

>>> import nonlocal_nn as nl
>>> model = nl.create_model("c2d_tiny", num_classes=2, se_reduction=4).eval()
>>> batches = [(torch.randn(4, 3, 8, 48, 48), [0, 1, 1, 0])]
>>> found = gates_by_class(model, batches)
>>> list(found)
['res2.0.excitation', 'res3.0.excitation', 'res3.1.excitation', 'res4.0.excitation']
>>> found["res2.0.excitation"].shape
(2, 32)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonlocal_nn._files import write_csv, write_whole
from nonlocal_nn._modes import evaluating
from nonlocal_nn.blocks.squeeze_excitation import SqueezeExcitation

Gates = dict[str, NDArray[np.float64]]


def gates_by_class(
    model: nn.Module, batches: Iterable[tuple[Tensor, Sequence[int] | Tensor]]
) -> dict[str, NDArray[np.float64]]:
    """The mean gates (classes, channels) of every block, by its name, in the order of the names.

    The model runs in eval mode and without gradients, on the device it is on; its mode is then what it was.
    Classes are 0 to the largest label; one without an image is NaN.

    Args:
        model: any network with `SqueezeExcitation` blocks, each of which runs once.
        batches: what the model takes, and the label of each.

    Raises:
        ValueError: a model without such blocks, no batch, labels that are not as many as images, or negative.
    """
    blocks = {name: part for name, part in model.named_modules() if isinstance(part, SqueezeExcitation)}
    if not blocks:
        raise ValueError("the model has no squeeze-and-excitation; nl.insert_blocks puts some into a network")
    seen: dict[str, list[Tensor]] = {name: [] for name in blocks}
    labels: list[int] = []
    place = next(model.parameters()).device

    def keep(name: str, block: SqueezeExcitation, u: Tensor) -> None:
        seen[name].append(block.gates(u).double().cpu())

    handles = [
        block.register_forward_pre_hook(lambda block, args, name=name: keep(name, block, args[0]))
        for name, block in blocks.items()
    ]
    try:
        with evaluating(model), torch.no_grad():
            for x, classes in batches:
                some = [int(label) for label in classes]
                if len(some) != len(x) or min(some, default=0) < 0:
                    raise ValueError(
                        f"{len(some)} labels, {some[:6]}, for {len(x)} images: one each, 0 or more"
                    )
                model(x.to(place))
                labels += some
    finally:
        for handle in handles:
            handle.remove()
    if not labels:
        raise ValueError("no batch: give images and their labels")
    of = np.array(labels)
    found: Gates = {}
    for name, parts in seen.items():
        gates = torch.cat(parts).numpy() if parts else np.zeros((0, blocks[name].channels))
        if len(gates) != len(of):
            raise ValueError(
                f"block {name!r} ran for {len(gates)} of {len(of)} images: each block must run once"
            )
        rows = [gates[of == label] for label in range(of.max() + 1)]
        found[name] = np.stack(
            [part.mean(axis=0) if len(part) else np.full(gates.shape[1], np.nan) for part in rows]
        )
    return found


def write_gates(path: str | Path, gates: Mapping[str, NDArray[np.float64]]) -> None:
    """A csv with a row for each block, channel and class."""
    rows = (
        (name, channel, label, value)
        for name, of_block in gates.items()
        for label, of_class in enumerate(of_block.tolist())
        for channel, value in enumerate(of_class)
    )
    write_csv(Path(path), ("block", "channel", "class", "gate"), rows)


def draw_gates(
    path: str | Path, gates: Mapping[str, NDArray[np.float64]], classes: Sequence[str] | None = None
) -> None:
    """A panel for each block: gate against channel, a line for each class; black: the mean of all.

    Raises:
        ValueError: names that are not as many as classes, or an ending other than .png, .svg or .pdf.
    """
    from matplotlib.figure import Figure

    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"{path}: cannot write '.{kind}'; the endings are .png, .svg, .pdf")
    count = len(next(iter(gates.values())))
    if classes is not None and len(classes) != count:
        raise ValueError(f"{len(classes)} names for {count} classes")
    columns = min(4, len(gates))
    rows = -(-len(gates) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.2 * rows + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, of_block) in zip(panels, gates.items(), strict=False):
        for label, of_class in enumerate(of_block):
            axes.plot(of_class, linewidth=0.8, label=str(label) if classes is None else classes[label])
        axes.plot(np.nanmean(of_block, axis=0), color="black", linewidth=1.2)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
    for axes in panels[len(gates) :]:
        axes.set_axis_off()
    figure.supylabel("gate of each channel", fontsize=8)
    first = figure.axes[0]
    if count <= 12:
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7)
    write_whole(path, lambda partial: figure.savefig(partial, format=kind, dpi=130))
