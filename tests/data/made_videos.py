"""Videos made on the spot, whose every frame carries its own number in black and white fields."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, BITS = 64, 48, 10


def numbered_image(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Draw the number's bits as 2 x 5 fields; the field at the upper left is the highest bit."""
    image = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, 5)
        if number >> (BITS - 1 - bit) & 1:
            top, left = row * height // 2, column * width // 5
            image[top : (row + 1) * height // 2, left : (column + 1) * width // 5] = 255
    return image


def numbers_shown(frames: np.ndarray) -> list[int]:
    """Read the numbers back from (n, height, width, 3)."""
    height, width = frames.shape[1:3]
    numbers = np.zeros(len(frames), int)
    for bit in range(BITS):
        row, column = divmod(bit, 5)
        y = (2 * row + 1) * height // 4
        x = (2 * column + 1) * width // 10
        numbers += (frames[:, y - 2 : y + 3, x - 2 : x + 3].mean(axis=(1, 2, 3)) > 128) << (BITS - 1 - bit)
    return numbers.tolist()


def write_video(
    path: Path,
    count: int,
    codec: str = "libx264",
    *,
    rate: int = 25,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    times_ms: Sequence[int] | None = None,
    turned: int = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write frames 0 .. count - 1; `turned`: stored so many degrees off, with the matrix that says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size if turned % 180 == 0 else size[::-1]
        stream.pix_fmt = pix_fmt
        if turned:
            stream.set_display_rotation(turned)
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            image = np.rot90(numbered_image(number, *size), -turned // 90)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image))
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source: Path, target: Path, edit: Callable[[int, bytes], bytes | None]) -> Path:
    """Copy a video's packets: edit(number, payload) gives the new payload, or None to leave one out."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = before.streams.video[0]
        out = after.add_stream_from_template(stream)
        for number, packet in enumerate(before.demux(stream)):
            payload = edit(number, bytes(packet)) if packet.size else None
            if payload is None:
                continue
            copy = av.Packet(payload)
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe = packet.is_keyframe
            copy.stream = out
            after.mux(copy)
    return target


def broken_files(folder: Path, whole: Path) -> dict[str, tuple[Path, str]]:
    """Every way to be unusable: {kind: (file, part of the reason)}."""
    folder.mkdir(parents=True, exist_ok=True)
    data = whole.read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("path label\nthis is a list that somebody renamed\n" * 20)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "no_index.mp4").write_bytes(data[: len(data) // 2])  # the index of an mp4 is at its end
    front = remux_front(whole, folder / "front.mp4")
    (folder / "cut.mp4").write_bytes(front.read_bytes()[: -len(data) // 3])
    front.unlink()
    mkv = write_video(folder / "whole.mkv", 60, options={"g": "12"})
    (folder / "cut.mkv").write_bytes(mkv.read_bytes()[: mkv.stat().st_size // 2])
    mkv.unlink()
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    (folder / "sound.wav").rename(folder / "sound.avi")
    with av.open(str(folder / "no_frames.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    remux(whole, folder / "damaged.mp4", lambda n, payload: payload if n < 30 else b"\xff" * len(payload))
    return {
        "missing": (folder / "missing.mp4", "no such file"),
        "empty": (folder / "empty.mp4", "empty (0 bytes)"),
        "text": (folder / "text.mp4", "plain text"),
        "noise": (folder / "noise.mp4", "not a video"),
        "index cut off": (folder / "no_index.mp4", "without its index"),
        "frames cut off": (folder / "cut.mp4", "cut off"),
        "mkv cut off": (folder / "cut.mkv", "cut off"),
        "audio only": (folder / "sound.avi", "only audio"),
        "no frames": (folder / "no_frames.mp4", "no"),
        "damaged": (folder / "damaged.mp4", "decoding fails after frame"),
        "folder": (folder, "is a folder"),
    }


def remux_front(source: Path, target: Path) -> Path:
    """Copy an mp4 with its index in front, as files on the web have it."""
    with (
        av.open(str(source)) as before,
        av.open(str(target), "w", container_options={"movflags": "faststart"}) as after,
    ):
        stream = before.streams.video[0]
        out = after.add_stream_from_template(stream)
        for packet in before.demux(stream):
            if packet.dts is not None:
                packet.stream = out
                after.mux(packet)
    return target


def set_display_matrix(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Write a, b, c, d into the track header of an mp4 or mov of one track: column p, row q of a stored frame
    are shown at column a p + c q, row b p + d q.
    """
    a, b, c, d = (round(value * 65536) for value in matrix)
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # after the box's type: version, times, track, duration, layer, volume
    nine = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data[:at] + nine + data[at + 36 :])
    return path
