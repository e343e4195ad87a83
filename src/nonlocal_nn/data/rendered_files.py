"""What all rendered sets share: a folder that is written whole or anew, and lossless H.264."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from nonlocal_nn._cores import available_cores

_Job = TypeVar("_Job")

STAMP = "rendered.json"
FRAMES_PER_SECOND = 8


def stamp_of(root: Path) -> object:
    """What the finished set in a folder was made by; None where there is none."""
    try:
        return json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return None


def write_stamp(root: Path, recipe: dict[str, Any]) -> None:
    """Say that the set is finished: last of all, so that a set without it was interrupted."""
    (root / STAMP).write_text(json.dumps(recipe))


def clear(root: Path, ours: Sequence[str]) -> None:
    """Empty a folder, or make it; ValueError where something in it is not part of a rendered set."""
    known = {*ours, STAMP}
    if root.exists():
        strangers = sorted(path.name for path in root.iterdir() if path.name not in known)
        if strangers:
            raise ValueError(
                f"{root} holds {strangers[0]!r}, which is not part of a rendered set; "
                "choose an empty or a new folder"
            )
        (root / STAMP).unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    for name in ours:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_all(
    write: Callable[[Path, _Job], int],
    root: Path,
    jobs: Sequence[_Job],
    videos: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Call `write(root, job)`, which returns how many videos it wrote, for every job, in processes."""
    done = 0
    count = min(workers if workers is not None else available_cores(), len(jobs))

    def report(written: int) -> None:
        nonlocal done
        done += written
        if progress is not None:
            progress(done, videos)

    if count <= 1:
        for job in jobs:
            report(write(root, job))
        return
    with ProcessPoolExecutor(count) as pool:
        for written in pool.map(write, [root] * len(jobs), jobs, chunksize=8):
            report(written)


def encode(
    path: str | os.PathLike[str],
    video: npt.NDArray[np.uint8],
    *,
    key_frame_every: int,
    pixel_format: Literal["yuv420p", "yuv444p"],
) -> None:
    """Write (frames, height, width, 3) as H.264 that loses nothing but what the pixel format does.

    Lossless, because a lossy encoder spends its bits over the whole frame: traces of what is in one place
    would be all over the picture, where a local feature could meet those of another. No frame depends on one
    before the last key frame. yuv420p keeps colours of 2 x 2 pixels together, yuv444p of every pixel.
    """
    import av

    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        stream.thread_count = 1
        stream.options = {
            "qp": "0",
            "preset": "veryfast",
            "x264-params": (
                f"keyint={key_frame_every}:min-keyint={key_frame_every}:scenecut=0:bframes=0:rc-lookahead=0:"
                "mbtree=0"
            ),
        }
        for image in video:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
