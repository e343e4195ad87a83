"""The examples in README.md and docs/ run, and print what the page says; the commands on the pages exist."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(
    r"^(?P<fence>```+)(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line number, text) of the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match["info"].strip() == language:
            found.append((text[: match.start("body")].count("\n") + 1, match["body"]))
    return found


def run_page(page: Path) -> None:
    """Run the page's blocks in order, in one namespace, as a reader would who types them in."""
    names: dict[str, Any] = {"__name__": "__main__"}
    parser = doctest.DocTestParser()
    for line, body in blocks(page, "python"):
        if ">>>" not in body:
            code = compile("\n" * (line - 1) + body, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, names)
            continue
        test = parser.get_doctest(body, names, page.name, str(page), line - 1)
        report = io.StringIO()
        runner = doctest.DocTestRunner(
            optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
        )
        runner.run(test, out=report.write, clear_globs=False)
        assert runner.summarize(verbose=False).failed == 0, report.getvalue()
        names.update(test.globs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nonlocal_nn import pairwise

    monkeypatch.chdir(tmp_path)  # what an example writes does not stay
    monkeypatch.setattr(pairwise, "_TABLE", dict(pairwise._TABLE))  # nor what it registers
    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_and_take_these_options(page: Path) -> None:
    from nonlocal_nn import cli

    for line, body in blocks(page, "console"):
        for command in re.findall(r"^\$ ((?:.*\\\n)*.*)", body, re.MULTILINE):
            words = shlex.split(command.replace("\\\n", " "), comments=True)
            if words[:1] != ["nonlocal"] or len(words) < 2:
                continue
            name = " ".join(words[1:3])  # a command of two words, or of one
            name = name if name in cli.COMMANDS else words[1]
            assert name in (*cli.COMMANDS, "--help"), f"{page.name}:{line}: no command {name}"
            known = option_names(cli, name)
            for word in words[2:]:
                if word.startswith("--"):
                    option = word.partition("=")[0]
                    assert option in known, f"{page.name}:{line}: {name} has no option {option}"


def option_names(cli: Any, name: str) -> str:
    if name not in cli.COMMANDS:
        return ""
    help_text = io.StringIO()
    with contextlib.redirect_stdout(help_text):
        assert cli.main([name, "--help"]) == 0
    return help_text.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_folders_that_a_page_names_exist(page: Path) -> None:
    """The paper beside the code is worth nothing where it points at files that have moved."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for path in re.findall(r"`((?:src|tests|docs|benchmarks|requirements|examples)/[\w./-]+)`", text):
        if not path.startswith("docs/_build"):
            assert (REPOSITORY / path).exists(), f"{page.name} names {path}, which is not there"
