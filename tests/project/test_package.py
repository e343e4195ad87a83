"""What holds for the package as a whole: light imports, named homes, hashed requirements without hosts."""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nonlocal_nn as nl

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "lightning", "av", "matplotlib", "sklearn", "tensorboard", "jsonargparse")


def loaded_after(code: str) -> set[str]:
    """The heavy packages that a fresh Python has loaded after running the code."""
    script = f"{code}\nimport sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import nonlocal_nn") == set()


def test_the_block_and_the_networks_need_torch_alone() -> None:
    """So `import nonlocal_nn` and a block cost torch's own import and no other."""
    code = (
        "import nonlocal_nn as nl\n"
        "nl.NonLocalBlock, nl.functional, nl.create_model, nl.list_models, nl.load_model, nl.save_model"
    )
    assert loaded_after(code) == {"torch"}


def test_every_public_name_is_where_the_package_says() -> None:
    for name in nl.__all__:
        assert getattr(nl, name) is not None
        assert name in dir(nl)


def test_an_unknown_public_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"NonLocalBlok.*NonLocalBlock"):
        nl.NonLocalBlok  # type: ignore[attr-defined]  # noqa: B018


def test_modules_that_the_command_line_needs_import_no_torch() -> None:
    """`nonlocal --help` answers at once because options, names and index rules live in light modules."""
    light = ["cli", "models.spec", "models.catalog", "checkpoints.layouts", "training.config"]
    light += ["data.manifest", "data.sampling", "data.errors"]
    code = "\n".join(f"import nonlocal_nn.{name}" for name in light)
    assert "torch" not in loaded_after(code)


def test_the_versions_agree() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == nl.__version__


@pytest.mark.parametrize("name", ["uv", "demo", "dev"])
def test_requirements_are_hashed_and_name_no_host(name: str) -> None:
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=sha256:[0-9a-f]{64})", text, re.MULTILINE)
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_what_the_demo_needs_has_one_version_only() -> None:
    """requirements/dev.txt holds requirements/demo.txt, version for version."""

    def pins(name: str) -> set[str]:
        text = (REPOSITORY / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        return set(re.findall(r"^[A-Za-z0-9._-]+==\S+", text, re.MULTILINE))

    assert pins("demo") < pins("dev")


def test_the_licence_is_the_standard_text() -> None:
    text = (REPOSITORY / "LICENSE").read_bytes()
    standard = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256(text).hexdigest() == standard


@pytest.mark.parametrize("part", ["ops", "blocks", "models", "checkpoints", "data", "evaluation", "training"])
def test_every_part_says_what_it_is(part: str) -> None:
    package = importlib.import_module(f"nonlocal_nn.{part}")
    assert package.__doc__
    for file in Path(str(package.__file__)).parent.glob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), f"{file.name} says nothing"
