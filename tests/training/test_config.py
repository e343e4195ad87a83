"""The config: every field is read and documented, YAML keeps it whole; the recipes; no torch."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import nonlocal_nn.training
from nonlocal_nn.training import config as config_module
from nonlocal_nn.training.config import (
    DataConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    differences,
)


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
        "import sys; from nonlocal_nn.training import config, recipes, run, run_folder, inputs, signals; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
