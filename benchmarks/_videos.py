"""Videos to measure with, of the size and length of a Kinetics clip."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def make_video(path: Path, seed: int, frames: int = 300, width: int = 340, height: int = 256) -> Path:
    """Write a textured scene under a moving camera, 10 s long, as a Kinetics clip is stored."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    scene = av.VideoFrame.from_ndarray(small).reformat(width=800, height=600).to_ndarray(format="rgb24")
    drift = np.cumsum(rng.normal(0, 1.5, (frames, 2)), axis=0) + np.array([170, 220])
    corners = np.clip(drift, 0, (600 - height, 800 - width)).astype(int)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for top, left in corners.tolist():
            image = scene[top : top + height, left : left + width].astype(np.int16)
            image += rng.normal(0, 3, image.shape).astype(np.int16)  # a sensor's noise
            frame = av.VideoFrame.from_ndarray(np.clip(image, 0, 255).astype(np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
