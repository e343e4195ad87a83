"""What the bars write, on a terminal and elsewhere."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from nonlocal_nn._progress import count_bar, counted, percent_bar


def terminal() -> tuple[Console, StringIO]:
    screen = StringIO()
    return Console(file=screen, force_terminal=True, width=80, color_system=None), screen


def test_a_count_bar_says_what_how_many_and_the_report() -> None:
    console, screen = terminal()
    with count_bar(console, report=True) as bar:
        task = bar.add_task("epoch 1", total=20, report="loss 0.7")
        bar.update(task, completed=8)
        bar.refresh()
    line = next(line for line in screen.getvalue().split("\r") if " 8/20 " in line)
    assert line.index("epoch 1") < line.index("8/20") < line.index("loss 0.7") < line.index("-:--:--")


def test_a_percent_bar_moves_with_the_calls() -> None:
    console, screen = terminal()
    with percent_bar("drawing", shown=True, console=console) as progress:
        progress(3, 12)
    assert " 25%" in screen.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_a_log_file_gets_no_count_bar_and_stdout_stays_stdout(
    shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for item in counted("ab", 2, "scoring", shown=shown):
        print(item)
    assert capsys.readouterr() == ("a\nb\n", "")


def test_a_bar_that_is_not_shown_writes_nothing() -> None:
    console, screen = terminal()
    with percent_bar("drawing", shown=False, console=console) as progress:
        progress(3, 12)
    with count_bar(console, shown=False) as bar:
        bar.advance(bar.add_task("scanning", total=2))
    assert screen.getvalue() == ""
