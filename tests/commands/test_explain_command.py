"""`nonlocal explain` on real files: what it writes, and what it says of what cannot be."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nonlocal_nn import create_model, load_model, save_model
from nonlocal_nn.cli import main
from nonlocal_nn.commands.explain import capture_video
from nonlocal_nn.commands.trained import load_trained
from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.explain.config import ExplainConfig

pytest.importorskip("matplotlib")

Capture = pytest.CaptureFixture[str]


def explain(capsys: Capture, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["explain", *map(str, words), "--device", "cpu", "--progress", "false"])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.png", b"\x89PNG"),
        ("a.svg", b"<?xml"),
        ("a.pdf", b"%PDF"),
        ("a.gif", b"GIF8"),
        ("a.html", b"<!"),
        ("a.mp4", None),
    ],
)
def test_the_ending_decides_what_is_written(name, start, run, videos, tmp_path, capsys: Capture) -> None:
    code, out, err = explain(
        capsys, videos / "circle" / "a.mp4", "--checkpoint", run, "--out", tmp_path / "deep" / name
    )
    assert (code, err) == (0, "")
    assert str(tmp_path / "deep" / name) in out
    written = (tmp_path / "deep" / name).read_bytes()
    assert written[4:8] == b"ftyp" if start is None else written.startswith(start)


def test_the_clip_is_cut_as_in_training_and_its_rows_are_the_networks(run, videos) -> None:
    video = videos / "circle" / "a.mp4"
    captured = capture_video(str(video), ExplainConfig(), load_trained(str(run), "cpu"))
    # 20 frames of 48 x 32: 4 frames, every 2nd, 7 in all, from (20 - 7) // 2; the middle of 36 x 24
    with VideoReader(video) as reader:
        frames = torch.from_numpy(reader.read([6, 8, 10, 12]).frames).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(frames, size=(24, 36), mode="bilinear", antialias=True)[..., 6:30]
    assert np.array_equal(captured.frames, small.permute(0, 2, 3, 1).numpy())
    assert captured.frame_seconds == pytest.approx((0.6, 0.8, 1.0, 1.2))
    assert captured.title == "a.mp4"
    model = load_model(run)
    clip = (small.transpose(0, 1)[None].float() - 100) / 50
    seen = []
    block = model.get_submodule("res3.nonlocal0")
    block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        scores = model.eval()(clip).softmax(1)[0]
    expected = block.affinity(seen[0], torch.tensor([5]))[0]
    np.testing.assert_allclose(captured.blocks["res3.nonlocal0"].rows([5]), expected, rtol=1e-4, atol=1e-6)
    name, score = captured.classes[0]
    assert (name, score) == (
        model.classes[int(scores.argmax())],
        pytest.approx(float(scores.max()), abs=1e-5),
    )


def test_where_the_clip_starts_and_how_large_it_is_can_be_said(run, videos) -> None:
    trained = load_trained(str(run), "cpu")
    options = ExplainConfig(start_seconds=0.3, clip_frames=3, frame_stride=1, short_side=32, full_frame=True)
    captured = capture_video(str(videos / "circle" / "a.mp4"), options, trained)
    assert captured.frames.shape == (3, 32, 48, 3)
    assert captured.frame_seconds == pytest.approx((0.3, 0.4, 0.5))


def test_an_image_is_shown_in_every_frame(run, tmp_path, capsys: Capture) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    captured = capture_video(str(tmp_path / "photo.png"), ExplainConfig(), load_trained(str(run), "cpu"))
    assert captured.frames.shape == (4, 24, 24, 3)
    assert all(np.array_equal(frame, captured.frames[0]) for frame in captured.frames)
    (tmp_path / "bad.jpg").write_text("no image")
    code, _, err = explain(capsys, tmp_path / "bad.jpg", "--checkpoint", run, "--out", tmp_path / "x.png")
    assert code == 2
    assert "bad.jpg: not an image that can be read" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--block", "res3.nonlocl0"],
            "no non-local block 'res3.nonlocl0' was captured; the nearest are res3.nonlocal0",
        ),
        (["--query", "0,24,0"], "query 0,24,0 (frame, row, column) lies outside the clip"),
        (["--query", "left"], "query 'left' is none of the ways to ask"),
        (["--out", "x.jpg"], "x.jpg: cannot write '.jpg'; the endings are .png, .svg, .pdf (figure), .mp4"),
        (["--out", "figure"], "figure: cannot write a file without an ending"),
        (["--frames", "0,4"], "frames [0, 4]: the clip's frames are 0 .. 3"),
        (["--frames", "few"], "frames = 'few': give a number of frames (6) or which ones (0,3,7)"),
        (["--clip_frames", "11"], "20 frames, but a clip of 11, every 2nd frame, needs 21; give a smaller"),
        (["--start_seconds", "1.4"], "no clip of 7 frames starts at 1.4 s; the last one starts at 1.30 s"),
        (["--crop", "24", "--full_frame"], "full_frame and crop = 24 contradict each other"),
        (["--crop", "99"], "a crop of 99 does not fit"),
        (["--arrows", "0"], "arrows = 0"),
    ],
)
def test_bad_input_costs_one_line(
    words, message, run, videos, tmp_path, capsys: Capture, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = explain(capsys, videos / "circle" / "a.mp4", "--checkpoint", run, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_networks_and_videos_that_will_not_do(run, videos, broken, tmp_path, capsys: Capture) -> None:
    def line(*words: object) -> str:
        code, _, err = explain(capsys, *words, "--out", tmp_path / "x.png")
        assert code == 2
        (text,) = err.splitlines()
        return text

    plain = tmp_path / "plain.safetensors"
    save_model(create_model("c2d_tiny", num_classes=3), plain)
    video = videos / "circle" / "a.mp4"
    assert "the model has no non-local block to look into" in line(video, "--checkpoint", plain)
    assert "short.mp4: 3 frames, but a clip of 4" in line(
        videos / "circle" / "short.mp4", "--checkpoint", run
    )
    assert "give --checkpoint" in line(video)
    assert "no video given" in line("--checkpoint", run)
    assert "a figure shows one video" in line(videos, "--checkpoint", run)
    assert f"{broken}: " in line(broken, "--checkpoint", run)
    assert "no such file" in line("nothing.mp4", "--checkpoint", run)


def test_statistics_of_a_folder_skip_what_is_broken(
    run, videos, broken, make_video: Callable[..., Path], tmp_path, capsys: Capture
) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    shutil.copy(broken, folder / "text.mp4")
    code, out, err = explain(
        capsys, folder, "--checkpoint", run, "--statistics", tmp_path / "s.csv", "--queries", 20
    )
    assert code == 1
    assert sorted(text.split(": ")[1].rpartition("/")[2] for text in err.splitlines()) == [
        "short.mp4",
        "text.mp4",
    ]
    assert "2 videos, 2 skipped" in out
    with (tmp_path / "s.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(Path(row["video"]).name, row["block"], row["queries"]) for row in rows] == [
        ("a.mp4", "res3.nonlocal0", "20"),
        ("b.mp4", "res3.nonlocal0", "20"),
    ]
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_statistics_that_cannot_be(run, videos, broken, tmp_path, capsys: Capture) -> None:
    code, _, err = explain(capsys, videos, "--checkpoint", run, "--statistics", tmp_path / "s.txt")
    assert code == 2
    assert "--statistics writes a .csv" in err
    code, _, err = explain(capsys, broken, "--checkpoint", run, "--statistics", tmp_path / "s.csv")
    assert code == 2
    assert "none of 1 videos could be measured" in err
    (tmp_path / "empty").mkdir()
    code, _, err = explain(
        capsys, tmp_path / "empty", "--checkpoint", run, "--statistics", tmp_path / "s.csv"
    )
    assert code == 1
    assert "there is no video in this folder" in err
    assert not (tmp_path / "s.csv").exists()


def test_what_was_measured_before_an_interrupt_is_written(
    run, videos, tmp_path, capsys: Capture, monkeypatch
) -> None:
    from nonlocal_nn.commands import explain as command

    done = []

    def two_then_stop(path: str, *rest: object) -> object:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(path)
        return capture_video(path, *rest)

    monkeypatch.setattr(command, "capture_video", two_then_stop)
    paths = [videos / "circle" / "a.mp4", videos / "cross" / "b.mp4"]
    code, _, err = explain(capsys, *paths, "--checkpoint", run, "--statistics", tmp_path / "s.csv")
    assert (code, err) == (130, "nonlocal: interrupted\n")
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 2
