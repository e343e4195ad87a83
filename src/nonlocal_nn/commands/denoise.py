"""`nonlocal denoise`: pictures, volumes, videos, folders of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from nonlocal_nn.data.pictures import Picture

_OPTIONS = "denoise_options.json"
_FREE = ("files", "compare", "overwrite", "progress")  # change nothing in what is written
_WHITE = 255.0  # the grey levels that sigma and h are given in
_VALUES_AT_A_TIME = 2**25  # of the frames of a video
_DISTANCES = {2: 10, 3: 5, 4: 3}  # by pixel axes
_VIDEO_DISTANCE = 7


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
                line, before_after = _denoise(file, out, config, progress)
            except (OSError, ValueError, MemoryError, TypeError) as error:
                failures += 1
                print(f"nonlocal: {file}: {_without(str(error), file)}", file=sys.stderr, flush=True)
                continue
            print(f"{out}: {line}", flush=True)
            if before_after is not None:
                measured.append(before_after)
    if len(measured) > 1:
        mean = [sum(values) / len(measured) for values in zip(*measured, strict=True)]
        print(f"mean of {len(measured)}: {_compared(*mean)}")
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


def _denoise(
    file: Path, out: Path, config: DenoiseConfig, progress: Callable[[int, int], None]
) -> tuple[str, tuple[float, ...] | None]:
    from nonlocal_nn.data.pictures import is_picture, read_picture, write_picture

    if not is_picture(file):
        if config.compare is not None:
            raise ValueError("--compare is for pictures and volumes")
        return _denoise_video(file, out, config, progress), None
    picture = read_picture(file)
    if picture.channel_axis is None and config.channel_axis is not None and file.suffix.lower() == ".npy":
        from dataclasses import replace

        picture = replace(picture, channel_axis=config.channel_axis)
    elif file.suffix.lower() == ".npy" and picture.pixels.ndim > 2 and min(picture.pixels.shape) <= 4:
        shape = " x ".join(map(str, picture.pixels.shape))
        print(
            f"{file}: {shape} is read as pixels alone; colours are named by --channel_axis", file=sys.stderr
        )
    result, line = _denoise_picture(picture, config, progress)
    write_picture(out, result)
    if config.compare is None:
        return line, None
    clean = Path(config.compare)
    if clean.is_dir():
        clean = clean / out.name if not (clean / file.name).exists() else clean / file.name
    before_after = _measure(picture, result, read_picture(clean), clean, config)
    return f"{line}; {_compared(*before_after)}", before_after


def _scale(pixels: npt.NDArray[Any], config: DenoiseConfig) -> float:
    """What counts as one."""
    import numpy as np

    if pixels.dtype.kind == "f":
        return config.white
    if pixels.dtype.kind not in "u":
        raise ValueError(f"pixels of {pixels.dtype}: floats, or whole numbers without sign")
    return float(np.iinfo(pixels.dtype).max)


def _denoise_picture(
    picture: Picture, config: DenoiseConfig, progress: Callable[[int, int], None]
) -> tuple[Picture, str]:
    from dataclasses import replace

    import numpy as np

    pixels, axis = picture.pixels, picture.channel_axis
    scale = _scale(pixels, config)
    colours = pixels[..., :-1] if picture.alpha else pixels
    x = colours.astype(np.float32) / np.float32(scale)
    axes = x.ndim - (axis is not None)
    if axes not in _DISTANCES:
        raise ValueError(
            f"{axes} pixel axes, {' x '.join(map(str, pixels.shape))}: 2, 3 or 4 can be filtered"
        )
    sigma = _sigma(x, axis, config)
    if not sigma:
        return picture, "no noise found, pixels as they were"
    strength, size, words = _strength(sigma, 1 if axis is None else x.shape[axis], config)
    y = _filter(x, size, config.patch_distance or _DISTANCES[axes], strength, sigma, axis, config, progress)
    back = _in_depth(y, scale, pixels.dtype)
    if picture.alpha:
        back = np.concatenate((back, pixels[..., -1:]), axis=-1)
    return replace(picture, pixels=back), words


def _in_depth(y: npt.NDArray[np.float32], scale: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Of a range of one, as the file has it."""
    import numpy as np

    back = y * np.float32(scale)
    if np.dtype(dtype).kind == "u":
        back = np.clip(np.rint(back), 0, scale)
    return back.astype(dtype)


def _sigma(x: npt.NDArray[np.float32], axis: int | None, config: DenoiseConfig) -> float:
    """Of a range of one."""
    if config.sigma != "auto":
        return config.sigma / _WHITE
    import numpy as np
    import torch

    from nonlocal_nn.ops.means.noise import estimate_sigma

    if not np.isfinite(x).all():
        count = int((~np.isfinite(x)).sum())
        raise ValueError(f"{count} of {x.size} values are NaN or infinite: fill them first")
    channels = x[None] if axis is None else np.moveaxis(x, axis, 0)
    return float(estimate_sigma(torch.from_numpy(np.ascontiguousarray(channels))[None])[0])


