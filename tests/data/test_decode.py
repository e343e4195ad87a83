"""Decoding: frame n is frame n, whatever the codec, the container and the order; broken files say why."""

from __future__ import annotations

import pickle
from pathlib import Path

import av
import numpy as np
import pytest

from nonlocal_nn.data import decode
from nonlocal_nn.data.decode import VideoReader, probe
from nonlocal_nn.data.errors import VideoError
from tests.data.made_videos import numbers_shown, remux, write_video

# name: (suffix, codec, encoder options)
ENCODINGS = {
    "h264, B-frames": ("mp4", "libx264", {"g": "12", "bf": "3"}),
    "h264, pyramid, open groups": ("mkv", "libx264", {"x264-params": "keyint=15:open-gop=1:bframes=4"}),
    "h264, one key frame": ("mov", "libx264", {"g": "250"}),
    "h264, key frames only": ("mp4", "libx264", {"g": "1"}),
    "h264, intra refresh": ("mp4", "libx264", {"x264-params": "keyint=20:intra-refresh=1:bframes=0"}),
    "h264, transport stream": ("ts", "libx264", {"g": "12", "bf": "2"}),
    "hevc": ("mp4", "libx265", {"x265-params": "keyint=14:bframes=3:log-level=none"}),
    "mpeg4, avi": ("avi", "mpeg4", {"g": "12"}),
    "mpeg4, avi, B-frames": ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    "mpeg4, mp4": ("mp4", "mpeg4", {"g": "10", "bf": "2"}),
    "mpeg1": ("mpg", "mpeg1video", {"g": "12", "bf": "2"}),
    "mpeg2": ("mpg", "mpeg2video", {"g": "9", "bf": "2"}),
    "vp8, hidden frames": ("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20"}),
    "vp9": ("webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20", "cpu-used": "8"}),
    "flv": ("flv", "flv", {"g": "12"}),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_frame_is_the_one_asked_for(tmp_path: Path, name: str) -> None:
    suffix, codec, options = ENCODINGS[name]
    path = write_video(tmp_path / f"a.{suffix}", 60, codec, options=options)
    rng = np.random.default_rng(0)
    requests = [[0], [59], list(range(60)), [58, 59], [59, 0, 30, 30, 7], [11, 12, 13], [47, 48, 23, 24]]
    requests += [rng.integers(0, 60, size).tolist() for size in (1, 2, 5, 20, 80)]
    with VideoReader(path) as reader:
        assert reader.num_frames == 60
        for numbers in requests:
            clip = reader.read(numbers)
            assert numbers_shown(clip.frames) == numbers
            assert clip.indices.tolist() == numbers
            first = reader.read([0]).pts_seconds[0]
            assert np.allclose(clip.pts_seconds - first, np.array(numbers) / 25, atol=0.002)


@pytest.mark.parametrize("name", ["h264, pyramid, open groups", "mpeg4, avi, B-frames", "vp9"])
def test_pixels_are_those_of_plain_decoding(tmp_path: Path, name: str) -> None:
    suffix, codec, options = ENCODINGS[name]
    path = write_video(tmp_path / f"a.{suffix}", 60, codec, options=options)
    with av.open(str(path)) as container:
        plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with VideoReader(path) as reader:
        for numbers in ([3, 29, 55], list(range(20, 60, 2)), [59]):
            assert np.array_equal(reader.read(numbers).frames, plain[numbers])


def test_a_late_clip_does_not_decode_what_comes_before(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    plain = VideoReader._decode

    def counted(self, start, run):
        for number, frame in plain(self, start, run):
            decoded.append(number)
            yield number, frame

    monkeypatch.setattr(VideoReader, "_decode", counted)
    with VideoReader(video) as reader:
        reader.read([50, 52])  # key frames at 48 and 36
        assert min(decoded) >= 47
        decoded.clear()
        reader.read([0, 1, 59])
        assert len(decoded) < 20


def test_all_frames_of_30_views_are_decoded_once(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    plain = VideoReader._decode

    def counted(self, start, run):
        for number, frame in plain(self, start, run):
            decoded.append(number)
            yield number, frame

    monkeypatch.setattr(VideoReader, "_decode", counted)
    with VideoReader(video) as reader:
        reader.read(np.concatenate([np.arange(start, start + 32) for start in range(28)]))
    assert sorted(decoded) == sorted(set(decoded))


def test_threads_do_not_change_pixels(video: Path) -> None:
    with VideoReader(video) as one, VideoReader(video, threads=2) as two:
        assert np.array_equal(one.read([5, 17, 40]).frames, two.read([5, 17, 40]).frames)


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "empty",
        "text",
        "noise",
        "index cut off",
        "frames cut off",
        "mkv cut off",
        "audio only",
        "no frames",
        "damaged",
        "folder",
    ],
)
def test_broken_files_name_themselves_and_the_reason(broken: dict[str, tuple[Path, str]], kind: str) -> None:
    path, reason = broken[kind]
    with pytest.raises(VideoError) as caught, VideoReader(path) as reader:
        reader.read(range(reader.num_frames))
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_frames_before_the_damage_can_be_read(broken: dict[str, tuple[Path, str]]) -> None:
    with VideoReader(broken["damaged"][0]) as reader:
        assert numbers_shown(reader.read([0, 13, 20]).frames) == [0, 13, 20]


