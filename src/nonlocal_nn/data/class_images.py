"""Small images in one folder a class, in a folder or a zip file, all of one size.

>>> import tempfile
>>> from PIL import Image
>>> root = Path(tempfile.mkdtemp())
>>> for name in ("cat", "dog"):
...     (root / name).mkdir()
...     Image.new("RGB", (4, 4), "red").save(root / name / "0.png")
>>> images, labels, classes = read_class_images(root)
>>> images.shape, labels.tolist(), classes
((2, 4, 4, 3), [0, 1], ('cat', 'dog'))
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")


def read_class_images(
    path: str | Path,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[str, ...]]:
    """Images (number, height, width, 3), their labels, and the classes in the order of their names.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no image in a folder, one that cannot be read, or images of several sizes.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    images: list[npt.NDArray[np.uint8]] = []
    names: list[str] = []
    for name, content in _files(path):
        try:
            with Image.open(io.BytesIO(content)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path}: {name} is no image that Pillow knows ({error})") from error
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"{path}: {name} has {pixels.shape[0]} x {pixels.shape[1]} pixels, the first image "
                f"{images[0].shape[0]} x {images[0].shape[1]}; all must be of one size"
            )
        images.append(pixels)
        names.append(PurePosixPath(name).parent.name)
    if not images:
        raise ValueError(f"{path} has no images in folders, one folder a class ({', '.join(_SUFFIXES)})")
    classes = tuple(sorted(set(names)))
    return np.stack(images), np.array([classes.index(name) for name in names]), classes


def check_image_sets(who: str, train: str | None, test: str | None) -> tuple[str, str]:
    """The two places, if both are given and there.

    Raises:
        ValueError: one is not given; `who` says what wants them.
        FileNotFoundError: no such file or folder.
    """
    if train is None or test is None:
        raise ValueError(f"{who} wants images: --train and --test, each a folder or zip, one folder a class")
    for place in (train, test):
        if not Path(place).exists():
            raise FileNotFoundError(f"no such file or folder: {place}")
    return train, test


def read_image_sets(
    train: str | Path, test: str | Path
) -> tuple[
    tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
    tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
    tuple[str, ...],
]:
    """Images and labels to train on, to test on, and their classes.

    Raises:
        ValueError: what `read_class_images` refuses, or other classes in the test.
    """
    images, labels, classes = read_class_images(train)
    others, wanted, named = read_class_images(test)
    if classes != named:
        raise ValueError(f"{test} has the classes {', '.join(named)}, {train} {', '.join(classes)}")
    return (images, labels), (others, wanted), classes


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names, with their folder, and contents, in the order of the names."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if _is_image(name):
                yield name, file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(filter(_is_image, archive.namelist())):
                yield name, archive.read(name)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is neither a folder nor a zip file ({error})") from error


def _is_image(name: str) -> bool:
    place = PurePosixPath(name)
    return place.suffix.lower() in _SUFFIXES and len(place.parts) > 1 and not place.name.startswith(".")
