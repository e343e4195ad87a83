"""What a video file holds, learned from its packets without decoding them: frame numbers, times, key frames.

Headers can give a wrong number of frames; packets do not. One pass over them costs a few per cent of
decoding.
"""

from __future__ import annotations

import errno
import io
import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import numpy.typing as npt

from nonlocal_nn.data.errors import UnavailableError, VideoError

__all__ = ["FrameTable", "open_video", "read_frame_table"]

# FFmpeg prints warnings of its own for every odd file; what matters comes back as VideoError.
av.logging.set_level(None)

# Formats whose index can be trusted to land on a key frame. Others are decoded from the start.
_INDEXED_FORMATS = {"mov", "mp4", "matroska", "webm"}
# Formats without presentation times (AVI) and codecs with packets that show nothing (VP8's hidden frames):
# the frames of such a file are known only once it has been decoded.
_UNTIMED_FORMATS = {"avi"}
_HIDDEN_FRAME_CODECS = {"vp8"}
_BUFFER = 2**17  # bytes that FFmpeg asks a file object for at a time
# What the system says where the file itself may be whole.
_NO_FAULT_OF_THE_FILE = {
    errno.EMFILE: "this process has no more; `ulimit -n` raises the limit",
    errno.ENFILE: "the system has no more",
    errno.ENOMEM: "there is no memory left",
    errno.EACCES: "its permissions, or those of a folder above it, keep this user out",
    errno.EPERM: "its permissions keep this user out",
    errno.EIO: "the disk or the network fails",
    errno.ESTALE: "the network share was lost",
    errno.ETIMEDOUT: "the network share does not answer",
}


@dataclass(frozen=True, slots=True)
class FrameTable:
    """The frames of a video stream as its packets tell them, in presentation order.

    Attributes:
        pts: presentation times in units of the stream's time base, ascending.
        exact: every packet is one frame with a time of its own, so frame n is the one at pts[n]. Else (AVI,
            packed B-frames, missing times) frames are counted by decoding.
        key_frames: numbers of the frames a decoder can start at, ascending.
        key_pts: the presentation time of each of them.
        key_seek: the time to seek to for each of them.
        last_duration: how long the last frame is shown, in the same units; 0 where nothing says so.
        counted: how many frames decoding gave, where it had to count them and somebody kept that.
        first_packet_pts: how to recognise the start of the stream.
        seekable: the container has an index.
    """

    pts: npt.NDArray[np.int64]
    exact: bool
    key_frames: npt.NDArray[np.int64]
    key_pts: npt.NDArray[np.int64]
    key_seek: npt.NDArray[np.int64]
    first_packet_pts: int | None
    seekable: bool
    last_duration: int = 0
    counted: int | None = None

    def key_frame_before(self, frame: int) -> int:
        """Return the position in `key_frames` of the last one at or before a frame, or -1."""
        return int(np.searchsorted(self.key_frames, frame, side="right")) - 1


def open_video(path: str, threads: int, data: IO[bytes] | io.RawIOBase | None = None) -> tuple[Any, Any]:
    """Open a file, or what it holds, and return its (container, video stream); the caller closes the
    container.

    Raises:
        VideoError: the file is missing, empty, not a video, or holds no video stream.
    """
    file = Path(path) if data is None else None
    try:
        source = _file_name(path, file) if file is not None else data
        if data is not None:
            _check_data(path, data)
        # A play list may open nothing but files.
        container = av.open(source, options={"protocol_whitelist": "file"}, buffer_size=_BUFFER)
    except VideoError:
        raise
    except (OSError, ValueError, av.FFmpegError) as error:
        number = getattr(error, "errno", None)
        if number in _NO_FAULT_OF_THE_FILE:
            reason = f"cannot be opened: {os.strerror(number)} ({_NO_FAULT_OF_THE_FILE[number]})"
            raise UnavailableError(path, reason) from error
        raise VideoError(path, _unreadable(_first_bytes(file, data), error)) from error
    try:
        stream = _best_stream(path, container)
        context = stream.codec_context
        context.thread_count = threads
        context.thread_type = "AUTO" if threads > 1 else "SLICE"
    except BaseException:
        container.close()
        raise
    return container, stream


def _best_stream(path: str, container: Any) -> Any:
    pictures = av.stream.Disposition.attached_pic
    videos = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not videos:
        if container.streams.video:
            raise VideoError(path, "no video stream, only a cover picture")
        kinds = sorted({stream.type for stream in container.streams})
        held = f"only {' and '.join(kinds)}" if kinds else "no stream at all"
        raise VideoError(path, f"no video stream: the file holds {held}")
    # Among several the file's default, then the largest picture, then the first.
    stream = max(videos, key=_preference)
    if stream.codec_context is None:
        raise VideoError(path, "the video stream has a codec this build of FFmpeg cannot decode")
    return stream


def _preference(stream: Any) -> tuple[bool, int]:
    context = stream.codec_context
    area = context.width * context.height if context is not None else 0
    return bool(stream.disposition & av.stream.Disposition.default), area


def _file_name(path: str, file: Path) -> str:
    """An absolute path, which is never taken for a URL."""
    if file.is_dir():
        raise VideoError(path, "is a folder, not a video file")
    if not file.is_file():
        raise VideoError(path, "a link to nothing" if file.is_symlink() else "no such file")
    if file.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    return str(file.absolute())