def test_nothing_stays_open(video: Path, broken: dict[str, tuple[Path, str]]) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("counts open files by /proc")
    before = len(list(descriptors.iterdir()))
    kept = []
    for _ in range(5):
        for path, _ in [*broken.values(), (video, "")]:
            try:
                with VideoReader(path) as reader:
                    kept.append(reader)
                    reader.read([40, reader.num_frames - 1])
            except (VideoError, ValueError):
                pass
    assert len(list(descriptors.iterdir())) == before


def test_a_turned_video_comes_upright(tmp_path: Path) -> None:
    for turned in (90, 180, 270):
        path = write_video(tmp_path / f"{turned}.mp4", 8, turned=turned)
        info = probe(path)
        assert (info.width, info.height) == (64, 48)
        assert info.rotation_degrees % 360 == turned
        with VideoReader(path) as reader:
            assert numbers_shown(reader.read([7, 2, 5]).frames) == [7, 2, 5]


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.mp4", 10, size=(63, 47), pix_fmt="yuv444p")
    assert (probe(path).width, probe(path).height) == (63, 47)
    with VideoReader(path) as reader:
        clip = reader.read([9, 1])
    assert clip.frames.shape == (2, 47, 63, 3)
    assert numbers_shown(clip.frames) == [9, 1]


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("libx264", "gray"), ("mjpeg", "yuvj420p"), ("ffv1", "yuva420p")]
)
def test_pixel_formats_become_rgb(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    path = write_video(tmp_path / "a.mkv", 6, codec, pix_fmt=pix_fmt)
    with VideoReader(path) as reader:
        assert numbers_shown(reader.read(range(6)).frames) == list(range(6))


def test_variable_frame_rate_counts_frames_not_time(tmp_path: Path) -> None:
    times = np.cumsum([0, 40, 40, 400, 10, 10, 40, 800, 40, 40, 40, 40]).tolist()
    path = write_video(tmp_path / "vfr.mkv", 12, times_ms=times)
    info = probe(path)
    assert info.variable_frame_rate
    with VideoReader(path) as reader:
        clip = reader.read([2, 3, 8])
        assert numbers_shown(clip.frames) == [2, 3, 8]
        assert np.allclose(clip.pts_seconds, np.array(times)[[2, 3, 8]] / 1000, atol=0.001)
    assert not probe(write_video(tmp_path / "cfr.mkv", 12)).variable_frame_rate


def test_one_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", 1)
    info = probe(path)
    assert (info.frames, info.variable_frame_rate) == (1, False)
    assert info.duration_seconds == pytest.approx(0.04)
    with VideoReader(path) as reader:
        assert reader.read([0, 0, 0]).frames.shape == (3, 48, 64, 3)


def test_a_lying_header_is_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 30, "mpeg4")
    data = bytearray(path.read_bytes())
    length = data.index(b"strh") + 8 + 32  # dwLength of the stream header
    assert int.from_bytes(data[length : length + 4], "little") == 30
    data[length : length + 4] = (31).to_bytes(4, "little")
    path.write_bytes(data)
    info = probe(path)
    assert (info.header_frames, info.frames) == (31, 30)
    with VideoReader(path) as reader:
        assert numbers_shown(reader.read([29]).frames) == [29]


def test_counting_by_decoding_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.avi", 30, "mpeg4")
    with VideoReader(path) as reader:
        assert reader.num_frames == 30
    monkeypatch.setattr(VideoReader, "_decode", lambda *_: pytest.fail("decoded again"))
    with VideoReader(path) as reader:
        assert reader.num_frames == 30


