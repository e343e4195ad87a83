"""Open a video and fetch frames by number.

Frame numbers count what a viewer sees, in order of presentation, from 0. Whatever the header says, they are
what decoding the whole file would give, and so is every pixel: seeking and skipping only leave out work that
no wanted frame depends on.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import av
import numpy as np
import numpy.typing as npt

from nonlocal_nn.data.errors import VideoError
from nonlocal_nn.data.packets import FrameTable, open_video, read_frame_table
from nonlocal_nn.data.pixels import Clip, ContactSheet, Image

__all__ = ["Clip", "DecodeCheck", "VideoError", "VideoInfo", "VideoReader", "probe"]

Numbers = npt.NDArray[np.int64]

# A seek costs about as much as decoding this many frames.
_SEEK_GAIN = 4
# Decoders that leave out, at once and exactly, pictures that no other depends on (AV1's fixes its choice
# when opened).
_SKIPPING_CODECS = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"}
# Fewer frames than this missing at the end of a video: the last one is held, as a player does.
_TAIL_TOLERANCE = 2
# Frames decoded for counting are kept for reading if they take no more than this.
_KEEP_BYTES = 64 * 2**20
# Counts of files that have to be decoded to be counted: (path, size, time of change) -> frames.
_decoded_counts: dict[tuple[str, int, int], int] = {}


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The properties of a video file, and how many frames it holds.

    Attributes:
        width, height: in pixels, after rotation.
        rotation_degrees: counter-clockwise turn that the file asks players for, 0, 90, 180 or -90; already
            applied.
        mirrored: the file asks players to mirror the picture, left to right, before that turn; applied too.
        pixel_aspect: width of a pixel over its height as the file states it; pixels are used as stored.
        fps: average frames per second.
        duration_seconds: from the first frame to the end of the last.
        frames: counted, not the header's.
        header_frames: what the header says, 0 where it says nothing.
        variable_frame_rate: the gaps between frames differ by more than a half.
        video_streams: their number, cover pictures left out.
        codec, pixel_format, container: FFmpeg's names.
    """

    path: str
    width: int
    height: int
    rotation_degrees: int
    mirrored: bool
    pixel_aspect: float
    fps: float
    duration_seconds: float
    frames: int
    header_frames: int
    variable_frame_rate: bool
    video_streams: int
    codec: str
    pixel_format: str
    container: str


@dataclass(frozen=True, slots=True)
class DecodeCheck:
    """What decoding a whole video showed.

    Attributes:
        info: the file.
        decoded: frames that the decoder gave; fewer than info.frames where some are repeats, or lack what
            they depend on.
        damaged: frames of which the decoder had to make up a part.
        sizes: the number of different frame sizes.
    """

    info: VideoInfo
    decoded: int
    damaged: int
    sizes: int


def probe(path: str | Path) -> VideoInfo:
    """Return what is known of a video; decodes one frame (formats without frame times: all).

    Raises:
        VideoError: the file is missing, empty, cut off, not a video, or its first frame cannot be decoded.
    """
    with VideoReader(path) as reader:
        return reader.info


