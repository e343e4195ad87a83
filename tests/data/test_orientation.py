"""What the header says about a picture: turned, mirrored, of pixels that are not square."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest

from nonlocal_nn.data.decode import VideoReader, probe
from nonlocal_nn.data.scan import findings_of
from nonlocal_nn.data.video_index import look
from tests.data.made_videos import numbered_image, set_display_matrix, write_video

# For each matrix (a, b, c, d) the filters that FFmpeg's own command line inserts, and what is said of it.
ORIENTATIONS = {
    (1, 0, 0, 1): ([], 0, False),
    (0, 1, -1, 0): ([("transpose", "clock")], -90, False),
    (-1, 0, 0, -1): ([("hflip", None), ("vflip", None)], 180, False),
    (0, -1, 1, 0): ([("transpose", "cclock")], 90, False),
    (-1, 0, 0, 1): ([("hflip", None)], 0, True),
    (1, 0, 0, -1): ([("vflip", None)], 180, True),
    (0, 1, 1, 0): ([("transpose", "cclock_flip")], 90, True),
    (0, -1, -1, 0): ([("transpose", "clock_flip")], -90, True),
}


def _filtered(image: np.ndarray, filters: list[tuple[str, str | None]]) -> np.ndarray:
    graph = av.filter.Graph()
    chain = [
        graph.add_buffer(
            width=image.shape[1], height=image.shape[0], format="rgb24", time_base=Fraction(1, 25)
        )
    ]
    chain += [graph.add(name, options) if options else graph.add(name) for name, options in filters]
    chain.append(graph.add("buffersink"))
    graph.link_nodes(*chain).configure()
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame.pts = 0
    graph.push(frame)
    return graph.pull().to_ndarray(format="rgb24")


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_all_eight_orientations_are_those_of_ffmpeg(
    tmp_path: Path, matrix: tuple[int, int, int, int], suffix: str
) -> None:
    filters, turned, mirrored = ORIENTATIONS[matrix]
    plain = write_video(tmp_path / f"plain.{suffix}", 3)
    with VideoReader(plain) as reader:
        stored = reader.read([2]).frames[0]
    path = set_display_matrix(write_video(tmp_path / f"odd.{suffix}", 3), matrix)
    with VideoReader(path) as reader:
        shown = reader.read([2]).frames[0]
        info = reader.info
    np.testing.assert_array_equal(shown, _filtered(stored, filters))
    assert (info.rotation_degrees, info.mirrored) == (turned, mirrored)
    assert (info.height, info.width) == shown.shape[:2]
    said = " ".join(finding.reason for finding in findings_of(look(str(path)), 1))
    assert ("mirrored left to right" in said) == mirrored
    assert (f"rotated by {turned} degrees" in said) == (turned != 0)


def test_a_mirrored_number_reads_mirrored(tmp_path: Path) -> None:
    path = set_display_matrix(write_video(tmp_path / "front.mp4", 6), (-1, 0, 0, 1))
    with VideoReader(path) as reader:
        shown = reader.read([5]).frames[0]
    assert np.abs(shown.astype(int) - numbered_image(5)[:, ::-1]).mean() < 10


@pytest.mark.parametrize(("aspect", "players"), [((16, 9), "114x48"), ((64, 45), "91x48"), ((1, 2), "32x48")])
def test_pixels_that_are_not_square_are_said(tmp_path: Path, aspect: tuple[int, int], players: str) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for number in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_image(number))))
        container.mux(stream.encode())
    info = probe(path)
    assert info.pixel_aspect == pytest.approx(aspect[0] / aspect[1], rel=1e-3)
    assert (info.width, info.height) == (64, 48)  # as stored: published networks are trained on these
    said = " ".join(finding.reason for finding in findings_of(look(str(path)), 1))
    assert f"players show {players}, networks see 64x48" in said


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.mp4", "libx264"),
        ("a.mov", "mpeg4"),
        ("a.ts", "libx264"),
    ],
)
def test_a_last_frame_that_stands_for_long_is_no_cut(tmp_path: Path, name: str, codec: str) -> None:
    times = [40 * number for number in range(20)] + [9000]
    path = write_video(tmp_path / name, len(times), codec, times_ms=times)
    info = probe(path)
    assert info.frames == len(times)
    assert not [f for f in findings_of(look(str(path)), 1) if f.severity == "broken"]
    assert info.duration_seconds >= 9.0


def test_the_last_frames_own_duration_counts(tmp_path: Path) -> None:
    path = tmp_path / "still.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = []
        for number in range(60):
            packets += stream.encode(av.VideoFrame.from_ndarray(numbered_image(number)))
        packets += stream.encode()
        packets[-1].duration = 100  # four seconds
        for packet in packets:
            container.mux(packet)
    assert probe(path).duration_seconds == pytest.approx(59 / 25 + 4, abs=0.1)
    data = path.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: 2 * len(data) // 3])  # half of it is still cut off
    assert "cut off" in findings_of(look(str(tmp_path / "cut.mkv")), 1)[0].reason
