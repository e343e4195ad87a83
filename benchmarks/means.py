"""Non-local means beside scikit-image and OpenCV: time, memory, how near results are to the clean picture.

    python3 run.py bench means speed                          # one table, in turns, two threads
    python3 run.py bench means quality Set12 BSD68 --choose 03,05,07

OpenCV, dipy and a GPU take part where there are any (a folder of `cv2` in PYTHONPATH is enough). Quality:
every filter has the same number of settings, 4 patches x 6 strengths, of which the best at each sigma is
chosen on the pictures named by --choose; those are then left out of the table.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import importlib.util
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage import data, restoration

import nonlocal_nn as nl
from _memory import resident_bytes
from nonlocal_nn.evaluation.pictures import psnr, ssim

Array = npt.NDArray[Any]

SIGMA = 25 / 255
PATCHES = (3, 5, 7, 9)
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # h / sigma
OPENCV_STRENGTHS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.2)  # its h counts differently
DISTANCE = 10
GPU = "nonlocal_nn, GPU"


def bytes_of(x: Array) -> Array:
    """As OpenCV takes it: 8 bits."""
    return np.clip(np.rint(255 * x), 0, 255).astype(np.uint8)


CASES = (
    "grey 512 x 512",
    "colour 512 x 512",
    "grey 1920 x 1080",
    "volume 64^3",
    "clip 320 x 240, 20 frames",
)


def case(name: str) -> tuple[Array, int | None, dict[str, int]]:
    """Noisy picture of a range of one, channel axis, patch and distance."""
    axis, sizes = None, {"patch_size": 7, "patch_distance": 11}
    camera = data.camera() / 255
    if name == "grey 512 x 512":
        x = camera
    elif name == "colour 512 x 512":
        x, axis = data.astronaut() / 255, -1
    elif name == "grey 1920 x 1080":
        x = np.tile(camera, (3, 4))[:1080, :1920]
    elif name == "volume 64^3":
        x = np.stack([np.roll(camera[100:164, 200:264], k, 0) for k in range(64)])
        sizes = {"patch_size": 5, "patch_distance": 5}
    elif name == "clip 320 x 240, 20 frames":
        x = np.stack([camera[k : k + 240, 2 * k : 2 * k + 320] for k in range(20)])
        sizes = {"patch_size": 7, "patch_distance": 7}
    else:
        raise ValueError(f"no case {name!r}; there are {CASES}")
    noise = np.random.default_rng(0).normal(scale=SIGMA, size=x.shape)
    return (x + noise).astype(np.float32), axis, sizes


def on_gpu(x: Array, **given: Any) -> Callable[[], object]:
    """The same call for a tensor that is there already."""
    there = torch.from_numpy(x).cuda()

    def call() -> None:
        nl.denoise_nl_means(there, **given)
        torch.cuda.synchronize()

    return call


def contenders(name: str) -> dict[str, Callable[[], object]]:
    """Calls for one case."""
    x, axis, sizes = case(name)
    if name.startswith("clip"):
        return clip_contenders(x, sizes)
    given: dict[str, Any] = {**sizes, "h": 0.8 * SIGMA, "sigma": SIGMA, "channel_axis": axis}
    calls: dict[str, Callable[[], object]] = {
        "nonlocal_nn": lambda: nl.denoise_nl_means(x, **given),
        "scikit-image": lambda: restoration.denoise_nl_means(x, **given, fast_mode=True),
    }
    if torch.cuda.is_available():
        calls[GPU] = on_gpu(x, **given)
    if importlib.util.find_spec("dipy") and x.ndim == 3 and axis is None:
        from dipy.denoise.nlmeans import nlmeans

        calls["dipy"] = lambda: nlmeans(
            x,
            SIGMA,
            patch_radius=sizes["patch_size"] // 2,
            block_radius=sizes["patch_distance"],
            rician=False,
            num_threads=torch.get_num_threads(),
        )
    if importlib.util.find_spec("cv2") and x.ndim - (axis is not None) == 2:
        import cv2

        deep, search = bytes_of(x), 2 * sizes["patch_distance"] + 1
        if axis is None:
            calls["OpenCV"] = lambda: cv2.fastNlMeansDenoising(deep, None, 20, sizes["patch_size"], search)
        else:
            calls["OpenCV"] = lambda: cv2.fastNlMeansDenoisingColored(
                deep, None, 20, 20, sizes["patch_size"], search
            )
    return calls


def clip_contenders(x: Array, sizes: dict[str, int]) -> dict[str, Callable[[], object]]:
    """All frames, patches sought two frames before and after."""
    patch, far = sizes["patch_size"], sizes["patch_distance"]
    given: dict[str, Any] = {
        "patch_size": (1, patch, patch),
        "patch_distance": (2, far, far),
        "h": 0.8 * SIGMA,
        "sigma": SIGMA,
    }
    calls: dict[str, Callable[[], object]] = {"nonlocal_nn": lambda: nl.denoise_nl_means(x, **given)}
    if torch.cuda.is_available():
        calls[GPU] = on_gpu(x, **given)
    if importlib.util.find_spec("cv2"):
        import cv2

        frames = list(bytes_of(x))

        def every() -> None:  # as many calls as frames; it cannot do the two first and last
            for number in np.clip(range(len(frames)), 2, len(frames) - 3).tolist():
                cv2.fastNlMeansDenoisingMulti(frames, number, 5, None, 20, patch, 2 * far + 1)

        calls["OpenCV"] = every
    return calls


def limit_threads(threads: int) -> None:
    """Of torch and OpenCV; scikit-image has one."""
    torch.set_num_threads(threads)
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(threads)


def speed(options: argparse.Namespace) -> None:
    """The table."""
    limit_threads(options.threads)
    table = Table("case", "filter", "wall s", "CPU s", "wall / ours", "peak above the picture, pictures")
    for name in CASES:
        calls = contenders(name)
        if options.filters:
            calls = {who: call for who, call in calls.items() if who in options.filters}
        for call in calls.values():  # compiles, and fills caches
            call()
        best: dict[str, tuple[float, float]] = {}
        for _ in range(options.rounds):
            for who, call in calls.items():
                gc.collect()
                wall, used = time.perf_counter(), time.process_time()
                call()
                took = (time.perf_counter() - wall, time.process_time() - used)
                best[who] = min(best.get(who, took), took)
        for who, (wall, used) in best.items():
            peak = "" if who == GPU else fresh(name, who, options.threads)
            ratio = f"{wall / best['nonlocal_nn'][0]:.1f}"
            table.add_row(name, who, f"{wall:.3f}", f"{used:.3f}", ratio, peak)
    Console(width=130).print(table)


def fresh(name: str, who: str, threads: int) -> str:
    """Peak memory of one call in a process of its own."""
    words = [sys.executable, __file__, "one", name, who, "--threads", str(threads)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "failed"


def one(options: argparse.Namespace) -> None:
    """In the fresh process: a call on a small picture loads and compiles all, then the one that counts."""
    limit_threads(options.threads)
    x, axis, sizes = case(options.case)
    calls = contenders(options.case)
    if options.filter == "nonlocal_nn":
        small = x[(slice(0, 16),) * (x.ndim - (axis is not None))]
        nl.denoise_nl_means(small, **sizes, h=0.1, channel_axis=axis)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not there to be used again unseen
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
    calls[options.filter]()
    print(f"{(resident_bytes('VmHWM') - before) / x.nbytes:.1f}")


def filters() -> dict[str, tuple[Callable[[Array, float, int, float], Array], tuple[float, ...]]]:
    """Filters of a noisy picture, sigma, patch and h / sigma; and the strengths to try."""

    def textbook(x: Array, sigma: float, patch: int, strength: float) -> Array:
        return nl.denoise_nl_means(x, patch, DISTANCE, strength * sigma, sigma=sigma)

    def blockwise(x: Array, sigma: float, patch: int, strength: float) -> Array:
        return nl.denoise_nl_means(
            x, patch, DISTANCE, strength * sigma, sigma=sigma, variant="blockwise", own_weight="max"
        )

    def scikit_image(x: Array, sigma: float, patch: int, strength: float) -> Array:
        return restoration.denoise_nl_means(x, patch, DISTANCE, strength * sigma, fast_mode=True, sigma=sigma)

    known: dict[str, Any] = {
        "textbook": (textbook, STRENGTHS),
        "blockwise, own weight max": (blockwise, STRENGTHS),
        "scikit-image, fast": (scikit_image, STRENGTHS),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        def opencv(x: Array, sigma: float, patch: int, strength: float) -> Array:
            h = 255 * strength * sigma
            return cv2.fastNlMeansDenoising(bytes_of(x), None, h, patch, 2 * DISTANCE + 1) / 255

        known["OpenCV (8 bits)"] = (opencv, OPENCV_STRENGTHS)
    return known


def by_rule(x: Array, **options: Any) -> Array:
    """Nothing chosen on any picture here."""
    return nl.denoise_nl_means(x, "auto", DISTANCE, **options)


def pictures(folder: Path) -> dict[str, Array]:
    """Grey, of a range of one, by name."""
    return {
        file.stem: np.asarray(Image.open(file).convert("L"), dtype=np.float64) / 255
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in (".png", ".jpg", ".tif", ".bmp")
    }


def noisy(name: str, clean: Array, level: int) -> Array:
    """The same noise at every call, not cut off."""
    seed = [level, *name.encode()]
    return (clean + np.random.default_rng(seed).normal(scale=level / 255, size=clean.shape)).astype(
        np.float32
    )


def quality(options: argparse.Namespace) -> None:
    """The tables, one for each sigma, as Markdown."""
    limit_threads(options.threads)
    sets = {folder.name: pictures(folder) for folder in options.folders}
    chosen = options.choose.split(",")
    first = next(iter(sets.values()))
    training = {name: first.pop(name) for name in chosen}
    for level in options.sigmas:
        sigma = level / 255
        rows: dict[str, Callable[[Array], Array]] = {}
        for who, (run, strengths) in filters().items():
            settings = list(itertools.product(PATCHES, strengths))
            scores = [
                np.mean([psnr(run(noisy(n, c, level), sigma, *each), c) for n, c in training.items()])
                for each in track(settings, f"{who}, sigma {level}", transient=True)
            ]
            patch, strength = settings[int(np.argmax(scores))]
            label = f"{who}: patch {patch}, h {strength} sigma"
            rows[label] = functools.partial(run, sigma=sigma, patch=patch, strength=strength)
        for word in ("auto", "sure"):
            rows[f"textbook, h and patch {word}"] = functools.partial(by_rule, sigma=sigma, h=word)
        rows["blockwise, h and patch auto"] = functools.partial(
            by_rule, sigma=sigma, h="auto", variant="blockwise", own_weight="max"
        )
        titles = [f"{title}, {words}" for title in sets for words in ("dB", "SSIM", "CPU s")]
        print(f"\n| sigma {level} | {' | '.join(titles)} |")
        print("|---" * (1 + len(titles)) + "|")
        for label, call in {"noisy": lambda x: x, **rows}.items():
            cells = []
            for images in sets.values():
                figures = []
                for name, clean in images.items():
                    x = noisy(name, clean, level)
                    started = time.process_time()
                    y = call(x)
                    figures.append((psnr(y, clean), ssim(y, clean), time.process_time() - started))
                mean = np.mean(figures, axis=0)
                cells += [f"{mean[0]:.2f}", f"{mean[1]:.3f}", f"{mean[2]:.2f}"]
            print(f"| {label} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Read the options, run what is asked for; without any, the table of speed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=speed, threads=2, rounds=5, filters=None)
    commands = parser.add_subparsers()
    for name, run in (("speed", speed), ("one", one), ("quality", quality)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--threads", type=int, default=2)
        if name == "speed":
            command.add_argument("--rounds", type=int, default=5)
            command.add_argument("--filters", nargs="+", metavar="NAME", help="of the second column")
        if name == "one":
            command.add_argument("case")
            command.add_argument("filter")
        if name == "quality":
            command.add_argument("folders", nargs="+", type=Path)
            command.add_argument("--choose", required=True, help="names of pictures of the first folder")
            command.add_argument("--sigmas", type=int, nargs="+", default=[15, 25, 50])
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
