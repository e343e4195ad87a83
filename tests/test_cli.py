"""The command line: fast help, YAML and overrides, helpful errors, exit codes."""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from nonlocal_nn import cli
from nonlocal_nn.cli import COMMANDS, Command, main

HEAVY = ("torch", "lightning", "sklearn", "torchvision", "torchmetrics")


@dataclass(frozen=True)
class Inner:
    """What is inside."""

    lr: float = 0.1
    """Learning rate."""
    crop: int = 4
    """Side."""
    max_bad: float = 0.0
    """Share."""


@dataclass(frozen=True)
class Other:
    """What is beside it."""

    crop: int = 5
    """Side too."""


@dataclass(frozen=True)
class Options:
    """A command for tests."""

    out: str
    """Where."""
    files: list[str] = field(default_factory=list)
    """Which."""
    inner: Inner = field(default_factory=Inner)
    """Inner options."""
    other: Other = field(default_factory=Other)
    """Other options."""
    kind: Literal["a", "b"] = "a"
    """What kind."""
    json: bool = False
    """A switch."""
    options: dict[str, Any] = field(default_factory=dict)
    """Free ones."""


class Body:
    """Notes what it was called with; gives or raises what it is told to."""

    def __init__(self) -> None:
        self.outcome: int | BaseException = 0
        self.got: list[Options] = []

    def __call__(self, options: Options) -> int:
        self.got.append(options)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def body(monkeypatch: pytest.MonkeyPatch) -> Body:
    """The command `nonlocal probe FILES`, and what it got."""
    it = Body()
    command = Command(
        "a command for tests", "test:Options", "test:body", "nonlocal probe", positional="files"
    )
    monkeypatch.setitem(COMMANDS, "probe", command)
    monkeypatch.setattr(cli, "_load", {"test:Options": Options, "test:body": it}.__getitem__)
    monkeypatch.delenv("NONLOCAL_DEBUG", raising=False)
    return it


def test_options_arrive_as_the_dataclass(body: Body) -> None:
    words = ["probe", "a.mp4", "--out", "o", "--inner.lr", "0.5", "--kind=b", "--options.x", "3", "b c.mp4"]
    assert main(words) == 0
    assert body.got == [
        Options(out="o", files=["a.mp4", "b c.mp4"], inner=Inner(lr=0.5), kind="b", options={"x": 3})
    ]


def test_the_exit_code_is_the_bodys(body: Body) -> None:
    body.outcome = 1
    assert main(["probe", "--out", "o"]) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--json", "a.mp4"], (True, ["a.mp4"])),
        (["a.mp4", "--json"], (True, ["a.mp4"])),
        (["--json", "false", "a.mp4"], (False, ["a.mp4"])),
        (["--json=true", "--", "--odd.mp4", "-"], (True, ["--odd.mp4", "-"])),
        (["null", "123", "[x]", "a=b", "-"], (False, ["null", "123", "[x]", "a=b", "-"])),
    ],
)
def test_switches_and_files_stand_in_any_order(
    body: Body, words: list[str], expected: tuple[bool, list[str]]
) -> None:
    assert main(["probe", "--out", "o", *words]) == 0
    assert (body.got[0].json, body.got[0].files) == expected


def test_a_short_name_will_do_where_it_is_the_only_one(
    body: Body, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "--out", "o", "--lr", "0.5", "--max-bad", "0.2"]) == 0
    assert body.got[0].inner == Inner(lr=0.5, max_bad=0.2)
    assert main(["probe", "--out", "o", "--crop", "3"]) == 2
    assert "no option --crop; did you mean --inner.crop or --other.crop?" in capsys.readouterr().err


