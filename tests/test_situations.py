"""What happens to people: one line that says what to do, and no traceback. The list is there to grow."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn import _files
from nonlocal_nn._launch import process_rank
from nonlocal_nn.cli import main
from tests.training.conftest import write_video

Set = Callable[[Path], list[str]]  # makes what the command meets, and gives its words

SMALL = (
    *("--model.name", "c2d_tiny", "--model.options", "{base_width: 2}", "--data.clip_frames", "2"),
    *(
        "--data.frame_stride",
        "1",
        "--data.crop",
        "24",
        "--optim.batch_size",
        "4",
        "--schedule.iterations",
        "4",
    ),
    *("--precise_bn", "0", "--progress", "false", "--data.workers", "0", "--accelerator", "cpu"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """set/{dark,light}/0..3.mp4 and run, trained on them."""
    root = tmp_path_factory.mktemp("made")
    for name, brightness in (("dark", 60), ("light", 190)):
        for number in range(4):
            write_video(root / "set" / name / f"{number}.mp4", brightness, seed=number)
    assert main(["train", "--data.train", str(root / "set"), "--out", str(root / "run"), *SMALL]) == 0
    return root


@dataclass(frozen=True)
class Situation:
    name: str
    words: Callable[[Path, Path], list[str]]
    """Of the command; gets what was made and an empty folder."""
    says: str
    """Part of the line."""
    code: int = 2


def _file(path: Path, content: str | bytes = "text") -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def _train(made: Path, *words: str) -> list[str]:
    return ["train", "--data.train", str(made / "set"), *SMALL, *words]


SITUATIONS = [
    Situation(
        "out is a file", lambda m, t: _train(m, "--out", _file(t / "x")), "is a file; out must name a folder"
    ),
    Situation(
        "out is not empty", lambda m, t: _train(m, "--out", str(Path(_file(t / "x")).parent)), "is not empty"
    ),
    Situation(
        "no GPU", lambda m, t: _train(m, "--out", str(t / "r"), "--accelerator", "gpu"), "torch finds no GPU"
    ),
    Situation(
        "16-mixed on a CPU",
        lambda m, t: _train(m, "--out", str(t / "r"), "--precision", "16-mixed"),
        "bf16-mixed",
    ),
    Situation(
        "config missing", lambda m, t: _train(m, "--config", str(t / "no.yaml")), "File does not exist"
    ),
    Situation("config is a folder", lambda m, t: _train(m, "--config", str(t)), "is a folder"),
    Situation(
        "config is binary", lambda m, t: _train(m, "--config", _file(t / "c", b"\0\1\2")), "not a text file"
    ),
    Situation(
        "config is no YAML", lambda m, t: _train(m, "--config", _file(t / "c", "a: [1")), "while parsing"
    ),
    Situation(
        "config is a list", lambda m, t: _train(m, "--config", _file(t / "c", "- 1\n")), "expected options"
    ),
    Situation(
        "key twice",
        lambda m, t: _train(m, "--config", _file(t / "c", "seed: 1\n\nseed: 2\n")),
        "lines 1 and 3",
    ),
    Situation(
        "key twice in a section",
        lambda m, t: _train(m, "--config", _file(t / "c", "optim:\n  lr: 1\n  lr: 2\n")),
        "'lr' stands twice, in lines 2 and 3",
    ),
    Situation("unknown key", lambda m, t: _train(m, "--config", _file(t / "c", "sead: 1\n")), "sead"),
    Situation(
        "longer on resume",
        lambda m, t: [
            "train",
            "--config",
            str(m / "run" / "config.yaml"),
            "--resume",
            "--schedule.iterations",
            "9",
        ],
        "--model.weights",
    ),
    Situation("no such checkpoint", lambda m, t: ["predict", "a.mp4", "--checkpoint", str(t / "no")], "no"),
    Situation(
        "checkpoint is text",
        lambda m, t: ["predict", "a.mp4", "--checkpoint", _file(t / "m.safetensors")],
        "m.safetensors",
    ),
    Situation(
        "checkpoint is empty",
        lambda m, t: ["predict", "a.mp4", "--checkpoint", _file(t / "m.safetensors", "")],
        "m.safetensors",
    ),
    Situation(
        "checkpoint is a folder", lambda m, t: ["predict", "a.mp4", "--checkpoint", str(t)], "no run folder"
    ),
    Situation(
        "no such device",
        lambda m, t: ["predict", "a.mp4", "--checkpoint", str(m / "run"), "--device", "cuda:7"],
        "cuda:7",
    ),
    Situation(
        "no video",
        lambda m, t: ["predict", str(t / "no.mp4"), "--checkpoint", str(m / "run")],
        "no such file",
        1,
    ),
    Situation(
        "an empty folder",
        lambda m, t: ["predict", str(t), "--checkpoint", str(m / "run")],
        "no video in this folder",
        1,
    ),
    Situation(
        "a name too long",
        lambda m, t: ["predict", f"{'n' * 300}.mp4", "--checkpoint", str(m / "run")],
        "too long",
        1,
    ),
    Situation(
        "a folder as out",
        lambda m, t: ["explain", str(m / "set/dark/0.mp4"), "--checkpoint", str(m / "run"), "--out", str(t)],
        "",
    ),
    Situation("nothing to scan", lambda m, t: ["scan", str(t)], "no videos in"),
    Situation(
        "no such list",
        lambda m, t: ["test", "--checkpoint", str(m / "run"), "--data", str(t / "l.txt")],
        "no such file",
    ),
    Situation(
        "an empty list",
        lambda m, t: ["test", "--checkpoint", str(m / "run"), "--data", _file(t / "l.txt", "")],
        "is empty",
    ),
    Situation(
        "a binary list",
        lambda m, t: ["test", "--checkpoint", str(m / "run"), "--data", _file(t / "l.txt", b"\0\1\0\2\3")],
        "l.txt",
    ),
    Situation(
        "weights of nothing",
        lambda m, t: ["convert", _file(t / "w.pth", "x"), str(t / "o.safetensors"), "--to", "native"],
        "w.pth",
    ),
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_one_line_and_no_traceback(
    made: Path, tmp_path: Path, situation: Situation, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(situation.words(made, tmp_path))
    said = capsys.readouterr().err.strip()
    assert code == situation.code, said
    assert situation.says in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("nonlocal: ")]) == 1, said


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_a_loss_that_is_not_finite(
    made: Path, tmp_path: Path, lr: float, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = main(_train(made, "--out", str(out), "--optim.lr", str(lr), "--checkpoint_every_steps", "1"))
    said = capsys.readouterr().err
    assert code == 1
    assert "the loss became" in said
    assert "at step" in said
    assert f"learning rate {lr:g}" in said
    assert ".mp4" in said
    checkpoint = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(x.isfinite().all() for x in checkpoint["state_dict"].values())  # the last good one


@pytest.mark.parametrize("command", ["train", "test", "explain", "convert", "scan"])
def test_a_full_disk(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    run, video = str(made / "run"), str(made / "set" / "dark" / "0.mp4")
    words = {
        "train": _train(made, "--out", str(tmp_path / "new")),
        "test": [
            "test",
            "--checkpoint",
            run,
            "--data",
            str(made / "set"),
            "--out",
            str(tmp_path),
            "--workers",
            "0",
        ],
        "explain": [
            "explain",
            video,
            "--clip_frames=2",
            "--checkpoint",
            str(made / "nl"),
            "--out",
            str(tmp_path / "a.html"),
        ],
        "convert": ["convert", run, str(tmp_path / "o.safetensors"), "--to", "native"],
        "scan": ["scan", str(made / "set"), "--out", str(tmp_path / "s.csv"), "--workers", "1"],
    }[command]

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_files.os, "fsync", full)  # where all that was written must go to the disk
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert str(tmp_path) in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.partial"))


def test_a_library_that_reports_a_full_disk_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files.shutil, "disk_usage", lambda _: type("U", (), {"free": 0}))

    def fails(_: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    with pytest.raises(OSError, match="No space left on device"):
        _files.write_whole(tmp_path / "x", fails)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        nl.save_model(nl.NonLocalBlock(4, dims=1), tmp_path / "b.safetensors")
        _files.write_whole(tmp_path / "t.txt", lambda partial: partial.write_text("t"))
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        {"LOCAL_RANK": "3"},
        {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_PROCID": "2"},
    ],
)
def test_what_launchers_left_behind_is_said_and_not_used(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    left: dict[str, str],
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == 0
    assert main(_train(made, "--out", str(tmp_path / "run"))) == 0
    printed = capsys.readouterr()
    assert "neither torchrun nor srun started this process: not used" in printed.err
    assert "weights_sha256" in printed.out
    for name in ("config.yaml", "results.json", "model.safetensors"):
        assert (tmp_path / "run" / name).exists()
    assert {name: os.environ[name] for name in left} == left


def test_a_moved_run_goes_on_where_it_is(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    assert main(_train(made, "--out", str(old))) == 0
    weights = (old / "model.safetensors").read_bytes()
    old.rename(new)
    for name in ("results.json", "model.safetensors"):
        (new / name).unlink()
    capsys.readouterr()
    assert main(["train", "--config", str(new / "config.yaml"), "--resume", "true"]) == 0
    assert "was moved here from" in capsys.readouterr().err
    assert (new / "model.safetensors").read_bytes() == weights
    assert not old.exists()


@pytest.mark.parametrize("text", ["precision: 32", "precision: '32'", 'precision: "bf16-mixed"'])
def test_precision_may_be_a_number_in_yaml(made: Path, tmp_path: Path, text: str) -> None:
    config = _file(tmp_path / "c.yaml", f"{text}\n")
    assert main(_train(made, "--config", config, "--out", str(tmp_path / "run"))) == 0


NAMES = ["😀 dance", "caf\udce9", "new\nline", "[a: {b}, null", "-dash", "# 1", "'quoted\"", "%s", "n" * 200]


def test_any_file_name_works_in_every_command(made: Path, tmp_path: Path) -> None:
    """In processes of their own, with a console of ASCII and the C locale."""
    folder = tmp_path / "-dash caf\udce9 😀\nnew line [a: {b} # 1 'quoted\" %s"
    write_video(tmp_path / "dark.mp4", 60, seed=0)
    write_video(tmp_path / "light.mp4", 190, seed=0)
    for kind in ("dark", "light"):
        (folder / "set" / kind).mkdir(parents=True)
        for name in NAMES:
            shutil.copy(tmp_path / f"{kind}.mp4", folder / "set" / kind / f"{name}.mp4")
    (folder / "set" / "dark" / "br\udcefken.mp4").write_bytes(b"broken")
    env = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    run, data = str(folder / "run"), str(folder / "set")

    def call(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "nonlocal_nn", *words]
        done = subprocess.run(command, env=env, capture_output=True, check=False, cwd=tmp_path)
        text = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == code, text
        assert "Traceback" not in text
        return text

    few = ("--data.max_bad_videos", "0.5", "--checkpoint_every_steps", "2", "--schedule.iterations", "10")
    call("train", f"--data.train={data}", f"--out={run}", *SMALL, *few)
    (Path(run) / "results.json").unlink()
    call("train", "--config", f"{run}/config.yaml", "--resume", "true")
    call("test", f"--checkpoint={run}", f"--data={data}", "--workers=0")
    with (Path(run) / "test" / "predictions.csv").open(
        encoding="utf-8", errors="surrogateescape", newline=""
    ) as file:
        stems = {Path(row["path"]).stem for row in csv.DictReader(file)}
    assert stems == set(NAMES)
    videos = [str(folder / "set" / "dark" / f"{name}.mp4") for name in NAMES]
    printed = call("predict", f"--checkpoint={run}", "--json", "--workers=0", "--", *videos)
    told = [json.loads(line)["path"] for line in printed.splitlines() if line.startswith("{")]
    assert [os.fsencode(path) for path in told] == [os.fsencode(video) for video in videos]
    call("predict", f"--checkpoint={run}", "--workers=0", "--", *videos)
    for ending, video in (("png", videos[1]), ("html", videos[2])):
        out = folder / f"{NAMES[3]}.{ending}"
        call("explain", "--clip_frames=2", f"--checkpoint={made / 'nl'}", f"--out={out}", "--", video)
    listed = [name for name in NAMES if "\n" not in name]  # a list has a line for each
    (folder / "list.txt").write_bytes(os.fsencode("".join(f"set/dark/{name}.mp4 0\n" for name in listed)))
    (folder / "list.csv").write_bytes(
        os.fsencode("path,label\n" + "".join(f'"set/dark/{n}.mp4",0\n'.replace('d"', 'd""') for n in listed))
    )
    for name in ("list.txt", "list.csv"):
        assert f"{len(listed)} videos" in call("scan", str(folder / name), "--min_frames=1", "--workers=1")


@pytest.fixture(scope="module", autouse=True)
def with_blocks(made: Path) -> None:
    """nl: a network with blocks, for `explain`."""
    model: Any = nl.create_model("c2d_tiny_nl1", num_classes=2, base_width=2)
    (made / "nl").mkdir()
    nl.save_model(model, made / "nl" / "model.safetensors")
