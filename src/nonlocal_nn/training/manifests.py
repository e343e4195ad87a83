"""The lists of videos that a run reads; no torch here, so that a wrong path is said at once."""

from __future__ import annotations

from dataclasses import dataclass

from nonlocal_nn.data.manifest import read_classes, read_manifest
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.training.config import DataConfig


@dataclass(frozen=True)
class Manifests:
    """Training videos and, where given, validation videos of the same classes."""

    train: Manifest
    val: Manifest | None


def read_manifests(data: DataConfig) -> Manifests:
    """Read the lists of videos that the config names.

    Raises:
        ValueError: fewer than two classes, or validation videos with other classes than the training videos.
    """
    classes = None if data.classes is None else read_classes(data.classes)
    train = read_manifest(data.train, kind=data.kind, root=data.root, classes=classes, where=data.train_where)
    if train.num_classes < 2:
        raise ValueError(
            f"{data.train} has {train.num_classes} class ({', '.join(train.classes)}); "
            "to tell classes apart takes two"
        )
    if data.val is None:
        if data.val_where is not None:
            raise ValueError("data.val_where chooses rows of data.val, which is not given")
        return Manifests(train, None)
    # By name, so that a class the validation videos lack does not shift the labels of the others.
    val = read_manifest(data.val, kind=data.kind, root=data.root, classes=train.classes, where=data.val_where)
    if val.multi_label != train.multi_label:
        several, one = (data.train, data.val) if train.multi_label else (data.val, data.train)
        raise ValueError(f"{several} has several labels a video, {one} has one: they are different tasks")
    return Manifests(train, val)
