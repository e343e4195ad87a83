"""Progress bars on stderr. rich is imported when one is made.

>>> list(counted(range(3), 3, "scoring", shown=False))
[0, 1, 2]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_T = TypeVar("_T")


def count_bar(
    console: Console, *, report: bool = False, shown: bool = True, redirect_stdout: bool = True
) -> Progress:
    """A bar with what is done, how much of how many, and the time left; it is erased when it is stopped.

    Args:
        console: where the bar is drawn.
        report: one more column before the time left, the field `report` of the task.
        shown: False: the bar does nothing.
        redirect_stdout: lines printed to stdout meanwhile go to the console, above the bar.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([TextColumn("{task.fields[report]}")] if report else []),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
        transient=True,
        redirect_stdout=redirect_stdout,
    )


def counted(items: Iterable[_T], total: int, words: str, *, shown: bool) -> Iterator[_T]:
    """The items one by one, with a bar that counts them where `shown` and stderr is a terminal.

    Args:
        items: gone through once.
        total: how many there are.
        words: what is done with them, such as "scoring".
        shown: False: no bar in any case.
    """
    from rich.console import Console

    console = Console(stderr=True)
    # In a log file the bar would leave an empty line. What is printed meanwhile stays on its own stream.
    with count_bar(console, shown=shown and console.is_terminal, redirect_stdout=False) as bar:
        task = bar.add_task(words, total=total)
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def percent_bar(
    words: str, *, shown: bool, console: Console | None = None
) -> Iterator[Callable[[int, int], None]]:
    """A bar with percent and the time left; gives the function to call with (done, total) as work goes on.

    >>> with percent_bar("drawing", shown=False) as progress:
    ...     progress(1, 8)

    Args:
        words: what is done.
        shown: False: no bar, and the function does nothing.
        console: where the bar is drawn; None: stderr.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = console or Console(stderr=True)
    with Progress(console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