def _check_data(path: str, data: IO[bytes] | io.RawIOBase) -> None:
    """Go to its first byte; raise where there is none."""
    if data.seek(0, io.SEEK_END) == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    data.seek(0)


def _first_bytes(file: Path | None, data: IO[bytes] | io.RawIOBase | None) -> bytes:
    with suppress(OSError):
        if data is not None:
            data.seek(0)
            return data.read(64) or b""
        if file is not None:
            with file.open("rb") as opened:
                return opened.read(64)
    return b""


def _unreadable(head: bytes, error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    if head[4:8] == b"ftyp":
        return f"an mp4/mov without its index (moov): cut off or never finished ({text})"
    if head.strip() and all(byte in b"\t\n\r\x0b\x0c" or 32 <= byte < 127 for byte in head):
        return f"not a video: the file holds plain text ({text})"
    return f"not a video, or its header is damaged ({text})"


def read_frame_table(path: str, container: Any, stream: Any) -> FrameTable:
    """Read every packet of the stream (no decoding).

    Raises:
        VideoError: the stream holds no frames, or the file is cut off.
    """
    rows: list[tuple[int | None, int | None, bool, bool]] = []
    ends: dict[int, int] = {}  # presentation time -> duration
    damaged = False
    try:
        for packet in container.demux(stream):
            if packet.size:
                rows.append((packet.pts, packet.dts, packet.is_keyframe, packet.is_discard))
                damaged = packet.is_corrupt
                if packet.pts is not None:
                    ends[packet.pts] = packet.duration or 0
    except (OSError, ValueError, av.FFmpegError) as error:
        raise VideoError(path, f"reading fails after {len(rows)} packets: {error}") from error
    if not rows:
        raise VideoError(path, "the video stream holds no frames")
    # only the last packet: damage in the middle shows in decoding, damage at the end means that the file was
    # cut
    _check_whole(path, container, stream, packets=len(rows), last_damaged=damaged, ends=ends)

    formats = set(container.format.name.split(","))
    shown = [row for row in rows if not row[3]]  # edit lists mark frames that are decoded but never shown
    times = [row[0] for row in shown if row[0] is not None]
    decode_times = [row[1] for row in rows if row[1] is not None]
    exact = (
        len(shown) > 0
        and len(set(times)) == len(shown)
        and all(a < b for a, b in pairwise(decode_times))
        and not formats & _UNTIMED_FORMATS
        and stream.codec_context.name not in _HIDDEN_FRAME_CODECS
        and stream.codec_context.codec.canonical_name not in _HIDDEN_FRAME_CODECS
    )
    empty = np.empty(0, dtype=np.int64)
    if not exact:
        return FrameTable(empty, False, empty, empty, empty, rows[0][0], seekable=False)
    pts = np.sort(np.array(times, dtype=np.int64))
    # mov indexes decoding times, matroska presentation times
    by_dts = "mov" in formats
    keys = sorted((row[0], row[1] if by_dts else row[0]) for row in rows if row[2] and row[0] is not None)
    key_pts = np.array([key[0] for key in keys], dtype=np.int64)
    return FrameTable(
        pts=pts,
        exact=True,
        key_frames=np.searchsorted(pts, key_pts).astype(np.int64),
        key_pts=key_pts,
        key_seek=np.array([key[1] for key in keys], dtype=np.int64),
        first_packet_pts=rows[0][0],
        seekable=bool(formats & _INDEXED_FORMATS),
        last_duration=ends[int(pts[-1])],
    )


def _check_whole(
    path: str,
    container: Any,
    stream: Any,
    packets: int,
    last_damaged: bool,
    ends: dict[int, int],
) -> None:
    """Raise where the header states clearly more than the file holds."""
    formats = set(container.format.name.split(","))
    promised = len(stream.index_entries) if "mov" in formats else 0
    if promised > packets:
        raise VideoError(path, f"cut off: the index lists {promised} frames, the file holds {packets}")
    if last_damaged:
        raise VideoError(path, f"cut off in the middle of frame {packets}")
    # Counts in other headers are estimates: a frame or two more than there are is common and harmless.
    if stream.frames and stream.frames - packets > max(2, stream.frames // 20):
        raise VideoError(
            path, f"cut off: the header promises {stream.frames} frames, the file holds {packets}"
        )
    promised_seconds = _promised_seconds(container, stream)
    if promised_seconds is not None and ends:
        last = max(pts + duration for pts, duration in ends.items())  # the last frame may stand for long
        held_seconds = float((last - min(0, min(ends))) * stream.time_base)
        if promised_seconds - held_seconds > max(1.0, 0.05 * promised_seconds):
            raise VideoError(
                path,
                f"cut off: the header promises {promised_seconds:.2f} s, the file holds {held_seconds:.2f} s",
            )


def _promised_seconds(container: Any, stream: Any) -> float | None:
    """Return the length a matroska/webm header states for the video stream, where it does."""
    if "matroska" not in container.format.name:
        return None
    tag = stream.metadata.get("DURATION")  # "00:00:10.333000000"
    if tag and tag.count(":") == 2:
        with suppress(ValueError):
            hours, minutes, seconds = tag.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if len(container.streams) == 1 and container.duration:
        return float(container.duration) / av.time_base
    return None