class VideoReader:
    """Exact frames of one video file.

    >>> import tempfile, pathlib
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name) / "ten.mp4"
    >>> with av.open(str(path), "w") as out:
    ...     stream = out.add_stream("mpeg4", rate=5)
    ...     stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
    ...     for value in range(0, 250, 25):
    ...         image = np.full((24, 32, 3), value, np.uint8)
    ...         out.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
    ...     out.mux(stream.encode())
    >>> with VideoReader(path) as reader:
    ...     clip = reader.read([0, 4, 8])
    ...     print(reader.num_frames, clip.frames.shape, clip.pts_seconds.tolist())
    10 (3, 24, 32, 3) [0.0, 0.8, 1.6]
    >>> folder.cleanup()

    Args:
        path: a file.
        threads: for decoding. One by default: data loaders run one worker a core.
        data: what the file holds, as bytes or as a file object that can seek, where it is not to be read from
            `path`, which then only names it. The object is closed with the reader.
        table: its frames, where somebody kept them (`video_index`): then its packets are not gone through
            first, which is a pass over the whole file.

    Raises:
        VideoError: from the constructor and from every method; one line, `path: reason`.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int = 1,
        data: bytes | IO[bytes] | io.RawIOBase | None = None,
        table: FrameTable | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be 1 or more, not {threads}")
        self.path = str(path)
        self._threads = threads
        self._data = io.BytesIO(data) if isinstance(data, bytes) else data
        self._kept: list[Any] | None = None
        try:
            self._container, self._stream = open_video(self.path, threads, self._data)
        except BaseException:
            if self._data is not None:
                self._data.close()
            raise
        self._tick_seconds = float(self._stream.time_base or 0)
        self._untouched = table is not None  # no packet was read: the container stands at its first
        try:
            self._table = table or read_frame_table(self.path, self._container, self._stream)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._kept = None
        self._container.close()
        if self._data is not None:
            self._data.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def table(self) -> FrameTable:
        """The frames as packets tell them."""
        return self._table

    @property
    def num_frames(self) -> int:
        """The number of frames, counted."""
        if self._table.exact:
            return len(self._table.pts)
        return self._decoded_count if self._table.counted is None else self._table.counted

    @property
    def fps(self) -> float:
        """Average frames per second; 1 where the file says nothing."""
        rate = self._stream.average_rate or self._stream.guessed_rate or self._stream.base_rate
        return float(rate) if rate else 1.0

    @property
    def duration_seconds(self) -> float:
        """From the first frame to the end of the last."""
        if not self._table.exact:
            return self.num_frames / self.fps
        pts = self._table.pts
        last = self._table.last_duration * self._tick_seconds or 1.0 / self.fps
        return float(pts[-1] - pts[0]) * self._tick_seconds + last

    @property
    def frame_seconds(self) -> npt.NDArray[np.float64]:
        """The time at which each frame is shown, (num_frames,), ascending."""
        if not self._table.exact:
            return np.arange(self.num_frames, dtype=np.float64) / self.fps
        return self._table.pts.astype(np.float64) * self._tick_seconds

    @property
    def info(self) -> VideoInfo:
        """Everything known of the file."""
        sheet = self._fetch(np.zeros(1, dtype=np.int64))
        height, width = sheet.frames.shape[1:3]
        gaps = np.diff(self.frame_seconds)
        typical = float(np.median(gaps)) if len(gaps) else 0.0
        covers = av.stream.Disposition.attached_pic
        context = self._stream.codec_context
        aspect = float(self._stream.sample_aspect_ratio or context.sample_aspect_ratio or 1) or 1.0
        return VideoInfo(
            path=self.path,
            width=width,
            height=height,
            rotation_degrees=sheet.orientation.rotation_degrees,
            mirrored=sheet.orientation.mirrored,
            pixel_aspect=1 / aspect if sheet.orientation.transpose else aspect,
            fps=self.fps,
            duration_seconds=self.duration_seconds,
            frames=self.num_frames,
            header_frames=self._stream.frames,
            variable_frame_rate=bool(
                len(gaps) and (gaps.max() > 1.5 * typical or gaps.min() < 0.5 * typical)
            ),
            video_streams=sum(not s.disposition & covers for s in self._container.streams.video),
            codec=context.codec.canonical_name,
            pixel_format=context.pix_fmt or "unknown",
            container=self._container.format.name,
        )

    def read(
        self,
        indices: Sequence[int] | npt.NDArray[np.integer[Any]],
        prepare: Callable[[Image], Image] | None = None,
    ) -> Clip:
        """Return the frames with these numbers, in the order given; a number may occur more than once.

        The video is decoded at most once, forwards, whatever the order. Only wanted frames become pixels. A
        frame that the file lists but the decoder leaves out (before the first key frame, or a repeated
        picture) is shown as the one before it, or else after it, as a player does; `pts_seconds` tells which
        was shown.

        Args:
            indices: frame numbers from 0.
            prepare: what to do with each frame, uint8 (height, width, 3), as soon as it is decoded, such as
                making it smaller: then the large ones are never all in memory. It must not keep its argument.

        Raises:
            ValueError: no numbers, or one outside the video.
            VideoError: decoding fails before the last wanted frame.
        """
        asked = np.asarray(indices, dtype=np.int64)
        if asked.ndim != 1 or not len(asked):
            raise ValueError(f"read needs a list of frame numbers, not an array of shape {asked.shape}")
        wanted, inverse = np.unique(asked, return_inverse=True)
        if wanted[0] < 0 or wanted[-1] >= self.num_frames:
            raise ValueError(
                f"{self.path}: frames {wanted[0]} .. {wanted[-1]} asked of a video of {self.num_frames}"
            )
        sheet = self._fetch(wanted, prepare)
        frames, seconds = sheet.frames, sheet.seconds
        if len(wanted) != len(asked) or np.any(inverse[1:] < inverse[:-1]):
            frames, seconds = frames[inverse], seconds[inverse]
        return Clip(frames, asked, seconds, self.path)

    def check(self) -> DecodeCheck:
        """Decode all of it, and turn the first frame into pixels.

        Raises:
            VideoError: decoding fails anywhere.
        """
        info = self.info
        decoded = damaged = 0
        last = -1
        sizes: set[tuple[int, int]] = set()
        for number, frame in self._decode(None, None):
            last = max(last, number)
            decoded += 1
            damaged += frame.is_corrupt
            sizes.add((frame.width, frame.height))
        self._check_tail(last, info.frames - 1)
        return DecodeCheck(info, decoded, damaged, len(sizes))

    # -- from wanted numbers to pixels
    # ------------------------------------------------------------------------------

    def _fetch(self, wanted: Numbers, prepare: Callable[[Image], Image] | None = None) -> ContactSheet:
        sheet = ContactSheet(self.path, wanted, prepare)
        if self._table.exact:
            for start, run in self._runs(wanted):
                # A decoder may fail where it was made to start late or to skip; the plain pass below
                # decides then.
                with suppress(VideoError):
                    for number, frame in self._decode(start, run):
                        if number in sheet.pending:
                            sheet.put(number, frame, self._seconds(number))
        if sheet.pending:
            self._fetch_plainly(sheet)
        return sheet

    def _fetch_plainly(self, sheet: ContactSheet) -> None:
        """Decode everything from the first packet up to the last pending frame; hold what does not appear."""
        shown: tuple[int, Any] | None = None
        for number, frame in self._decode(None, None):
            for late in sorted(n for n in sheet.pending if n < number):
                source = shown or (number, frame)
                sheet.put(late, source[1], self._seconds(source[0]))
            if number in sheet.pending:
                sheet.put(number, frame, self._seconds(number))
            if not sheet.pending:
                return
            shown = number, frame
        if shown is None:
            raise VideoError(self.path, "no frame can be decoded")
        for late in sorted(sheet.pending):
            self._check_tail(shown[0], late)
            sheet.put(late, shown[1], self._seconds(shown[0]))

    def _check_tail(self, last: int, wanted: int) -> None:
        if wanted - last > _TAIL_TOLERANCE:
            raise VideoError(
                self.path, f"decoding ends after frame {last + 1} of {self.num_frames} without an error"
            )

    def _seconds(self, number: int) -> float:
        if self._table.exact:
            return float(self._table.pts[number]) * self._tick_seconds
        return number / self.fps

    def _runs(self, wanted: Numbers) -> Iterator[tuple[int | None, Numbers]]:
        """Cut the wanted numbers where a jump to a key frame is cheaper than decoding on."""
        if not self._table.seekable:
            yield None, wanted
            return
        start: int | None = None
        begin, reached = 0, 0
        for i, number in enumerate(wanted.tolist()):
            key = self._table.key_frame_before(number)
            if key >= 0 and self._table.key_frames[key] - reached > _SEEK_GAIN:
                if i > begin:
                    yield start, wanted[begin:i]
                begin, start = i, key
            reached = number
        yield start, wanted[begin:]

    def _decode(self, start: int | None, run: Numbers | None) -> Iterator[tuple[int, Any]]:
        """Yield (number, decoded frame): from key frame `start` to the end of `run`, or all (both None)."""
        if run is None and self._kept is not None:
            yield from enumerate(self._kept)
            return
        exact, pts = self._table.exact, self._table.pts
        packets = self._packets(start, afresh=run is None)
        context = self._stream.codec_context
        may_skip = run is not None and context.codec.canonical_name in _SKIPPING_CODECS
        wanted = set() if run is None else {int(pts[number]) for number in run}
        skipping = False
        count, number = 0, -1
        try:
            for packet in packets:
                if may_skip and skipping != (packet.pts is not None and packet.pts not in wanted):
                    # Pictures that no other depends on need not even be decoded.
                    skipping = not skipping
                    context.skip_frame = "NONREF" if skipping else "DEFAULT"
                for frame in packet.decode():
                    if exact and frame.pts is not None:
                        number = min(int(np.searchsorted(pts, frame.pts)), len(pts) - 1)
                    else:
                        number = count
                    count += 1
                    yield number, frame
                    if run is not None and number >= run[-1]:
                        return
        except (OSError, ValueError, av.FFmpegError) as error:
            total = f" of {len(pts)}" if exact else ""
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoError(
                self.path, f"decoding fails after frame {number + 1}{total}: {reason}"
            ) from error
        finally:
            if skipping:
                context.skip_frame = "DEFAULT"

    def _packets(self, start: int | None, afresh: bool) -> Iterator[Any]:
        """Iterate over the packets from a key frame, or from the first packet."""
        table = self._table
        untouched, self._untouched = self._untouched, False
        if untouched and start is None:
            return cast("Iterator[Any]", self._container.demux(self._stream))
        if table.seekable and not afresh:
            key = 0 if start is None else start
            self._container.seek(int(table.key_seek[key]), stream=self._stream)
            packets = self._container.demux(self._stream)
            first = next(packets)
            if start is None and first.pts == table.first_packet_pts:
                return chain([first], packets)
            if start is not None:
                if not first.is_keyframe or first.pts is None or first.pts > table.key_pts[key]:
                    raise VideoError(self.path, "the index is wrong")
                return chain([first], packets)
        self._container.close()
        self._container, self._stream = open_video(self.path, self._threads, self._data)
        return cast("Iterator[Any]", self._container.demux(self._stream))

    @cached_property
    def _decoded_count(self) -> int:
        """The count by decoding, once for each process, of a file whose packets do not give it."""
        key = None  # what data hold may change under the same name
        if self._data is None:
            file = Path(self.path).stat()
            key = (self.path, file.st_size, file.st_mtime_ns)
        if key in _decoded_counts:
            return _decoded_counts[key]
        kept: list[Any] | None = []
        count = held_bytes = 0
        for _, frame in self._decode(None, None):
            count += 1
            held_bytes += sum(plane.buffer_size for plane in frame.planes)
            if held_bytes > _KEEP_BYTES:
                kept = None
            if kept is not None:
                kept.append(frame)
        if not count:
            raise VideoError(self.path, "no frame can be decoded")
        self._kept = kept
        if key is not None:
            _decoded_counts[key] = count
        return count