def test_frames_kept_while_counting_or_not_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.avi", 30, "mpeg4", options={"bf": "2"})
    with VideoReader(path) as reader:
        assert reader.num_frames == 30
        assert reader._kept is not None
        kept = reader.read([3, 17, 29]).frames
    decode._decoded_counts.clear()
    monkeypatch.setattr(decode, "_KEEP_BYTES", 100)
    with VideoReader(path) as reader:
        assert reader.num_frames == 30
        assert reader._kept is None
        assert np.array_equal(reader.read([3, 17, 29]).frames, kept)


def test_frames_that_cannot_be_decoded_show_their_neighbour(tmp_path: Path) -> None:
    # Cut at an open group's key frame, 12: the B-frames 10 and 11, stored after it, refer to what is gone.
    whole = write_video(tmp_path / "whole.mkv", 40, "mpeg2video", options={"g": "12", "bf": "2"})
    with av.open(str(whole)) as container:
        keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.size and packet.is_keyframe]
    cut = remux(whole, tmp_path / "cut.mkv", lambda n, payload: None if n < keys[1] else payload)
    with VideoReader(cut) as reader:
        assert reader.num_frames == 30
        clip = reader.read([0, 1, 2, 3, 29])
        assert numbers_shown(clip.frames) == [12, 12, 12, 13, 39]
        assert clip.pts_seconds[0] == clip.pts_seconds[2]
        check = reader.check()
    assert (check.info.frames, check.decoded) == (30, 28)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=8000)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        container.mux(cover.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with pytest.raises(VideoError, match="only a cover picture"):
        VideoReader(path)


@pytest.mark.parametrize(("default", "width"), [((1, 0), 32), ((0, 1), 64), ((1, 1), 64)])
def test_of_several_streams_the_default_then_the_largest_is_read(
    tmp_path: Path, default: tuple[int, int], width: int
) -> None:
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = []
        for size, flag in zip(((32, 24), (64, 48)), default, strict=True):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.disposition = av.stream.Disposition.default if flag else av.stream.Disposition(0)
            streams.append(stream)
        for number in range(10):
            for stream in streams:
                image = np.full((stream.height, stream.width, 3), 20 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        for stream in streams:
            container.mux(stream.encode())
    info = probe(path)
    assert (info.width, info.video_streams, info.frames) == (width, 2, 10)


def test_wrong_numbers_are_refused(video: Path) -> None:
    with VideoReader(video) as reader:
        for numbers in ([], [-1], [60], [[1, 2]]):
            with pytest.raises(ValueError, match="frame"):
                reader.read(numbers)
    with pytest.raises(ValueError, match="threads must be 1 or more, not 0"):
        VideoReader(video, threads=0)


def test_real_clips_match_plain_decoding(shared_data: Path) -> None:
    paths = sorted((shared_data / "video").iterdir()) + sorted((shared_data / "video_asl").iterdir())[:2]
    rng = np.random.default_rng(0)
    for path in paths:
        with VideoReader(path) as reader:
            numbers = rng.integers(0, reader.num_frames, 12)
            clip = reader.read(numbers)
            count = reader.num_frames
        plain = {}
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in numbers:
                    plain[number] = frame.to_ndarray(format="rgb24")
        assert count == number + 1, path
        assert np.array_equal(clip.frames, np.stack([plain[number] for number in numbers])), path


def test_real_odd_files(shared_data: Path) -> None:
    odd = shared_data / "video_odd"
    sizes = {}
    for path in sorted(odd.iterdir()):
        try:
            info = probe(path)
        except VideoError as error:
            sizes[path.name] = error.reason
        else:
            sizes[path.name] = (info.width, info.height, info.frames)
    assert sizes == {
        "audio_only.wav": "no video stream: the file holds only audio",
        "av1_640x360.mkv": (640, 360, 125),
        "corrupted.mp4": (1280, 720, 50),
        "empty_258_bytes.mp4": "no video stream: the file holds no stream at all",
        "hevc_128x128.mp4": (128, 128, 10),
        "nasa_multistream.mp4": (480, 270, 390),
        "odd_160x150_mpeg4.mp4": (160, 150, 49),
        "qcif_176x144.mp4": (176, 144, 120),
        "rotation_0.mov": (568, 320, 3),
        "rotation_90.mov": (320, 568, 3),
        "short_13_frames_40x30.mp4": (40, 30, 13),
    }
    with VideoReader(odd / "corrupted.mp4") as reader:
        assert len(reader.read([0, 27]).frames) == 2
        with pytest.raises(VideoError, match="decoding fails after frame 28 of 50"):
            reader.read([0, 40])
