"""Pictures and volumes, read and written with the depth they have: PNG, TIFF of many pages, JPEG, .npy ...

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "deep.png"
>>> write_picture(path, Picture(np.full((2, 2, 3), 40000, np.uint16), channel_axis=-1))
>>> read_picture(path).pixels[0, 0].tolist()               # Pillow alone would read 8 bits of it
[40000, 40000, 40000]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nonlocal_nn._files import write_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".npy")
_DEEP_FORMATS = {0: ("gray16be", 1), 2: ("rgb48be", 3), 4: ("ya16be", 2), 6: ("rgba64be", 4)}
_PLAIN_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I", "F")


@dataclass(frozen=True)
class Picture:
    """What a file holds.

    Attributes:
        pixels: (height, width), (height, width, channels), or a volume (pages, height, width[, channels]);
            of a .npy file whatever is in it.
        channel_axis: -1 where there are colours.
        alpha: whether the last channel is how opaque a pixel is.
        kept: what a file says besides (colour profile, EXIF), for Pillow.
    """

    pixels: npt.NDArray[Any]
    channel_axis: int | None = None
    alpha: bool = False
    kept: dict[str, Any] = field(default_factory=dict)


def is_picture(path: Path) -> bool:
    """Whether its name is that of a picture or volume.

    >>> is_picture(Path("a/B.PNG")), is_picture(Path("a.mp4"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def read_picture(path: Path) -> Picture:
    """A picture with all of its depth.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no picture that can be read whole.
    """
    if path.suffix.lower() == ".npy":
        return Picture(np.load(path, allow_pickle=False))
    data = path.read_bytes()
    if _is_deep_png(data):
        return _read_deep_png(data, path)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data)) as image:
            return _pages(image, path)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: no picture that Pillow knows") from error
    except (SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_picture(path: Path, picture: Picture) -> None:
    """Write it whole or not at all, in the format that the name says."""
    write_whole(path, lambda partial: _write(partial, path.suffix.lower(), picture))


def _is_deep_png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and data[24:25] == b"\x10"


def _read_deep_png(data: bytes, path: Path) -> Picture:
    """By FFmpeg, which reads 16 bits a channel whole."""
    import av

    _, channels = _DEEP_FORMATS.get(data[25], ("", 0))
    try:
        with av.open(BytesIO(data), "r", format="png_pipe") as container:
            frame = next(container.decode(video=0))
            height, width = frame.height, frame.width
            plane = frame.planes[0]
            rows = np.frombuffer(bytes(plane), dtype=">u2").reshape(height, plane.line_size // 2)
    except (av.error.FFmpegError, StopIteration) as error:
        raise ValueError(f"{path}: {error}") from error
    pixels = rows[:, : width * channels].astype(np.uint16)
    if channels == 1:
        return Picture(pixels)
    return Picture(pixels.reshape(height, width, channels), channel_axis=-1, alpha=channels in (2, 4))


def _pages(image: Any, path: Path) -> Picture:
    count = getattr(image, "n_frames", 1)
    kept = {name: image.info[name] for name in ("icc_profile", "exif", "dpi") if name in image.info}
    pages = []
    for number in range(count):
        image.seek(number)
        mode = image.mode
        if mode == "1":
            page = image.convert("L")
        elif mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
            page = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif mode in _PLAIN_MODES:
            page = image
        else:
            raise ValueError(f"{path}: pixels of mode {mode} are not known here")
        pages.append(np.asarray(page))
        alpha = page.mode in ("LA", "RGBA")
    if len({page.shape for page in pages}) > 1:
        raise ValueError(f"{path}: its {count} pages differ in size, so they are no volume")
    pixels = np.stack(pages) if count > 1 else pages[0].copy()
    if pixels.dtype == np.int32:  # Pillow's "I": what a file of 16 bits may be opened as
        if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"{path}: 32-bit whole numbers; write it as .npy")
        pixels = pixels.astype(np.uint16)
    colours = pages[0].ndim > 2
    return Picture(
        pixels.astype(pixels.dtype.newbyteorder("="), copy=False),
        -1 if colours else None,
        colours and alpha,
        kept,
    )


def _write(partial: Path, suffix: str, picture: Picture) -> None:
    pixels = picture.pixels
    if suffix == ".npy":
        with partial.open("wb") as file:
            np.save(file, pixels, allow_pickle=False)
        return
    from PIL import Image

    volume = pixels.ndim - (picture.channel_axis is not None) == 3
    if volume and suffix not in (".tif", ".tiff"):
        raise ValueError(f"{suffix} holds one picture, not a volume: write .tif or .npy")
    if pixels.dtype == np.uint16 and suffix == ".png":
        _write_deep_png(partial, pixels)
        return
    if pixels.dtype == np.uint16 and picture.channel_axis is not None:
        raise ValueError(f"16 bits a colour cannot be written as {suffix}: write .png or .npy")
    if pixels.dtype.kind == "f":
        if suffix not in (".tif", ".tiff"):
            raise ValueError(f"floats cannot be written as {suffix}: write .tif or .npy")
        pixels = pixels.astype(np.float32)
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"{pixels.dtype} cannot be written as {suffix}: write .npy")
    pages = [Image.fromarray(page) for page in (pixels if volume else pixels[None])]
    options = dict(picture.kept)
    if suffix in (".jpg", ".jpeg", ".webp"):
        options["quality"] = 95
    if len(pages) > 1:
        options.update(save_all=True, append_images=pages[1:])
    pages[0].save(partial, format=Image.registered_extensions()[suffix], **options)


def _write_deep_png(partial: Path, pixels: npt.NDArray[np.uint16]) -> None:
    import av

    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    height, width = pixels.shape[:2]
    name = next(name for name, count in _DEEP_FORMATS.values() if count == channels)
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt = width, height, name
    frame = av.VideoFrame(width, height, name)
    plane = frame.planes[0]
    rows = np.zeros((height, plane.line_size // 2), dtype=">u2")
    rows[:, : width * channels] = pixels.reshape(height, -1)
    plane.update(rows.tobytes())
    codec.time_base = Fraction(1)
    frame.pts = 0
    with partial.open("wb") as file:
        for packet in [*codec.encode(frame), *codec.encode(None)]:
            file.write(bytes(packet))
