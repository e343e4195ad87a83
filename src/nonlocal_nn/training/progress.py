"""What the terminal shows while training: a bar where there is one to draw on, a line now and then where
not.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 10.0


class TrainingProgress:
    """Steps done of all, loss, learning rate, time left.

    >>> from io import StringIO
    >>> screen = StringIO()
    >>> progress = TrainingProgress(total_steps=20, step=10, console=Console(file=screen, width=100))
    >>> progress.update(11, epoch=1.5, loss=0.6931, lr=0.01)
    >>> screen.getvalue().split("  ")
    ['step 11/20', 'epoch 1.50', 'loss 0.6931', 'lr 0.01\\n']
    """

    def __init__(self, total_steps: int, step: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.total_steps = total_steps
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._next_line = 0.0
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[report]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("training", total=total_steps, completed=step, report="")
            self._bar.start()

    def update(self, step: int, *, epoch: float, loss: float, lr: float) -> None:
        """Show the state after `step` steps; `loss` is that of the steps since the last report."""
        report = f"loss {loss:.4f}  lr {lr:.4g}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"epoch {epoch:.2f}", report=report)
        elif time.monotonic() >= self._next_line or step == self.total_steps:
            self._next_line = time.monotonic() + _LINE_EVERY_SECONDS
            self.say(f"step {step}/{self.total_steps}  epoch {epoch:.2f}  {report}")

    def advance(self, step: int) -> None:
        """Move the bar on without new figures."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def phase(self, name: str) -> None:
        """Say what goes on beside the steps, such as validation."""
        if self._bar is not None:
            self._bar.update(self._task, description=name)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
