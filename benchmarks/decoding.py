"""What the data pipeline costs beside decoding: clips a second in one worker, against plain PyAV.

    python3 run.py bench decoding
    python3 run.py bench decoding --videos clips/*.mp4 --out decoding.json

Three ways to get the same frames run in turn, so that a busy machine slows all of them alike, and for each
clip the fastest of several rounds counts:

- pipeline: `ClipDataset[key]`, that is, decoded, cropped, resized, mirrored, ready for the network;
- plain: open the file with PyAV, decode to the last wanted frame, `to_ndarray` for each wanted one;
- tuned: the same with one pixel converter kept for the whole clip, which plain PyAV code seldom does.

The ratio is the time of the pipeline over that of plain decoding; it must not pass 1.5 (exit code 1).
The pipeline can be faster than plain decoding: it jumps to key frames and leaves out pictures nobody needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from _videos import make_video
from nonlocal_nn.data.dataset import ClipDataset, SampleKey
from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.data.defaults import jitter_range
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.data.sampling import clip_indices, random_start, sample_generator
from nonlocal_nn.data.transforms import TrainTransform

LIMIT = 1.5


def main() -> int:
    """Measure, print, write; return 1 if the pipeline is too slow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--videos", nargs="+", type=Path, help="files; by default six are made (340x256 H.264)"
    )
    parser.add_argument("--clips", type=int, default=12, help="clips in a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, at least 5 (default %(default)s)")
    parser.add_argument("--clip-frames", type=int, default=32, help="frames in a clip (default %(default)s)")
    parser.add_argument(
        "--frame-stride", type=int, default=2, help="every n-th is kept (default %(default)s)"
    )
    parser.add_argument(
        "--crop", type=int, default=224, help="side of a crop in pixels (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    if options.rounds < 5 or options.clips < 1:
        parser.error("at least 5 rounds and 1 clip are needed")

    torch.set_num_threads(1)  # as in a data-loader worker
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or [make_video(Path(folder) / f"{n}.mp4", seed=n) for n in range(6)]
        result = measure(videos, options)
    print(report(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if result["ratio"] > LIMIT else 0


def measure(videos: Sequence[Path], options: argparse.Namespace) -> dict[str, object]:
    """Time the three ways in turn."""
    frames, stride = options.clip_frames, options.frame_stride
    manifest = Manifest.of_paths(videos, labels=[0] * len(videos), classes=["any"])
    transform = TrainTransform(crop=options.crop, jitter=jitter_range(options.crop))
    dataset = ClipDataset(manifest, clip_frames=frames, frame_stride=stride, transform=transform, seed=0)
    keys = [SampleKey(n // len(videos), n % len(videos)) for n in range(options.clips)]
    wanted: list[tuple[str, np.ndarray]] = []
    for key in keys:  # the frames that the dataset will choose
        path = str(videos[key.index])
        with VideoReader(path) as reader:
            start = random_start(reader.num_frames, frames, stride, sample_generator(0, *key))
            wanted.append((path, clip_indices(start, frames, stride, reader.num_frames)))

    ways: dict[str, Callable[[int], object]] = {
        "pipeline": lambda n: dataset[keys[n]],
        "plain": lambda n: decode_plainly(*wanted[n]),
        "tuned": lambda n: decode_tuned(*wanted[n]),
    }
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in keys] for name in ways}
    for _ in range(options.rounds):
        for n in range(len(keys)):
            for name, way in ways.items():
                begin = time.perf_counter()
                way(n)
                seconds[name][n].append(time.perf_counter() - begin)
    best = {name: sum(min(times) for times in each) for name, each in seconds.items()}
    spread = {
        name: statistics.median(max(times) / min(times) for times in each) for name, each in seconds.items()
    }
    return {
        "machine": machine(),
        "videos": len(videos),
        "clip": f"{frames} frames, stride {stride}, crop {options.crop}",
        "clips": len(keys),
        "rounds": options.rounds,
        "clips_per_second": {name: round(len(keys) / total, 2) for name, total in best.items()},
        "slowest_over_fastest_round": {name: round(value, 2) for name, value in spread.items()},
        "ratio": round(best["pipeline"] / best["plain"], 3),
        "ratio_to_tuned": round(best["pipeline"] / best["tuned"], 3),
        "limit": LIMIT,
    }


def decode_plainly(path: str, indices: np.ndarray) -> np.ndarray:
    """Fetch the frames as PyAV's documentation does."""
    wanted = set(indices.tolist())
    images: list[np.ndarray] = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                images.append(frame.to_ndarray(format="rgb24"))
            if number >= indices.max():
                break
    return np.stack(images)


def decode_tuned(path: str, indices: np.ndarray) -> np.ndarray:
    """Fetch the frames with one converter for all of them."""
    wanted = set(indices.tolist())
    images: list[np.ndarray] = []
    converter = VideoReformatter()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                images.append(converter.reformat(frame, format="rgb24").to_ndarray())
            if number >= indices.max():
                break
    return np.stack(images)


def machine() -> dict[str, object]:
    """Say what it ran on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if "model name" in line), name)
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": av.__version__,
        "libavcodec": ".".join(str(part) for part in av.library_versions["libavcodec"]),
    }


def report(result: dict[str, object]) -> str:
    """Format the figures for people."""
    speeds = result["clips_per_second"]
    spread = result["slowest_over_fastest_round"]
    assert isinstance(speeds, dict)
    assert isinstance(spread, dict)
    lines = [
        ", ".join(f"{key} {value}" for key, value in machine().items()),
        f"{result['clips']} clips of {result['clip']}; fastest of {result['rounds']} rounds; one thread",
    ]
    lines += [
        f"  {name:9}{speed:8.2f} clips/s   (slowest round {spread[name]:.2f} x the fastest)"
        for name, speed in speeds.items()
    ]
    lines.append(
        f"pipeline / plain decoding: {result['ratio']:.2f} x (limit {LIMIT}); "
        f"pipeline / tuned decoding: {result['ratio_to_tuned']:.2f} x"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
