"""`nonlocal predict` on real files: what it prints, and what it does with files that are no videos."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nonlocal_nn.checkpoints.load import load_model
from nonlocal_nn.checkpoints.save import save_model
from nonlocal_nn.cli import main
from nonlocal_nn.data.decode import VideoReader

QUICK = ["--clips", "2", "--crops", "1", "--workers", "0", "--device", "cpu"]
Capture = pytest.CaptureFixture[str]


def predict(capsys: Capture, *words: object) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the JSON lines, what stood on stderr."""
    capsys.readouterr()
    code = main(["predict", *map(str, words), "--json", *QUICK])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_scores_are_those_of_the_views_done_by_hand(run: Path, videos: Path, capsys: Capture) -> None:
    code, (line,), err = predict(capsys, videos / "circle" / "a.mp4", "--checkpoint", run, "--top", 7)
    assert (code, err, line["path"]) == (0, "", str(videos / "circle" / "a.mp4"))

    # 20 frames of 48 x 32: two clips of 4 frames, every 2nd, from 0 and from 20 - 8; the middle of 36 x 24
    with VideoReader(videos / "circle" / "a.mp4") as reader:
        frames = [torch.from_numpy(reader.read([*range(start, start + 8, 2)]).frames) for start in (0, 12)]
    views = torch.stack(frames).permute(0, 1, 4, 2, 3)
    resize = torch.nn.functional.interpolate
    small = torch.stack([resize(view, size=(24, 36), mode="bilinear", antialias=True) for view in views])
    clips = (small[..., 6:30].transpose(1, 2).float() - 100.0) / 50.0
    model = load_model(run)
    with torch.no_grad():
        expected = model(clips).softmax(1).mean(0)
    got = {entry["index"]: entry["score"] for entry in line["classes"]}
    torch.testing.assert_close(torch.tensor([got[c] for c in range(7)]), expected, rtol=0, atol=1e-5)
    assert [entry["score"] for entry in line["classes"]] == sorted(got.values(), reverse=True)
    assert all(entry["class"] == model.classes[entry["index"]] for entry in line["classes"])


def test_a_warning_is_one_line(run_to_write: Path, videos: Path, capsys: Capture) -> None:
    model = load_model(run_to_write)
    torch.nn.init.zeros_(model.get_parameter("res3.nonlocal0.norm.weight"))
    save_model(model, run_to_write / "model.safetensors")
    code, _, err = predict(capsys, videos / "circle" / "a.mp4", "--checkpoint", run_to_write)
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith("nonlocal: warning: ")
    assert "1 non-local block switched off" in line
    assert line.count("UserWarning") == 0


def test_a_folder_is_searched(run: Path, videos: Path, capsys: Capture) -> None:
    code, lines, _ = predict(capsys, videos, "--checkpoint", run / "model.safetensors", "--top", 2)
    assert code == 0
    assert [line["path"] for line in lines] == [
        str(videos / "circle" / "a.mp4"),
        str(videos / "circle" / "short.mp4"),
        str(videos / "cross" / "b.mp4"),
    ]
    assert all(len(line["classes"]) == 2 for line in lines)


def test_workers_batches_and_order_change_nothing(run: Path, videos: Path, capsys: Capture) -> None:
    _, one, _ = predict(capsys, videos, "--checkpoint", run)
    _, two, _ = predict(capsys, videos, "--checkpoint", run, "--workers", 2)
    assert one == two
    _, parts, _ = predict(capsys, videos, "--checkpoint", run, "--views_per_batch", 1)
    for line, part in zip(one, parts, strict=True):
        for entry, other in zip(line["classes"], part["classes"], strict=True):
            assert entry["class"] == other["class"]
            assert entry["score"] == pytest.approx(other["score"], abs=2e-6)


