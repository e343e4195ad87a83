"""A still image of any kind as RGB of 8 bits, upright, by Pillow; what cannot be used says why.

>>> import tempfile
>>> from PIL import Image
>>> path = Path(tempfile.mkdtemp()) / "grey.png"
>>> Image.new("L", (4, 3), 120).save(path)
>>> read_image(path).pixels.shape, read_image(path).pixels[0, 0].tolist()
((3, 4, 3), [120, 120, 120])
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nonlocal_nn.data.errors import ImageError

__all__ = ["MAX_PIXELS", "StillImage", "read_image"]

MAX_PIXELS = 200_000_000
_ORIENTATION = 274  # the EXIF tag
_TURNED = {5, 6, 7, 8}  # orientations that exchange height and width
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class StillImage(NamedTuple):
    """An image as it is shown.

    Attributes:
        pixels: uint8 (height, width, 3).
        note: how it was read, where it could be read two ways; else "".
    """

    pixels: npt.NDArray[np.uint8]
    note: str = ""


def read_image(
    path: str | Path, stated: tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS
) -> StillImage:
    """The first picture of a file; grey, palette, CMYK and 16 bits become RGB of 8 bits, alpha is dropped.

    A camera that was held upright often stores its pixels lying and says in EXIF how to turn them. Whether
    boxes are for the turned picture is told by the size that their json states.

    Args:
        path: a file.
        stated: height and width that the json says; None: unknown.
        max_pixels: larger ones are refused before they are decoded.

    Raises:
        ImageError: it is missing, empty, cut off, no image, too large, or of another size than stated; one
            line, `path: reason`.
    """
    from PIL import Image, UnidentifiedImageError

    file = Path(path)
    try:
        if not file.is_file():
            raise ImageError(str(path), "is a folder" if file.is_dir() else "no such file")
        if not file.stat().st_size:
            raise ImageError(str(path), "the file is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata: what matters is raised
            with Image.open(file) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ImageError(
                        str(path), f"{width} x {height} pixels are more than {max_pixels} (a limit of ours)"
                    )
                return _shown(image, str(path), stated)
    except UnidentifiedImageError as error:
        raise ImageError(str(path), _not_an_image(file)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(str(path), f"too many pixels ({error})") from error
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise ImageError(str(path), f"cannot be read: {reason}") from error
    except (SyntaxError, ValueError, EOFError, IndexError, TypeError, MemoryError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(str(path), f"cannot be decoded: {_first_line(error)}") from error


def _shown(image: Any, path: str, stated: tuple[int, int] | None) -> StillImage:
    """Turned as it is shown, and as RGB."""
    from PIL import ImageOps

    stored = image.size[::-1]
    orientation = image.getexif().get(_ORIENTATION, 1)
    shown = stored[::-1] if orientation in _TURNED else stored
    if stated is not None and stated not in (stored, shown):
        raise ImageError(
            path,
            f"is of {shown[1]} x {shown[0]} pixels, its json says {stated[1]} x {stated[0]}: boxes would not "
            "fit",
        )
    note = ""
    if orientation in range(2, 9):
        if stated == stored != shown:
            return StillImage(_rgb(image, path))  # the boxes are those of the pixels as they are stored
        if stated is None or stored == shown:
            note = "turned as its EXIF says; nothing tells whether its boxes are for the turned picture"
        image = ImageOps.exif_transpose(image)
    return StillImage(_rgb(image, path), note)


def _rgb(image: Any, path: str) -> npt.NDArray[np.uint8]:
    if image.mode in _DEEP:
        deep = np.asarray(image)
        if deep.min(initial=0) < 0 or deep.max(initial=0) > 65535:
            raise ImageError(path, "holds whole numbers beyond 16 bits, whose range nobody knows")
        grey = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)  # Pillow would cut at 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(path, "holds floating-point numbers, whose range nobody knows; write it as PNG")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def _not_an_image(file: Path) -> str:
    with file.open("rb") as opened:
        head = opened.read(64)
    if head.strip() and all(byte in b"\t\n\r\x0b\x0c" or 32 <= byte < 127 for byte in head):
        return "no image: the file holds plain text"
    return "no image of a kind that Pillow knows, or its header is damaged"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