def _strength(sigma: float, channels: int, config: DenoiseConfig) -> tuple[float | str, int, str]:
    """Strength h (of a range of one) and patch size, and both with sigma in words."""
    from nonlocal_nn.ops.means.strength import rule

    size, factor = rule(sigma, channels, blockwise=config.variant == "blockwise")
    if config.patch_size != "auto":
        size = config.patch_size
    h: float | str
    if config.h == "sure":
        h, word = "sure", "of least risk"
    else:
        h = factor * sigma if config.h == "auto" else config.h / _WHITE
        word = f"{_WHITE * h:.3g}"
    return h, size, f"sigma {_WHITE * sigma:.3g}, h {word}, patch {size}"


def _filter(
    x: npt.NDArray[np.float32],
    size: Any,
    distance: Any,
    h: Any,
    sigma: float,
    axis: int | None,
    config: DenoiseConfig,
    progress: Callable[[int, int], None] | None,
    batch_dims: int = 0,
) -> npt.NDArray[np.float32]:
    from nonlocal_nn.ops.means.denoise import denoise_nl_means

    return denoise_nl_means(
        x,
        size,
        distance,
        h,
        sigma=sigma,
        channel_axis=axis,
        batch_dims=batch_dims,
        variant=config.variant,
        own_weight="max" if config.variant == "blockwise" else 1,
        noise=config.noise,
        progress=progress,
    )


def _denoise_video(file: Path, out: Path, config: DenoiseConfig, progress: Callable[[int, int], None]) -> str:
    from nonlocal_nn.data.rewrite import rewrite_video

    said: list[str] = []
    done = rewrite_video(file, out, lambda frames: _denoised_frames(frames, config, said), progress)
    words = [f"{done.frames} frames", *said]
    if done.broken_packets:
        words.append(f"{done.broken_packets} packets could not be decoded and are left out")
    if done.left_out:
        words.append(f"left out: {', '.join(done.left_out)}")
    return ", ".join(words)


def _denoised_frames(
    frames: Iterable[npt.NDArray[Any]], config: DenoiseConfig, said: list[str]
) -> Iterator[npt.NDArray[Any]]:
    """The frames, denoised some at a time, with those before and after; sigma is that of the first ones."""
    window: list[npt.NDArray[Any]] = []
    before = 0  # of the window: frames given back already
    strength: tuple[Any, int, float] | None = None

    def filtered(first: int, last: int) -> Iterator[npt.NDArray[Any]]:
        nonlocal strength
        import numpy as np

        whole = np.stack(window)
        scale = _scale(whole, config)
        x = whole.astype(np.float32) / np.float32(scale)
        if strength is None:
            sigma = sorted(_sigma(frame, -1, config) for frame in x)[len(x) // 2]
            h, size, words = _strength(sigma, 3, config) if sigma else (0.0, 1, "no noise found")
            said.append(words)
            strength = h, size, sigma
        h, size, sigma = strength
        if not sigma:
            yield from window[first:last]
            return
        far = config.patch_distance or _VIDEO_DISTANCE
        if config.frames:
            y = _filter(x, (1, size, size), (config.frames, far, far), h, sigma, -1, config, None)
        else:
            y = _filter(x, size, far, h, sigma, -1, config, None, batch_dims=1)
        yield from _in_depth(y[first:last], scale, whole.dtype)

    for frame in frames:
        window.append(frame)
        at_a_time = max(1, 2 * config.frames, min(16, _VALUES_AT_A_TIME // frame.size - 2 * config.frames))
        if len(window) == before + at_a_time + config.frames:
            yield from filtered(before, before + at_a_time)
            window = window[max(0, before + at_a_time - config.frames) :]
            before = min(config.frames, before + at_a_time)
    if len(window) > before:
        yield from filtered(before, len(window))


def _measure(
    noisy: Picture, result: Picture, clean: Picture, name: Path, config: DenoiseConfig
) -> tuple[float, float, float, float]:
    """PSNR and SSIM before and after."""
    import numpy as np

    from nonlocal_nn.evaluation.pictures import psnr, ssim

    if clean.pixels.shape != noisy.pixels.shape:
        raise ValueError(f"{name} has the shape {clean.pixels.shape}, the noisy file {noisy.pixels.shape}")

    def scaled(picture: Picture) -> npt.NDArray[Any]:
        pixels = picture.pixels.astype(np.float64) / _scale(picture.pixels, config)
        return pixels if noisy.channel_axis is None else np.moveaxis(pixels, noisy.channel_axis, 0)

    a, b, c = scaled(noisy), scaled(result), scaled(clean)
    return psnr(a, c), ssim(a, c), psnr(b, c), ssim(b, c)


def _compared(psnr_before: float, ssim_before: float, psnr_after: float, ssim_after: float) -> str:
    return f"PSNR {psnr_before:.2f} -> {psnr_after:.2f} dB, SSIM {ssim_before:.3f} -> {ssim_after:.3f}"


def _without(message: str, file: Path) -> str:
    """A message that begins with the file's name, without it."""
    return message.removeprefix(f"{file}: ")