def test_yaml_gives_every_option_and_the_command_line_wins(body: Body, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("out: from-yaml\nfiles: [x.mp4]\ninner: {lr: 0.3, crop: 7}\njson: true\n")
    expected = Options(out="from-yaml", files=["x.mp4"], inner=Inner(lr=0.3, crop=7), json=True)
    assert main(["probe", "--config", str(config)]) == 0
    # whichever comes first
    assert main(["probe", "y.mp4", "--inner.crop=8", "--config", str(config)]) == 0
    assert main(["probe", f"--config={config}", "--inner.crop=8", "y.mp4"]) == 0
    changed = dataclasses.replace(expected, files=["y.mp4"], inner=Inner(lr=0.3, crop=8))
    assert body.got == [expected, changed, changed]


def test_what_print_config_prints_is_the_configuration(
    body: Body, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "x y.mp4", "123", "--out", "o", "--lr", "0.25", "--json"]
    assert main([*words, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["inner"]["lr"] == 0.25
    assert body.got == []
    config = tmp_path / "config.yaml"
    config.write_text(printed)
    assert main(["probe", "--config", str(config)]) == main(words) == 0
    assert body.got[0] == body.got[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--inner.lrr", "1"], "no option --inner.lrr; did you mean --inner.lr?"),
        (["--oit", "1"], "no option --oit; did you mean --out?"),
        (["--zzz"], "no option --zzz;"),
        (["--kind", "c"], "--kind: expected Literal['a', 'b']. Got value: c"),
        (["--inner.crop", "x"], "--inner.crop: expected int. Got value: x"),
        (["--out"], "--out: expected one argument"),
        ([], "required: out"),
        (["--config", "absent.yaml"], "--config: File does not exist"),
    ],
)
def test_wrong_options_are_one_line(
    body: Body, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    given = [] if not words or words[0] in ("--out", "--oit") else ["--out", "o"]
    assert main(["probe", *given, *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("nonlocal: error: ")
    assert err.count("\n") == 1
    assert body.got == []


def test_a_typo_in_yaml_is_named(body: Body, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("out: o\ninner: {lrr: 0.3}\n")
    assert main(["probe", "--config", str(config)]) == 2
    assert "no option --inner.lrr; did you mean --inner.lr?" in capsys.readouterr().err


def test_a_config_file_cannot_name_a_class_to_build(body: Body, tmp_path: Path) -> None:
    config, made = tmp_path / "config.yaml", tmp_path / "made"
    spec = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(made)]}}
    config.write_text(yaml.safe_dump({"out": "o", "options": {"x": spec}}))
    main(["probe", "--config", str(config)])
    assert not made.exists()
    assert [options.options for options in body.got] == [{"x": spec}]


def test_command_typos_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predcit", "a.mp4"]) == 2
    assert "no command 'predcit'; did you mean predict?" in capsys.readouterr().err
    assert main(["--vresion"]) == 2
    assert "no option '--vresion'" in capsys.readouterr().err


def test_a_word_too_many_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "videos", "--out", "o", "--data.train", "t"]) == 2
    assert "'videos' is not expected here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            ValueError("the stride is 0;\nit must be 1 or more"),
            2,
            "error: the stride is 0; it must be 1 or more",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "a.csv"),
            2,
            "error: a.csv: No such file or directory",
        ),
        (FileNotFoundError("no run at runs/x"), 2, "error: no run at runs/x"),
        (
            ModuleNotFoundError("No module named 'lightning'", name="lightning"),
            2,
            "needs the package lightning",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line(
    body: Body, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    body.outcome = error
    assert main(["probe", "--out", "o"]) == code
    err = capsys.readouterr().err
    assert err.startswith("nonlocal: ")
    assert said in err
    assert err.count("\n") == 1


def test_debug_shows_where_it_came_from(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    body.outcome = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        main(["probe", "--out", "o", "--debug"])
    monkeypatch.setenv("NONLOCAL_DEBUG", "1")
    with pytest.raises(ValueError, match="no"):
        main(["probe", "--out", "o"])


def test_a_bug_keeps_its_traceback(body: Body) -> None:
    for bug in (RuntimeError("shapes do not match"), TypeError("x"), AssertionError("y")):
        body.outcome = bug
        with pytest.raises(type(bug)):
            main(["probe", "--out", "o"])


def test_our_runtime_errors_and_a_stopped_run_are_not_bugs(
    body: Body, capsys: pytest.CaptureFixture[str]
) -> None:
    from nonlocal_nn.training.skipped import TooManyBadVideosError

    body.outcome = TooManyBadVideosError("3 of 4 videos")
    assert main(["probe", "--out", "o"]) == 2
    assert "error: 3 of 4 videos" in capsys.readouterr().err
    body.outcome = SystemExit(143)
    assert main(["probe", "--out", "o"]) == 143


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_its_options_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert COMMANDS[name].example in " ".join(out.split())
    module, _, attribute = COMMANDS[name].options.partition(":")
    options = getattr(importlib.import_module(module), attribute)
    for option in cli._option_types(options):
        assert f"{option} " in out.replace("\n", " ") or f"{option}.help " in out
    module, _, attribute = COMMANDS[name].body.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in sorted(COMMANDS))])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from nonlocal_nn.cli import main; code = main(sys.argv[1:]); "
        f"print([m for m in {HEAVY} if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nonlocal_nn", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("nonlocal ")


@pytest.mark.skipif(os.name != "posix", reason="pipes of another kind")
def test_a_closed_pipe_is_quiet() -> None:
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -u -m nonlocal_nn train --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage")
    assert done.stderr == ""
