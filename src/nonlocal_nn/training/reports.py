"""What a run reports while it trains: metrics.csv, and what the terminal shows."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from nonlocal_nn._files import write_whole
from nonlocal_nn._progress import count_bar

COLUMNS = (
    "step",
    "epoch",
    "lr",
    "train_loss",
    "train_top1",
    "clips_per_second",
    "val_loss",
    "val_top1",
    "val_top5",
    "val_map",
    "waiting",
)

_LINE_EVERY_SECONDS = 10.0


class MetricsCsv:
    """metrics.csv: one row for each step reported; a resumed run goes on where its checkpoint stands.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
    >>> log = MetricsCsv(path, from_step=0)
    >>> log.add(10, {"train_loss": 2.5}); log.add(10, {"val_top1": 25.0})
    >>> MetricsCsv(path, from_step=5).rows                   # resumed at step 5: 10 will come again
    {}

    A step that is reported twice has its later values in the same row. (Lightning's own CSV logger deletes
    the file of the run that it resumes.)
    """

    def __init__(self, path: Path, from_step: int) -> None:
        self.path = path
        self.rows: dict[int, dict[str, str]] = {}
        if path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if row["step"].isdigit() and int(row["step"]) <= from_step:
                        self.rows[int(row["step"])] = {k: v for k, v in row.items() if v}
        write_whole(path, self._write_all)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Report `values` for a step; the row is in the file when this returns."""
        known = step in self.rows
        row = self.rows.setdefault(step, {"step": str(step)})
        row.update({name: f"{value:.6g}" for name, value in values.items()})
        if known:
            write_whole(self.path, self._write_all)
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)

    def _write_all(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows.values())


class TrainingProgress:
    """Steps done of all, loss, learning rate, time left: a bar on a terminal, elsewhere a line every 10 s.

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
            self._bar = count_bar(self.console, report=True)
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
