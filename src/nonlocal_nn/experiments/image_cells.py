"""Cells of a table about images: a network of the catalog as an image classifier, trained and tested.

>>> from nonlocal_nn.experiments.tables import get_table
>>> cells = image_cells(get_table("se"), (0, 1), Path("grid"), "train.zip", "test.zip")
>>> len(cells), cells[0].variant, cells[0].steps
(18, 'none', 800)

All variants of a seed see the same batches and start with the same weights in the layers they share.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nonlocal_nn._files import write_whole
from nonlocal_nn.experiments.cells import Cell, changes, hash_of, read_results
from nonlocal_nn.experiments.tables import Images, Table
from nonlocal_nn.models.spec import VideoResNetSpec

_VERSION = 1  # raise when what a cell does changes: cells of an older version are made anew
_LR, _MOMENTUM, _DECAY = 0.1, 0.9, 5e-4


@dataclass(frozen=True)
class ImageCell:
    """One run.

    Attributes:
        variant, seed: where it stands in the table; the fold is always "".
        key: a hash of all that decides its figures.
        folder: of its results.
        spec: the network.
        images: how many to train on, of what size, by what batches; `steps` of them.
        train, test: folders or zip files, one folder a class.
    """

    variant: str
    seed: int
    key: str
    folder: Path
    spec: VideoResNetSpec
    images: Images
    steps: int
    train: str
    test: str
    fold: str = ""

    @property
    def batch_size(self) -> int:
        return self.images.batch

    def clip_of(self, spec: VideoResNetSpec) -> tuple[int, int]:
        """Frames and side in pixels of what the network sees."""
        return spec.frames, self.images.side

    def results(self) -> dict[str, Any] | None:
        """What was found, with the names of a video test; None where it is not finished."""
        return read_results(self.folder)


AnyCell = Cell | ImageCell


def image_cells(table: Table, seeds: Sequence[int], root: Path, train: str, test: str) -> list[ImageCell]:
    """The cells of a table, seeds outside: a grid that is cut off is still paired."""
    images = table.images
    if images is None:
        raise ValueError(f"table {table.name} is about videos")
    places = [str(Path(place).resolve()) for place in (train, test)]
    cells = []
    for seed in seeds:
        for variant in table.variants:
            decides = {
                "version": _VERSION,
                "spec": changes(replace(variant.spec, name="")),
                "images": changes(images),
                "steps": table.steps,
                "seed": seed,
                "places": places,
            }
            key = hash_of(decides)
            folder = root / "cells" / key
            cells.append(
                ImageCell(
                    variant.name, seed, key, folder, variant.spec, images, table.steps, places[0], places[1]
                )
            )
    return cells


def train_and_test(cell: ImageCell) -> None:
    """SGD from 0.1 to 0 along a cosine, momentum 0.9, decay 5e-4, images mirrored at random; then the test.

    Raises:
        ValueError: too few images, other classes in the test.
    """
    import torch
    from torch import nn

    from nonlocal_nn.data.class_images import read_image_sets
    from nonlocal_nn.experiments.image_training import accuracy, batches, mirror, pixels
    from nonlocal_nn.models.build import build_model

    (images, labels), (others, wanted), classes = read_image_sets(cell.train, cell.test)
    count = cell.images.count
    if len(images) < count:
        raise ValueError(f"{cell.train} has {len(images)} images; this table trains on {count}")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count].numpy()
    x, y = pixels(images[chosen], cell.images.side), torch.from_numpy(labels[chosen])
    model = build_model(cell.spec.replace(num_classes=len(classes)), cell.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cell.steps)
    started = time.perf_counter()
    for some, mirrored in batches(count, cell.images.batch, cell.steps, cell.seed):
        logits = model(mirror(x[some], mirrored)[:, :, None])
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(logits, y[some]))
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - started
    model.eval()
    right = accuracy(
        lambda part: model(part[:, :, None]), pixels(others, cell.images.side), torch.from_numpy(wanted)
    )
    found = {
        "videos": len(others),
        "video_top1": right,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds": round(seconds, 1),
    }
    write_whole(cell.folder / "results.json", lambda partial: partial.write_text(json.dumps(found)))
