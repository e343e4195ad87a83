"""The videos of a run and the shape of its clips, as the config says.

No torch here, so that a wrong path is reported at once.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from nonlocal_nn.data.defaults import jitter_range
from nonlocal_nn.data.labels import ClassFile, read_class_file
from nonlocal_nn.data.manifest import read_manifest
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.data.video_index import KnownVideos
from nonlocal_nn.models.spec import VideoResNetSpec
from nonlocal_nn.training.config import DataConfig, LossName


@dataclass(frozen=True)
class Manifests:
    """Training videos and, where given, validation videos of the same classes.

    `known_train` and `known_val` are what the index that the config names knows of them.
    """

    train: Manifest
    val: Manifest | None
    known_train: KnownVideos | None = None
    known_val: KnownVideos | None = None

    def notes(self, index: str | None) -> tuple[str, ...]:
        """How the lists were read, and what the index does not know, in a line each."""
        notes = [*self.train.notes, *(() if self.val is None else self.val.notes)]
        for known in (self.known_train, self.known_val):
            notes += () if known is None or index is None else known.note(index)
        return tuple(dict.fromkeys(notes))


def read_manifests(data: DataConfig) -> Manifests:
    """Read the lists of videos that the config names.

    Raises:
        FileNotFoundError: no such list, folder or index.
        ValueError: an index that is none, fewer than two classes, a class without training videos, a label
            that is no class, or validation videos with other classes than the training videos.
    """
    known = ClassFile(()) if data.classes is None else read_class_file(data.classes)
    train = read_manifest(
        data.train,
        kind=data.kind,
        root=data.root,
        classes=known.names or None,
        first_label=known.first,
        where=data.train_where,
        group_by=data.group_by,
    )
    train.require_known_labels()
    if train.num_classes < 2:
        raise ValueError(
            f"{data.train} has {train.num_classes} class ({', '.join(train.classes)}); "
            "to tell classes apart takes two"
        )
    train.require_every_class(data.train)
    if data.val is None:
        if data.val_where is not None:
            raise ValueError("data.val_where chooses rows of data.val, which is not given")
        return Manifests(train, None, _known(data.index, train))
    # By name, so that a class the validation videos lack does not shift the labels of the others.
    val = read_manifest(
        data.val,
        kind=data.kind,
        root=data.root,
        classes=train.classes,
        first_label=train.first_label,
        where=data.val_where,
    )
    val.require_known_labels()
    if val.multi_label != train.multi_label:
        several, one = (data.train, data.val) if train.multi_label else (data.val, data.train)
        raise ValueError(f"{several} has several labels a video, {one} has one: they are different tasks")
    return Manifests(train, val, _known(data.index, train), _known(data.index, val))


def _known(index: str | None, manifest: Manifest) -> KnownVideos | None:
    return None if index is None else KnownVideos.of(index, manifest)


def fingerprint_of(manifest: Manifest) -> str:
    """A hash of the names and labels of the videos, in order, wherever they lie.

    >>> here, there = (Manifest.of_paths([f"{folder}/a.mp4"], [0], ["run"]) for folder in ("here", "there"))
    >>> fingerprint_of(here) == fingerprint_of(there)
    True
    """
    digest = hashlib.sha256(repr(manifest.classes).encode())
    all_actions = manifest.records.actions()
    for (path, labels, start, end), actions in zip(manifest.records.rows(), all_actions, strict=True):
        row = (path[path.rfind(os.sep) + 1 :], labels, start, end)
        digest.update(repr((*row, actions) if actions else row).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ClipShape:
    """The clips of a run, with every default of the config worked out."""

    frames: int
    stride: int
    crop: int
    jitter: tuple[int, int]
    test_short_side: int


def clip_shape(data: DataConfig, spec: VideoResNetSpec) -> ClipShape:
    """Clip length and sizes: the config's, or those the model is made for, in the paper's proportions.

    >>> from nonlocal_nn.models.catalog import get_spec
    >>> clip_shape(DataConfig(train="videos"), get_spec("c2d_r50"))
    ClipShape(frames=32, stride=2, crop=224, jitter=(256, 320), test_short_side=256)
    """
    crop = spec.crop if data.crop is None else data.crop
    jitter = jitter_range(crop) if data.jitter is None else data.jitter
    return ClipShape(
        frames=spec.frames if data.clip_frames is None else data.clip_frames,
        stride=data.frame_stride,
        crop=crop,
        jitter=jitter,
        test_short_side=jitter[0],  # a test sees a scale that training saw: its smallest, 256 in the paper
    )


def describe_input(data: DataConfig, shape: ClipShape, loss_name: LossName) -> dict[str, str]:
    """What the finished model's file says of its input, for those who test it or predict with it.

    >>> shape = ClipShape(frames=8, stride=2, crop=48, jitter=(55, 69), test_short_side=55)
    >>> describe_input(DataConfig(train="videos"), shape, "cross_entropy")["frame_stride"]
    '2'
    """
    return {
        "clip_frames": str(shape.frames),
        "frame_stride": str(shape.stride),
        "crop": str(shape.crop),
        "short_side": str(shape.test_short_side),
        "mean": str(data.mean),
        "std": str(data.std),
        "multi_label": str(loss_name == "sigmoid").lower(),
    }
