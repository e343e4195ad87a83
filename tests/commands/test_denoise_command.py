"""`nonlocal denoise`: what goes in comes out in its depth, whole or not at all, and a folder goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import nonlocal_nn as nl
from nonlocal_nn.cli import main
from nonlocal_nn.data.pictures import Picture, read_picture, write_picture
from nonlocal_nn.evaluation.pictures import psnr, ssim

RNG = np.random.default_rng(0)
CLEAN = np.kron(RNG.random((5, 6)), np.ones((8, 8)))
NOISY = np.clip(CLEAN + RNG.normal(scale=0.08, size=CLEAN.shape), 0, 1)


def _as(kind: Any, image: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    if np.dtype(kind).kind == "f":
        return image.astype(kind)
    return np.rint(image * np.iinfo(kind).max).astype(kind)


def _video(path: Path, frames: int, *, sound: bool = False, size: int = 48) -> None:
    """Frames of one noisy picture, at times that are not even, with sound where asked."""
    picture = np.kron(RNG.random((6, 6)), np.ones((size // 6, size // 6)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = size
        video.pix_fmt, video.options = "yuv420p", {"qp": "4"}
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=8000) if sound else None
        if audio is not None:
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            tone.sample_rate = 8000
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
        for number in range(frames):
            noisy = np.clip(picture + RNG.normal(scale=0.08, size=picture.shape), 0, 1)
            frame = av.VideoFrame.from_ndarray(_as(np.uint8, np.stack([noisy] * 3, -1)), format="rgb24")
            frame.pts, frame.time_base = 40 * number + (number % 3), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


def _shown(path: Path) -> tuple[list[float], npt.NDArray[np.float64], int]:
    """Times in seconds, grey frames, packets of sound."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        times = [float(frame.pts * frame.time_base) for frame in frames]
        pixels = np.stack([frame.to_ndarray(format="gray") for frame in frames]) / 255
    with av.open(str(path)) as container:
        packets = sum(packet.dts is not None for packet in container.demux() if packet.stream.type == "audio")
    return times, pixels, packets


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("grey.png", np.uint8, (40, 48)),
        ("colour.png", np.uint8, (40, 48, 3)),
        ("alpha.png", np.uint8, (40, 48, 4)),
        ("deep.png", np.uint16, (40, 48)),
        ("deep_colour.png", np.uint16, (40, 48, 3)),
        ("deep_alpha.png", np.uint16, (40, 48, 4)),
        ("picture.bmp", np.uint8, (40, 48, 3)),
        ("picture.pgm", np.uint16, (40, 48)),
        ("pages.tif", np.uint16, (3, 40, 48)),
        ("colour_pages.tiff", np.uint8, (3, 40, 48, 3)),
        ("floats.tif", np.float32, (40, 48)),
        ("volume.npy", np.float64, (5, 40, 48)),
    ],
)
def test_every_format_keeps_its_depth(
    name: str, kind: Any, shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = shape[-1] if shape[-1] in (3, 4) else None
    pages = shape[0] if shape[0] in (3, 5) else None
    noisy = NOISY if colours is None else np.stack([NOISY, NOISY[::-1], NOISY[:, ::-1], NOISY][:colours], -1)
    noisy = noisy if pages is None else np.stack([noisy] * pages)
    pixels = _as(kind, noisy)
    write_picture(tmp_path / name, Picture(pixels, None if colours is None else -1))
    np.testing.assert_array_equal(read_picture(tmp_path / name).pixels, pixels)
    options = ["--sigma", "20", "--h", "15", "--patch_size", "3", "--patch_distance", "4"]
    assert main(["denoise", str(tmp_path / name), str(tmp_path / f"out_{name}"), *options]) == 0
    found = read_picture(tmp_path / f"out_{name}")
    assert found.pixels.dtype == kind
    assert "sigma 20, h 15, patch 3" in capsys.readouterr().out
    expected = nl.denoise_nl_means(
        (pixels[..., :3] if colours else pixels).astype(np.float64)
        / (np.iinfo(kind).max if kind in (np.uint8, np.uint16) else 1),
        3,
        4,
        15 / 255,
        sigma=20 / 255,
        channel_axis=-1 if colours else None,
    )
    step = 1.01 / np.iinfo(kind).max if np.dtype(kind).kind == "u" else 1e-5
    scale = np.iinfo(kind).max if np.dtype(kind).kind == "u" else 1
    written = found.pixels[..., :3] if colours else found.pixels
    np.testing.assert_allclose(written / scale, expected, atol=step + 1e-5)
    if colours == 4:
        np.testing.assert_array_equal(found.pixels[..., 3], pixels[..., 3])  # how opaque, is no colour


def test_a_folder_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, clean = tmp_path / "in", tmp_path / "out", tmp_path / "clean"
    for name in ("a.png", "deeper/b.png"):
        write_picture(source / name, Picture(_as(np.uint8, NOISY)))
        write_picture(clean / name, Picture(_as(np.uint8, CLEAN)))
    write_picture(clean / "b.png", Picture(_as(np.uint8, 1 - CLEAN)))  # another one of that name
    (source / "broken.png").write_bytes(b"no picture")
    (source / "notes.txt").write_text("no picture either")
    words = ["denoise", str(source), str(out), "--compare", str(clean)]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert re.search(r"broken\.png: no picture that Pillow knows", printed.err)
    assert "1 others are no pictures" in printed.err
    before, after = map(float, re.findall(r"mean of 2: PSNR ([\d.]+) -> ([\d.]+) dB", printed.out)[0])
    assert after > before + 4
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(made) == 2
    (source / "broken.png").unlink()
    assert main(words) == 0
    assert made == {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert "2 done already" in capsys.readouterr().err
    assert main([*words, "--sigma", "7"]) == 2
    assert "begun with other options: sigma auto, now 7" in capsys.readouterr().err


def test_a_video_keeps_its_sound_and_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _video(tmp_path / "noisy.mp4", 40, sound=True)
    noisy_times, noisy, noisy_sound = _shown(tmp_path / "noisy.mp4")
    spreads = []
    for frames in (0, 2):
        out = tmp_path / f"out{frames}.mp4"
        words = ["denoise", str(tmp_path / "noisy.mp4"), str(out), "--sigma", "20", "--frames", str(frames)]
        assert main([*words, "--patch_distance", "3"]) == 0
        times, pixels, sound = _shown(out)
        np.testing.assert_allclose(times, noisy_times, atol=1e-3)
        assert (sound, pixels.shape) == (noisy_sound, noisy.shape)
        spreads.append(float(pixels.std(axis=0).mean()))  # one picture: what moves is noise
    assert spreads[1] < spreads[0] < 0.6 * float(noisy.std(axis=0).mean())
    assert "40 frames, sigma 20" in capsys.readouterr().out


def test_frames_are_the_filter_of_the_whole_video() -> None:
    from nonlocal_nn.commands.denoise import DenoiseConfig
    from nonlocal_nn.commands.denoise_file import _denoised_frames

    frames = [_as(np.uint8, np.stack([NOISY + 0.1 * k] * 3, -1).clip(0, 1)) for k in range(3)] * 8
    config = DenoiseConfig(files=[], sigma=20.0, h=15.0, patch_size=3, patch_distance=2)
    found = np.stack(list(_denoised_frames(frames, config, [])))
    whole = nl.denoise_nl_means(
        np.stack(frames), (1, 3, 3), (2, 2, 2), 15 / 255, sigma=20 / 255, channel_axis=-1
    )
    np.testing.assert_array_equal(found, np.rint(255 * whole))


def test_a_killed_command_leaves_no_half_file(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for number in range(3):
        write_picture(source / f"{number}.png", Picture(_as(np.uint8, np.tile(NOISY, (4, 4)))))
    _video(source / "video.mp4", 30, size=96)

    def command(to: Path) -> list[str]:
        words = ["denoise", str(source), str(to), "--variant", "blockwise", "--frames", "0"]
        return [sys.executable, "-m", "nonlocal_nn", *words]

    started = time.monotonic()
    assert subprocess.run(command(out), capture_output=True, check=False).returncode == 0
    seconds = time.monotonic() - started
    whole = {path.name: path.read_bytes() for path in out.rglob("*.png")}
    rng = np.random.default_rng(1)
    for attempt, moment in enumerate(rng.uniform(0.5, 0.95, 2) * seconds):
        again = tmp_path / f"again{attempt}"
        process = subprocess.Popen(command(again), stderr=subprocess.DEVNULL)
        time.sleep(float(moment))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for path in again.rglob("[!.]*.png"):
            assert path.read_bytes() == whole[path.name]
        for path in again.rglob("[!.]*.mp4"):
            assert len(_shown(path)[0]) == 30
        assert subprocess.run(command(again), capture_output=True, check=False).returncode == 0
        assert {path.name: path.read_bytes() for path in again.rglob("[!.]*.png")} == whole
        assert len(_shown(again / "video.mp4")[0]) == 30


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    assert psnr(NOISY, CLEAN) == pytest.approx(peak_signal_noise_ratio(CLEAN, NOISY, data_range=1))
    _, every = structural_similarity(
        CLEAN, NOISY, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ssim(NOISY, CLEAN) == pytest.approx(every[5:-5, 5:-5].mean(), abs=1e-12)
    with pytest.raises(ValueError, match="11 x 11 pixels"):
        ssim(NOISY[:8], CLEAN[:8])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["in.png"], "what to read and what to write; got 1"),
        (["no.png", "out.png"], "no such file or folder: no.png"),
        (["in.png", "in.png"], "is what is read"),
        (["in.png", "there.png"], "is there already"),
        (["in.png", "out.png", "--sigma", "-1"], "sigma = -1"),
        (["in.png", "out.png", "--frames", "-1"], "frames = -1"),
        (["in.png", "out.png", "--noise", "rician"], "wants a number for --sigma"),
        (["empty", "out"], "empty holds no picture"),
    ],
)
def test_what_cannot_be(
    words: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in.png", "there.png"):
        write_picture(Path(name), Picture(_as(np.uint8, NOISY)))
    Path("empty").mkdir()
    assert main(["denoise", *words]) == 2
    assert reason in capsys.readouterr().err
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    ("name", "pixels", "reason"),
    [
        ("out.png", np.zeros((4, 16, 16), np.uint8), "not a volume"),
        ("out.png", np.full((16, 16), np.nan, np.float32), "NaN or infinite"),
        ("out.npy", np.zeros((16, 16), np.int32), "without sign"),
    ],
)
def test_files_that_cannot_be_denoised_are_named(
    name: str, pixels: npt.NDArray[Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "in.npy", pixels + (RNG.random(pixels.shape) * 9).astype(pixels.dtype))
    assert main(["denoise", str(tmp_path / "in.npy"), str(tmp_path / name)]) == 1
    printed = capsys.readouterr().err
    assert "in.npy" in printed
    assert reason in printed
    assert not (tmp_path / name).exists()
