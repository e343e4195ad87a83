"""A video with other frames: pictures are changed, sound and subtitles are copied, times are kept.

Frames go through one after another, so memory does not grow with the length of the video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nonlocal_nn._files import utf8_path, write_whole
from nonlocal_nn.data.pixels import orientation_of

Frames = Iterator[npt.NDArray[np.uint8] | npt.NDArray[np.uint16]]

# Formats that are written, by the name's end, with their encoder. Not .avi, which has no times of frames.
_FORMATS = {
    ".mp4": ("mp4", "libx264"),
    ".m4v": ("mp4", "libx264"),
    ".mov": ("mov", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
}
_QUALITY = {
    "libx264": {"crf": "16", "preset": "medium"},
    "libvpx-vp9": {"crf": "20", "b": "0", "row-mt": "1"},
}
_DEEP = ("10le", "10be", "12le", "12be", "16le", "16be")


@dataclass
class Rewritten:
    """What became of a video: frames written, packets that could not be decoded, streams left out."""

    frames: int = 0
    broken_packets: int = 0
    left_out: tuple[str, ...] = ()


def video_name(path: Path) -> Path:
    """The name it can be written under: its own, or .mkv where its format is not one that is written.

    >>> video_name(Path("a/b.mp4")).name, video_name(Path("a/b.mpg")).name
    ('b.mp4', 'b.mpg.mkv')
    """
    return path if path.suffix.lower() in _FORMATS else path.with_name(path.name + ".mkv")


def rewrite_video(
    source: Path,
    target: Path,
    change: Callable[[Frames], Iterable[npt.NDArray[Any]]],
    progress: Callable[[int, int], None] | None = None,
) -> Rewritten:
    """Write `target` with the changed pictures of `source`, whole or not at all.

    Args:
        source: any file with a video stream; the first one is taken.
        target: .mp4, .m4v, .mov, .mkv or .webm.
        change: takes the frames, upright RGB (height, width, 3) of 8 bits, or of 16 where the video has more
            than 8, and gives as many of the same size, in their order; it may be some frames behind.
        progress: called with the frames written and how many there are (0: not known).

    Raises:
        ValueError: it cannot be read or written.
    """
    import av

    suffix = target.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"{target}: videos are written as {', '.join(_FORMATS)}")
    result = Rewritten()

    def write(partial: Path) -> None:
        container_name, encoder = _FORMATS[suffix]
        with (
            av.open(utf8_path(source), metadata_errors="replace") as read,
            av.open(utf8_path(partial), mode="w", format=container_name) as written,
        ):
            _Rewriting(read, written, encoder, result, progress).run(change)

    try:
        write_whole(target, write)
    except av.error.FFmpegError as error:
        raise ValueError(f"{source}: {error.strerror}") from error
    return result


class _Rewriting:
    """One pass over a file: packets in, packets out."""

    def __init__(
        self,
        read: Any,
        written: Any,
        encoder: str,
        result: Rewritten,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        if not read.streams.video:
            raise ValueError("no video stream in it")
        self.read, self.written, self.result, self.progress = read, written, result, progress
        self.encoder = encoder
        self.source = read.streams.video[0]
        self.source.thread_type = "AUTO"
        self.stream: Any = None
        self.copies: dict[int, Any] = {}
        self.waiting: list[Any] = []  # packets of other streams, before the first frame says its size
        self.last: int | None = None
        self.times: list[int] = []  # of frames that `change` has not given back yet
        left_out = []
        for stream in read.streams:
            if stream is self.source:
                continue
            try:
                if stream.type not in ("audio", "subtitle"):
                    raise ValueError(stream.type)
                self.copies[stream.index] = written.add_stream_from_template(stream)
            except (ValueError, OSError):
                left_out.append(f"stream {stream.index} ({stream.type})")
        result.left_out = tuple(left_out)

    def run(self, change: Callable[[Frames], Iterable[npt.NDArray[Any]]]) -> None:
        total = self.source.frames or 0
        for pixels in change(self._frames()):
            self._write(pixels)
            self.result.frames += 1
            if self.progress is not None:
                self.progress(self.result.frames, total)
        if self.stream is None:
            raise ValueError("no frame of it can be decoded")
        for packet in self.stream.encode(None):
            self.written.mux(packet)

    def _frames(self) -> Frames:
        import av

        for packet in self.read.demux():
            if packet.stream.index in self.copies:
                self._copy(packet)
            if packet.stream is not self.source:
                continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self.result.broken_packets += 1
                continue
            for frame in frames:
                deep = frame.format.name.endswith(_DEEP)
                upright = orientation_of(frame)
                pixels = upright.apply(frame.to_ndarray(format="rgb48le" if deep else "rgb24"))
                if self.stream is None:
                    self._open(frame, pixels, deep)
                self.times.append(self._time(frame.pts))
                yield np.ascontiguousarray(pixels)

    def _time(self, pts: int | None) -> int:
        """When the frame is shown; one that does not say so, or goes back, comes a frame after the last."""
        if pts is None or (self.last is not None and pts <= self.last):
            rate = self.source.average_rate or Fraction(25)
            step = max(1, round(1 / (rate * self.source.time_base)))
            pts = 0 if self.last is None else self.last + step
        self.last = pts
        return pts

    def _open(self, frame: Any, pixels: npt.NDArray[Any], deep: bool) -> None:
        """The stream that is written, as the first frame says."""
        rate = self.source.average_rate or Fraction(25)
        self.stream = self.written.add_stream(self.encoder, rate=rate)
        self.stream.height, self.stream.width = pixels.shape[:2]
        even = pixels.shape[0] % 2 == 0 and pixels.shape[1] % 2 == 0
        self.stream.pix_fmt = ("yuv420p" if even else "yuv444p") + ("10le" if deep else "")
        self.stream.options = dict(_QUALITY[self.encoder])
        self.stream.time_base = self.source.time_base
        self.stream.codec_context.time_base = self.source.time_base
        ratio = self.source.sample_aspect_ratio
        if ratio:
            turned = pixels.shape[:2] != (frame.height, frame.width)
            self.stream.codec_context.sample_aspect_ratio = 1 / ratio if turned else ratio

    def _write(self, pixels: npt.NDArray[Any]) -> None:
        import av

        name = "rgb48le" if pixels.dtype == np.uint16 else "rgb24"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=name)
        frame.pts, frame.time_base = self.times.pop(0), self.source.time_base
        for packet in self.stream.encode(frame):
            self.written.mux(packet)
        for packet in self.waiting:
            self.written.mux(packet)
        self.waiting.clear()

    def _copy(self, packet: Any) -> None:
        if packet.dts is None:  # what ends a stream
            return
        packet.stream = self.copies[packet.stream.index]
        if self.stream is None or self.result.frames == 0:
            self.waiting.append(packet)  # the header is written with the first packet, when all is known
        else:
            self.written.mux(packet)