def test_the_table_shows_names_as_they_are(
    run: Path, make_video: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    video = make_video(tmp_path / "[red]odd[/red] name.mp4", seed=4)
    assert main(["predict", str(video), "--checkpoint", str(run), "--top", "7", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert str(video) in out
    assert "[bold]square" in out
    shares = [float(word.rstrip("%")) for word in out.split() if word.endswith("%")]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(100, abs=0.4)  # seven figures rounded to a tenth


def test_the_full_frame(run: Path, videos: Path, capsys: Capture) -> None:
    path = videos / "circle" / "a.mp4"
    _, (crop,), _ = predict(capsys, path, "--checkpoint", run)
    code, (full,), _ = predict(capsys, path, "--checkpoint", run, "--full_frame")
    assert code == 0
    assert full != crop
    assert main(["predict", str(path), "--checkpoint", str(run), "--full_frame", "--crop", "20"]) == 2
    assert "contradict" in capsys.readouterr().err


def test_a_broken_file_is_one_line_and_the_others_go_on(
    run: Path, videos: Path, broken: Path, tmp_path: Path, capsys: Capture
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    words = [broken, tmp_path / "absent.mp4", empty, videos / "circle" / "a.mp4"]
    code, lines, err = predict(capsys, *words, "--checkpoint", run)
    assert code == 1
    by_path = {line["path"]: line for line in lines}
    assert set(by_path) == {str(word) for word in words}
    assert "classes" in by_path[str(words[3])]
    for word in words[:3]:
        assert by_path[str(word)]["error"]
        (said,) = [line for line in err.splitlines() if str(word) + ":" in line]
        assert said.startswith("nonlocal: ")
        assert by_path[str(word)]["error"] in said
    assert len(err.splitlines()) == 3


def test_nothing_but_broken_files_is_no_crash(run: Path, broken: Path, capsys: Capture) -> None:
    code, (line,), _ = predict(capsys, broken, "--checkpoint", run)
    assert (code, set(line)) == (1, {"path", "error"})
    assert main(["predict", str(broken), "--checkpoint", str(run), *QUICK]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.mp4"], "No trained weights come with this package; `nonlocal demo` or `nonlocal train`"),
        (["--checkpoint", "RUN"], "no video given"),
        (["a.mp4", "--checkpoint", "RUN", "--top", "0"], "top = 0"),
        (["a.mp4", "--checkpoint", "RUN", "--clips", "0"], "clips must be 1 or more"),
        (["a.mp4", "--checkpoint", "RUN", "--crop", "25"], "25"),
        (["a.mp4", "--checkpoint", "RUN", "--views_per_batch", "0"], "views_per_batch = 0"),
        (["a.mp4", "--checkpoint", "RUN", "--workers", "-1"], "workers = -1"),
        (["a.mp4", "--checkpoint", "RUN", "--device", "abacus"], "no device is called 'abacus'"),
        (["a.mp4", "--checkpoint", "absent"], "absent: no such file"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(
    run: Path, capsys: Capture, words: list[str], said: str
) -> None:
    assert main(["predict", *(str(run) if word == "RUN" else word for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_damaged_checkpoint_is_one_line(run_to_write: Path, videos: Path, capsys: Capture) -> None:
    file = run_to_write / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert main(["predict", str(videos), "--checkpoint", str(run_to_write)]) == 2
    err = capsys.readouterr().err
    assert str(file) in err
    assert err.count("\n") == 1


def test_several_labels_are_scored_each_by_itself(
    run: Path, videos: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = load_model(run)
    torch.nn.init.constant_(model.head.fc.weight, 0.0)
    torch.nn.init.constant_(model.head.fc.bias, 2.0)
    save_model(model, tmp_path / "model.safetensors", {**model.metadata, "multi_label": "true"})
    _, (line,), _ = predict(capsys, videos / "circle" / "a.mp4", "--checkpoint", tmp_path, "--top", 7)
    assert [entry["score"] for entry in line["classes"]] == pytest.approx([0.880797] * 7, abs=1e-6)
    assert [entry["index"] for entry in line["classes"]] == list(range(7))  # equal scores: in class order


def test_a_checkpoint_without_notes_uses_the_standard_clip(run: Path, videos: Path, tmp_path: Path) -> None:
    from nonlocal_nn.commands.trained import load_trained

    save_model(load_model(run), tmp_path / "model.safetensors", {})
    trained = load_trained(str(tmp_path), "cpu")
    spec = trained.model.spec
    assert (trained.clip_frames, trained.frame_stride) == (spec.frames, 2)
    assert (trained.mean, trained.std, trained.multi_label) == (114.75, 57.375, False)


def test_every_odd_file_gets_an_answer(run: Path, shared_data: Path, capsys: Capture) -> None:
    files = sorted(path for path in (shared_data / "video_odd").iterdir())
    assert files
    code, lines, err = predict(capsys, *files, "--checkpoint", run)
    assert code == 1
    assert sorted(line["path"] for line in lines) == [str(path) for path in files]
    failed = {Path(line["path"]).name for line in lines if "error" in line}
    assert {"audio_only.wav", "empty_258_bytes.mp4"} <= failed
    assert {"rotation_90.mov", "hevc_128x128.mp4", "short_13_frames_40x30.mp4"}.isdisjoint(failed)
    assert len(err.splitlines()) == len(failed)


def test_every_real_video_is_predicted(run: Path, shared_data: Path, capsys: Capture) -> None:
    code, lines, err = predict(capsys, shared_data / "video", "--checkpoint", run)
    assert (code, err) == (0, "")
    assert len(lines) == 9


def test_no_config_file_of_ours_is_needed_twice(
    run: Path, videos: Path, tmp_path: Path, capsys: Capture
) -> None:
    """What --print_config printed predicts the same."""
    words = ["predict", str(videos), "--checkpoint", str(run), "--json", *QUICK]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main([*words, "--print_config"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert main(["predict", "--config", str(tmp_path / "config.yaml")]) == 0
    assert capsys.readouterr().out == first
    shutil.rmtree(tmp_path)
