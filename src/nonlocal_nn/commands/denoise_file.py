"""One file of `nonlocal denoise`: a picture, a volume or a video, read, filtered, written and compared."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from nonlocal_nn.data.pictures import Picture, is_picture, read_picture, write_picture
from nonlocal_nn.data.rewrite import rewrite_video
from nonlocal_nn.evaluation.pictures import psnr, ssim
from nonlocal_nn.ops.means.denoise import denoise_nl_means
from nonlocal_nn.ops.means.noise import estimate_sigma
from nonlocal_nn.ops.means.strength import rule

if TYPE_CHECKING:
    from nonlocal_nn.commands.denoise import DenoiseConfig

_WHITE = 255.0  # the grey levels that sigma and h are given in
_VALUES_AT_A_TIME = 2**25  # of the frames of a video
_DISTANCES = {2: 10, 3: 5, 4: 3}  # by pixel axes
_VIDEO_DISTANCE = 7


def denoise_file(
    file: Path, out: Path, clean: Path | None, config: DenoiseConfig, progress: Callable[[int, int], None]
) -> tuple[str, tuple[float, ...] | None]:
    """Write `out`; returns what to say about it, and with `clean` PSNR and SSIM before and after."""
    if not is_picture(file):
        if clean is not None:
            raise ValueError("--compare is for pictures and volumes")
        return _denoise_video(file, out, config, progress), None
    picture = read_picture(file)
    if picture.channel_axis is None and config.channel_axis is not None and file.suffix.lower() == ".npy":
        picture = replace(picture, channel_axis=config.channel_axis)
    elif file.suffix.lower() == ".npy" and picture.pixels.ndim > 2 and min(picture.pixels.shape) <= 4:
        shape = " x ".join(map(str, picture.pixels.shape))
        print(
            f"{file}: {shape} is read as pixels alone; colours are named by --channel_axis", file=sys.stderr
        )
    result, line = _denoise_picture(picture, config, progress)
    write_picture(out, result)
    if clean is None:
        return line, None
    before_after = _measure(picture, result, read_picture(clean), clean, config)
    return f"{line}; {compared(*before_after)}", before_after


def _scale(pixels: npt.NDArray[Any], config: DenoiseConfig) -> float:
    """What counts as one."""
    if pixels.dtype.kind == "f":
        return config.white
    if pixels.dtype.kind not in "u":
        raise ValueError(f"pixels of {pixels.dtype}: floats, or whole numbers without sign")
    return float(np.iinfo(pixels.dtype).max)


def _denoise_picture(
    picture: Picture, config: DenoiseConfig, progress: Callable[[int, int], None]
) -> tuple[Picture, str]:
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
    back = y * np.float32(scale)
    if np.dtype(dtype).kind == "u":
        back = np.clip(np.rint(back), 0, scale)
    return back.astype(dtype)


def _sigma(x: npt.NDArray[np.float32], axis: int | None, config: DenoiseConfig) -> float:
    """Of a range of one."""
    if config.sigma != "auto":
        return config.sigma / _WHITE
    if not np.isfinite(x).all():
        count = int((~np.isfinite(x)).sum())
        raise ValueError(f"{count} of {x.size} values are NaN or infinite: fill them first")
    channels = x[None] if axis is None else np.moveaxis(x, axis, 0)
    return float(estimate_sigma(torch.from_numpy(np.ascontiguousarray(channels))[None])[0])


def _strength(sigma: float, channels: int, config: DenoiseConfig) -> tuple[float | str, int, str]:
    """Strength h (of a range of one) and patch size, and both with sigma in words."""
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
    if clean.pixels.shape != noisy.pixels.shape:
        raise ValueError(f"{name} has the shape {clean.pixels.shape}, the noisy file {noisy.pixels.shape}")

    def scaled(picture: Picture) -> npt.NDArray[Any]:
        pixels = picture.pixels.astype(np.float64) / _scale(picture.pixels, config)
        return pixels if noisy.channel_axis is None else np.moveaxis(pixels, noisy.channel_axis, 0)

    a, b, c = scaled(noisy), scaled(result), scaled(clean)
    return psnr(a, c), ssim(a, c), psnr(b, c), ssim(b, c)


def compared(psnr_before: float, ssim_before: float, psnr_after: float, ssim_after: float) -> str:
    """In words."""
    return f"PSNR {psnr_before:.2f} -> {psnr_after:.2f} dB, SSIM {ssim_before:.3f} -> {ssim_after:.3f}"
