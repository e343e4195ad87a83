"""Whole runs of `train`: what a run folder gets, where a run starts from, and what stops it."""

from __future__ import annotations

import csv
import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import yaml

import nonlocal_nn as nl
from nonlocal_nn.training.config import load_config
from nonlocal_nn.training.run import train
from nonlocal_nn.training.signals import TrainingInterrupted
from nonlocal_nn.training.skipped import TooManyBadVideosError
from tests.training.conftest import ConfigMaker, write_video


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_leaves_everything_in_its_folder(
    tiny_config: ConfigMaker, videos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(
        data={"val": str(videos / "test")}, schedule={"iterations": None, "epochs": 8, "kind": "cosine"}
    )
    results = train(config)
    out = Path(config.out)
    assert results["val_top1"] == 100.0
    assert results == json.loads((out / "results.json").read_text())
    assert results["steps"] == 24
    rows = _rows(out / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 25))
    assert float(rows[-1]["train_loss"]) < 0.3 < float(rows[0]["train_loss"])
    assert [row["step"] for row in rows if row["val_top1"]] == [str(3 * epoch) for epoch in range(1, 9)]
    assert load_config(out / "config.yaml") == config
    assert set(yaml.safe_load((out / "config.yaml").read_text())) == set(vars(config))
    assert _rows(out / "skipped.csv") == []
    assert list((out / "tensorboard").glob("events.*"))
    model = nl.load_model(out)
    assert model.classes == ("dark", "light")
    assert model.metadata["frame_stride"] == "1"
    assert (model.metadata["clip_frames"], model.metadata["crop"]) == ("4", "24")
    printed = capfd.readouterr()
    assert printed.out == ""  # no tips, no tables of Lightning's
    assert printed.err.count("\n") == 1, printed.err
    # the folder is taken
    with pytest.raises(FileExistsError, match=r"finished run; choose another out folder, .*--resume"):
        train(config)
    config.resume = True
    assert train(config) == results
    assert "is finished; nothing to do" in capfd.readouterr().err
    config.optim.lr = 0.5
    config.seed = 3
    with pytest.raises(ValueError, match=r"optim.lr: 0.05 -> 0.5; seed: 0 -> 3"):
        train(config)
    config.resume, config.overwrite = False, True
    assert train(config)["weights_sha256"] != results["weights_sha256"]


def test_accumulated_parts_are_one_large_batch(tiny_config: ConfigMaker) -> None:
    """With frozen norms every clip is for itself, so the parts' mean gradient is the batch's."""
    frozen = {"options": {"norm": "frozen"}}
    states = []
    for accumulate in (1, 2):
        config = tiny_config(
            out=f"by{accumulate}", model=dict(frozen), optim={"accumulate": accumulate, "lr": 0.01}
        )
        train(config)
        states.append(nl.load_model(config.out).state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)


def test_fine_tuning_takes_all_but_a_classifier_of_other_classes(
    tiny_config: ConfigMaker, videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(out="first"))
    first = nl.load_model(tmp_path / "first")
    for name in ("dark", "light", "third"):
        write_video(tmp_path / "three" / name / "0.mp4", 100, seed=1)
        write_video(tmp_path / "three" / name / "1.mp4", 100, seed=2)
    config = tiny_config(
        out="second",
        data={"train": str(tmp_path / "three")},
        model={"name": "c2d_tiny_nl1", "weights": str(tmp_path / "first")},
        optim={"lr": 1e-12, "weight_decay": 0.0},
        schedule={"iterations": 1},
        precise_bn=0,
    )
    train(config)
    assert "head.fc.weight (file 2x64, network 3x64)" in capfd.readouterr().err
    second = nl.load_model(tmp_path / "second").state_dict()
    for name, value in first.named_parameters():
        if not name.startswith("head"):
            torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-7)
    other = tiny_config(
        out="third", data={"train": str(tmp_path / "three")}, model={"weights": str(tmp_path / "first")}
    )
    other.model.options["base_width"] = 8
    with pytest.raises(ValueError, match="are of another network than c2d_tiny"):
        train(other)
    assert not (tmp_path / "third").exists()


def test_inflation_starts_from_an_image_network(tiny_config: ConfigMaker, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    image = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], num_classes=5, width_per_group=64
    )
    torch.save(image.state_dict(), tmp_path / "resnet50.pth")
    config = tiny_config(
        model={
            "name": "c2d_r50",
            "options": {"base_width": 64},
            "inflate": str(tmp_path / "resnet50.pth"),
        },
        optim={"lr": 1e-12, "weight_decay": 0.0},
        schedule={"iterations": 1},
        precise_bn=0,
    )
    train(config)
    state = nl.load_model(config.out).state_dict()
    torch.testing.assert_close(
        state["res3.0.conv2.weight"][:, :, 0], image.state_dict()["layer2.0.conv2.weight"]
    )


