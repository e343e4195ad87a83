"""Optimizer groups, files that are whole, the list of skipped videos, the config."""

from __future__ import annotations

import ast
import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import nonlocal_nn.training
from nonlocal_nn._files import write_whole
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.models.catalog import create_model
from nonlocal_nn.training import config as config_module
from nonlocal_nn.training.config import (
    DataConfig,
    OptimConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    differences,
)
from nonlocal_nn.training.csv_log import MetricsCsv
from nonlocal_nn.training.loss import make_loss, resolve_loss
from nonlocal_nn.training.optimizer import make_optimizer, parameter_groups
from nonlocal_nn.training.skipped import SkippedVideos, TooManyBadVideosError


def test_weight_decay_is_on_all_parameters_but_those_of_norms() -> None:
    model = create_model("c2d_tiny_nl2", num_classes=4)
    decayed, plain = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = {names[id(parameter)] for parameter in plain["params"]}  # type: ignore[attr-defined]
    assert without == {name for name in names.values() if "norm" in name}
    assert len(decayed["params"]) + len(without) == len(names)  # type: ignore[arg-type]
    head = model.head.fc.bias
    assert any(parameter is head for parameter in decayed["params"])  # type: ignore[attr-defined]


def test_a_step_decays_a_weight_without_gradient_and_no_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = make_optimizer(model, OptimConfig(lr=0.5, weight_decay=0.1))
    before = [parameter.clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Nesterov's first step is (1 + momentum) times the gradient
    expected = [before[0] * (1 - 0.5 * 0.1 * 1.9), before[1] * (1 - 0.5 * 0.1 * 1.9), before[2], before[3]]
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value.detach())


def test_losses_are_those_of_their_formulas() -> None:
    logits = torch.randn(5, 4)
    classes = torch.tensor([0, 3, 1, 1, 2])
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    own = log_p[range(5), classes]
    smooth = make_loss("cross_entropy", 0.2)(logits, classes)
    torch.testing.assert_close(smooth, -(0.8 * own + 0.2 * log_p.mean(1)).mean())
    targets = torch.randint(0, 2, (5, 4)).float()
    p = 1 / (1 + (-logits).exp())
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(make_loss("sigmoid", 0.0)(logits, targets), expected)
    with pytest.raises(ValueError, match="several labels"):
        resolve_loss("cross_entropy", multi_label=True)
    with pytest.raises(ValueError, match="belongs to cross_entropy"):
        make_loss("sigmoid", 0.1)


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, lambda partial: partial.write_text("old"))

    def fail(partial: Path) -> None:
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_text() == "old"


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from nonlocal_nn._files import write_whole\n"
        "def write(partial): partial.write_text('new'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(Path(sys.argv[1]), write)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    (left,) = (other for other in tmp_path.iterdir() if other != path)
    os.utime(left, (0, 0))  # long ago
    write_whole(path, lambda partial: partial.write_text("new"))
    assert [other.name for other in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "new"


def test_skipped_videos_are_listed_once_and_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "skipped.csv"
    skipped = SkippedVideos(path, videos=20, allowed_share=0.1)
    skipped.add([Problem("b.mp4", 'odd, "quoted"'), Problem("b.mp4", "again")], warn=True)
    skipped.add([Problem("val.mp4", "x"), Problem("val2.mp4", "x")], warn=True, training=False)
    skipped.add([Problem("a.mp4", "empty")], warn=True)
    assert capsys.readouterr().err.count("skipped b.mp4") == 1
    with path.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["a.mp4", "b.mp4", "val.mp4", "val2.mp4"]
    resumed = SkippedVideos(path, videos=20, allowed_share=0.1)
    resumed.load(skipped.state())
    with pytest.raises(TooManyBadVideosError, match=r"3 of 20 training videos \(15.0%\)"):
        resumed.add([Problem("c.mp4", "no video stream")], warn=False)
    assert "c.mp4" in path.read_text()


def test_metrics_go_on_where_the_checkpoint_stands(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCsv(path, from_step=0)
    for step in (2, 4, 6):
        log.add(step, {"train_loss": float(step)})
    resumed = MetricsCsv(path, from_step=4)
    resumed.add(6, {"train_loss": 6.0})
    resumed.add(6, {"val_top1": 50.0})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["train_loss"], row["val_top1"]) for row in rows] == [
        ("2", "2", ""),
        ("4", "4", ""),
        ("6", "6", "50"),
    ]


def _sections() -> list[type]:
    return [kind for kind in vars(config_module).values() if dataclasses.is_dataclass(kind)]  # type: ignore[misc]


def test_every_field_is_read_somewhere_and_documented() -> None:
    folder = Path(nonlocal_nn.training.__file__).parent
    read = {
        node.attr
        for path in folder.glob("*.py")
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    by_name = {'"val_every_epochs"', "warmup_start"}  # read through getattr as well as by attribute
    source = ast.parse(Path(config_module.__file__).read_text())
    documented = set()
    for node in ast.walk(source):
        if isinstance(node, ast.ClassDef):
            for statement, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                    documented.add((node.name, statement.target.id))  # type: ignore[union-attr]
    for kind in _sections():
        for field in dataclasses.fields(kind):
            assert field.name in read or field.name in by_name, f"nothing reads {kind.__name__}.{field.name}"
            assert (kind.__name__, field.name) in documented, f"{kind.__name__}.{field.name} has no docstring"


def test_config_survives_yaml_and_refuses_typos() -> None:
    config = TrainConfig(out="o", data=DataConfig(train="t", jitter=(3, 5)), seed=4)
    config.model.options = {"nonlocal_after": {"res3": (0,)}}
    assert differences(config_from_dict(config_to_dict(config)), config) == []
    values = config_to_dict(config)
    values["optim"]["learning_rate"] = 1
    with pytest.raises(ValueError, match=r"no field optim.learning_rate .* it has: name, lr, "):
        config_from_dict(values)


def test_config_module_needs_no_torch() -> None:
    code = (
        "import sys; from nonlocal_nn.training import config, recipes, run, run_folder, manifests, signals; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
