"""`nonlocal denoise`: pictures, volumes, videos, folders of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

_OPTIONS = "denoise_options.json"
_FREE = ("files", "compare", "overwrite", "progress")  # change nothing in what is written


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """Take noise away by non-local means: nonlocal denoise noisy.png clean.png

    Reads pictures (png, jpg, tif, webp, bmp, pgm, ppm), volumes (tif of many pages, npy) and videos, or a
    folder of them, and writes the second name in the same depth. In videos, sound and subtitles are copied.
    A folder that was begun is gone on with. A file that cannot be read is named, the others go on, and the
    exit code is 1.
    """

    files: list[str]
    """What to read, a file or folder, and what to write."""
    sigma: float | Literal["auto"] = "auto"
    """Standard deviation of the noise, in grey levels of 255, whatever the depth; auto: estimated."""
    h: float | Literal["auto", "sure"] = "auto"
    """Strength, in grey levels of 255; auto: by a rule from sigma; sure: of least estimated risk (slow)."""
    patch_size: int | Literal["auto"] = "auto"
    """Pixels along a patch; auto: by a rule from sigma."""
    patch_distance: int | None = None
    """How far patches are sought, in pixels; none: 10 in pictures, 7 in videos, 5 in volumes."""
    variant: Literal["textbook", "blockwise"] = "textbook"
    """blockwise: whole patches are averaged; better by up to 0.4 dB, and slower."""
    noise: Literal["gaussian", "rician"] = "gaussian"
    """rician: magnitudes, as MRI has them; wants a number for sigma."""
    frames: int = 2
    """Frames of a video before and after that patches are sought in."""
    channel_axis: int | None = None
    """Of .npy files: the axis of colours, which are filtered together; none: all axes are pixels."""
    white: float = 1.0
    """Of files of floats: the value that counts as 255 grey levels."""
    compare: str | None = None
    """The clean file, or a folder of them under the same names: prints PSNR and SSIM before and after."""
    overwrite: bool = False
    """Write over what is there."""
    progress: bool = True
    """Show a progress bar."""


def denoise_command(config: DenoiseConfig) -> int:
    """Denoise; 0, or 1 if some files could not be.

    Raises:
        ValueError: options or names that do not fit; nothing was done.
        FileNotFoundError: nothing to read.
    """
    source, target = _names(config)
    _check(config)
    from nonlocal_nn._progress import percent_bar
    from nonlocal_nn.commands.denoise_file import compared, denoise_file

    jobs = list(_jobs(source, target, config))
    failures, measured = 0, []
    with percent_bar("denoising", shown=config.progress and sys.stderr.isatty()) as bar:
        for number, (file, out) in enumerate(jobs):
            if out.exists() and not config.overwrite:
                continue

            def progress(done: int, total: int, number: int = number) -> None:
                bar(1000 * number + (1000 * min(done, total) // total if total else 0), 1000 * len(jobs))

            progress(0, 1)
            try:
                line, before_after = denoise_file(
                    file, out, clean_of(config, source, file, out), config, progress
                )
            except (OSError, ValueError, MemoryError, TypeError) as error:
                failures += 1
                print(f"nonlocal: {file}: {_without(str(error), file)}", file=sys.stderr, flush=True)
                continue
            print(f"{out}: {line}", flush=True)
            if before_after is not None:
                measured.append(before_after)
    if len(measured) > 1:
        mean = [sum(values) / len(measured) for values in zip(*measured, strict=True)]
        print(f"mean of {len(measured)}: {compared(*mean)}")
    return 1 if failures else 0


def _names(config: DenoiseConfig) -> tuple[Path, Path]:
    if len(config.files) != 2:
        raise ValueError(
            f"denoise takes what to read and what to write; got {len(config.files)}: {' '.join(config.files)}"
        )
    source, target = map(Path, config.files)
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    if target.exists() and source.resolve() == target.resolve():
        raise ValueError(f"{target} is what is read; give another name to write")
    if source.is_file() and target.is_dir():
        target = target / source.name
    if source.is_file() and target.exists() and not config.overwrite:
        raise ValueError(f"{target} is there already; give another name, or --overwrite true")
    return source, target


def clean_of(config: DenoiseConfig, source: Path, file: Path, out: Path) -> Path | None:
    """The clean file of --compare: of a folder, the one of the same name, in the same folder or above."""
    if config.compare is None:
        return None
    clean = Path(config.compare)
    if not clean.is_dir():
        return clean
    within = file.relative_to(source).parent if source.is_dir() else Path()
    places = [clean / within / file.name, clean / within / out.name, clean / file.name, clean / out.name]
    return next((place for place in places if place.exists()), places[0])


def _check(config: DenoiseConfig) -> None:
    for name in ("sigma", "h", "white"):
        value = getattr(config, name)
        if not isinstance(value, str) and not value > 0:
            raise ValueError(f"{name} = {value}: it must be more than 0")
    if config.frames < 0:
        raise ValueError(f"frames = {config.frames}: 0 or more")
    if config.noise == "rician" and (config.sigma == "auto" or config.h == "sure"):
        raise ValueError("--noise rician wants a number for --sigma, and for --h a number or auto")


def _jobs(source: Path, target: Path, config: DenoiseConfig) -> Iterator[tuple[Path, Path]]:
    """Files to read and to write; says what is neither picture nor video."""
    from nonlocal_nn.data.pictures import is_picture
    from nonlocal_nn.data.records import VIDEO_SUFFIXES
    from nonlocal_nn.data.rewrite import video_name

    if source.is_file():
        yield source, target
        return
    found, others, kept = [], 0, 0
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        if target in file.parents or file.name.startswith("."):
            continue
        if is_picture(file) or file.suffix.lower() in VIDEO_SUFFIXES:
            out = target / file.relative_to(source)
            found.append((file, out if is_picture(file) else video_name(out)))
            kept += found[-1][1].exists() and not config.overwrite
        else:
            others += 1
    if not found:
        raise ValueError(f"{source} holds no picture, volume or video")
    _stamp(target, config)
    if kept or others:
        print(
            f"{len(found)} files: {kept} done already; {others} others are no pictures or videos",
            file=sys.stderr,
        )
    yield from found


def _stamp(target: Path, config: DenoiseConfig) -> None:
    """So that a folder is not gone on with other options."""
    from nonlocal_nn._files import write_whole

    options = {spec.name: getattr(config, spec.name) for spec in fields(config) if spec.name not in _FREE}
    file = target / _OPTIONS
    if file.exists() and not config.overwrite:
        before = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name, value in options.items() if before.get(name) != value]
        if different:
            changes = ", ".join(f"{name} {before.get(name)}, now {options[name]}" for name in different)
            raise ValueError(f"{target} was begun with other options: {changes}; give another folder")
    write_whole(file, lambda partial: partial.write_text(json.dumps(options, indent=1), encoding="utf-8"))


def _without(message: str, file: Path) -> str:
    """A message that begins with the file's name, without it."""
    return message.removeprefix(f"{file}: ")
