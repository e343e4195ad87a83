"""Still images of every kind become RGB of 8 bits, upright; the others say why."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from nonlocal_nn.data.errors import ImageError
from nonlocal_nn.data.images import read_image

HEIGHT, WIDTH = 12, 20


@pytest.fixture
def picture() -> np.ndarray:
    """A corner that is bright, the rest in colours."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, WIDTH).astype(np.uint8)
    pixels[..., 1] = np.linspace(0, 250, HEIGHT).astype(np.uint8)[:, None]
    pixels[:4, :5] = 255
    return pixels


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_lossless_files_come_back(picture: np.ndarray, suffix: str, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}")
    found = read_image(tmp_path / f"a.{suffix}")
    assert np.array_equal(found.pixels, picture)
    assert found.pixels.flags.c_contiguous
    assert found.note == ""


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif", "gif"])
def test_lossy_files_come_back_nearly(picture: np.ndarray, suffix: str, tmp_path: Path) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", quality=95)
    pixels = read_image(tmp_path / f"a.{suffix}").pixels
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pixels.astype(int) - picture).mean() < 16


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_modes_become_colours(picture: np.ndarray, mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(picture).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(7)  # dropped, not blended with anything
    image.save(tmp_path / "a.tif")
    expected = np.asarray(Image.fromarray(picture).convert(mode).convert("RGB"))
    found = read_image(tmp_path / "a.tif").pixels
    assert np.array_equal(found, expected)


def test_16_bits_are_scaled(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
        pixels = read_image(tmp_path / f"a.{suffix}").pixels
        assert np.array_equal(pixels[..., 0], np.round(deep / 257).astype(np.uint8))
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_the_first_picture_of_an_animation(picture: np.ndarray, tmp_path: Path) -> None:
    first = Image.fromarray(picture).convert("P")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("P", (WIDTH, HEIGHT), 3)])
    assert np.array_equal(read_image(tmp_path / "a.gif").pixels, np.asarray(first.convert("RGB")))


def _with_exif(picture: np.ndarray, orientation: int, path: Path) -> None:
    """Stored so that EXIF's turn shows the picture."""
    back = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }
    stored = back[orientation](Image.fromarray(picture))
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(path, exif=exif)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_a_picture_is_shown_upright(picture: np.ndarray, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    _with_exif(picture, orientation, path)
    found = read_image(path)
    assert np.array_equal(found.pixels, picture)
    assert bool(found.note) == (orientation != 1)
    known = read_image(path, (HEIGHT, WIDTH))
    assert np.array_equal(known.pixels, picture)
    # Only where height and width change places does the size tell.
    assert bool(known.note) == (orientation in (2, 3))
    if orientation in (6, 8):
        stored = read_image(path, (WIDTH, HEIGHT))  # the json has the size of the stored pixels
        assert np.array_equal(stored.pixels, np.asarray(Image.open(path)))
        assert stored.note == ""
    with pytest.raises(ImageError, match="is of 20 x 12 pixels, its json says 21 x 12: boxes would not fit"):
        read_image(path, (HEIGHT, WIDTH + 1))


def _bomb(path: Path) -> None:
    """A few bytes that promise 60,000 x 60,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_what_is_no_image_says_why(picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(
        tmp_path / "whole.jpg"
    )
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(picture).save(tmp_path / "whole.png")
    png = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture\n")
    (tmp_path / "noise.jpg").write_bytes(np.random.default_rng(0).bytes(500))
    _bomb(tmp_path / "bomb.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 10**6, np.int32)).save(tmp_path / "int.tif")
    for name, reason in (
        ("absent.jpg", "no such file"),
        (".", "is a folder"),
        ("empty.jpg", "the file is empty"),
        ("text.jpg", "plain text"),
        ("noise.jpg", "no image of a kind"),
        ("cut.jpg", "cannot be read: image file is truncated"),
        ("cut.png", "cannot be"),
        ("bomb.png", "60000 x 60000 pixels are more than|too many pixels"),
        ("float.tif", "floating-point"),
        ("int.tif", "beyond 16 bits"),
    ):
        path = str(tmp_path / name)
        with pytest.raises(ImageError, match=reason) as error:
            read_image(path)
        assert error.value.path == path
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ImageError, match="20 x 12 pixels are more than 100"):
        read_image(tmp_path / "whole.png", max_pixels=100)


def test_no_byte_of_an_image_is_trusted(picture: np.ndarray, tmp_path: Path) -> None:
    """Bytes changed at random: an image of some kind, or one line."""
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    Image.fromarray(picture).save(tmp_path / "a.tif")
    rng = np.random.default_rng(0)
    refused = 0
    for name in ("a.png", "a.jpg", "a.tif"):
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(60):
            changed = whole.copy()
            changed[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
            (tmp_path / "b").write_bytes(changed.tobytes())
            try:
                pixels = read_image(tmp_path / "b", max_pixels=10**6).pixels
            except ImageError:
                refused += 1
            else:
                assert pixels.dtype == np.uint8
                assert pixels.shape[2] == 3
    assert refused > 20


def test_real_images_have_the_size_of_their_json(shared_data: Path) -> None:
    from nonlocal_nn.data.coco import read_coco

    for name in ("coco_mini", "tiny_coco"):
        folder = shared_data / "coco" / name
        for image in read_coco(folder / "annotations" / "instances_train2017.json"):
            assert read_image(image.path, (image.height, image.width)).note == ""