def test_broken_videos_are_listed_and_training_goes_on(
    tiny_config: ConfigMaker, tmp_path: Path, videos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(9):
        write_video(tmp_path / "set" / "dark" / f"{number}.mp4", 70, seed=number)
        write_video(tmp_path / "set" / "light" / f"{number}.mp4", 180, seed=number)
    (tmp_path / "set" / "dark" / "text.mp4").write_text("not a video")
    (tmp_path / "set" / "light" / "empty.mp4").write_bytes(b"")
    data = {"train": str(tmp_path / "set"), "workers": 1}
    train(tiny_config(data={**data, "max_bad_videos": 0.1}, schedule={"iterations": 10}))
    rows = _rows(tmp_path / "run" / "skipped.csv")
    assert [Path(row["path"]).name for row in rows] == ["text.mp4", "empty.mp4"]
    assert all(row["reason"] for row in rows)
    assert capfd.readouterr().err.count("text.mp4") == 1
    with pytest.raises(TooManyBadVideosError, match="2 of 20 training videos"):
        train(tiny_config(out="strict", data={**data, "max_bad_videos": 0.05}, schedule={"iterations": 10}))
    assert len(_rows(tmp_path / "strict" / "skipped.csv")) == 2
    assert (
        not multiprocessing.active_children()
    )  # an error leaves no worker behind that the exit would wait for


def test_a_class_without_videos_is_an_error(tiny_config: ConfigMaker, tmp_path: Path, videos: Path) -> None:
    for name in ("dark", "light"):
        write_video(tmp_path / "set" / name / "0.mp4", 70, seed=0)
    (tmp_path / "set" / "empty").mkdir()
    (tmp_path / "list.csv").write_text("path,label\nset/dark/0.mp4,0\nset/light/0.mp4,3\n")
    (tmp_path / "classes.txt").write_text("dark\nlight\ngrey\n")
    (tmp_path / "two.csv").write_text("path,label\nset/dark/0.mp4,dark\nset/light/0.mp4,light\n")
    for data, reason in (
        ({"train": str(tmp_path / "set")}, "1 of 3 classes have no usable videos: empty"),
        ({"train": str(tmp_path / "list.csv")}, "2 of 4 classes have no usable videos: 1, 2"),
        (
            {"train": str(tmp_path / "two.csv"), "classes": str(tmp_path / "classes.txt")},
            "1 of 3 classes have no usable videos: grey",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            train(tiny_config(data=data))


@pytest.mark.parametrize("workers", [0, 1])
def test_only_broken_videos_are_one_clear_line(
    tiny_config: ConfigMaker, tmp_path: Path, workers: int
) -> None:
    for name in ("a", "b"):
        for number in range(2):
            (tmp_path / "set" / name).mkdir(exist_ok=True, parents=True)
            (tmp_path / "set" / name / f"{number}.mp4").write_bytes(b"")
    with pytest.raises(TooManyBadVideosError) as caught:
        train(tiny_config(data={"train": str(tmp_path / "set"), "workers": workers}))
    assert "\n" not in str(caught.value)
    assert ".mp4" in str(caught.value)


def test_several_labels_a_video_are_trained_with_a_sigmoid(
    tiny_config: ConfigMaker, videos: Path, tmp_path: Path
) -> None:
    lines = [
        f"{videos / 'train' / name / str(n)}.mp4 {labels}"
        for name, labels in (("dark", "0,2"), ("light", "1,2"))
        for n in range(6)
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    source = str(tmp_path / "list.txt")
    results = train(tiny_config(data={"train": source, "val": source}, schedule={"iterations": 24}))
    assert results["val_map"] == 100.0
    assert "val_top1" not in results
    assert nl.load_model(tmp_path / "run").metadata["multi_label"] == "true"


def test_adamw_and_clipping_train_too(tiny_config: ConfigMaker) -> None:
    results = train(
        tiny_config(optim={"name": "adamw", "lr": 1e-3, "clip_norm": 1.0, "label_smoothing": 0.1})
    )
    assert results["train_loss"] < 2


def test_a_loss_that_explodes_stops_the_run(tiny_config: ConfigMaker) -> None:
    config = tiny_config(
        model={"options": {"norm": "frozen"}}, optim={"lr": 1e12}, schedule={"iterations": 20}
    )
    with pytest.raises(FloatingPointError, match=r"the loss became .*lower optim.lr"):
        train(config)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optim": {"batch_size": 50}}, "batch_size is 50, but there are only 12 training videos"),
        ({"optim": {"accumulate": 3}}, "take a multiple of 3"),
        ({"optim": {"lr": -1}}, "optim.lr is -1"),
        ({"model": {"name": "c2d_tny"}}, "c2d_tiny"),
        ({"model": {"options": {"num_classes": 3}}}, "num_classes follows from the training videos"),
        ({"model": {"name": "c2d_tiny_nl1", "options": {"norm": "frozen"}}}, "could never learn"),
        ({"data": {"jitter": (10, 20)}}, "jitter"),
        ({"data": {"max_bad_videos": 5}}, "max_bad_videos is 5"),
        ({"resume": True, "overwrite": True}, "contradict"),
        ({"precise_bn": -1}, "precise_bn is -1"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    tiny_config: ConfigMaker, sections: dict[str, object], message: str
) -> None:
    config = tiny_config(**sections)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not Path(config.out).exists()


def test_videos_that_changed_are_noticed_on_resume(
    tiny_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, brightness in (("dark", 70), ("light", 180)):
        for number in range(3):
            write_video(tmp_path / "set" / name / f"{number}.mp4", brightness, seed=number)
    config = tiny_config(data={"train": str(tmp_path / "set")}, checkpoint_every_steps=1)
    _interrupt_after(monkeypatch, steps=2)
    with pytest.raises(TrainingInterrupted):
        train(config)
    monkeypatch.undo()
    (tmp_path / "set").rename(tmp_path / "moved")  # moving them all is fine
    config.data.train = str(tmp_path / "moved")
    config.resume = True
    write_video(tmp_path / "moved" / "dark" / "new.mp4", 70, seed=9)
    with pytest.raises(ValueError, match="not those the run was started with"):
        train(config)
    (tmp_path / "moved" / "dark" / "new.mp4").unlink()
    assert train(config)["steps"] == 6


def _interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Ctrl-C in the middle of a step."""
    import signal

    from nonlocal_nn.training.task import ClassifierTask

    original = ClassifierTask.training_step

    def step(self: ClassifierTask, batch: object, batch_idx: int) -> torch.Tensor:
        if self.global_step == steps:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)  # type: ignore[arg-type]

    monkeypatch.setattr(ClassifierTask, "training_step", step)
