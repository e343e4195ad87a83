"""metrics.csv: one row for each step that is reported, which a resumed run goes on with where the checkpoint
stands.

Lightning's own CSV logger deletes the file of the run that it resumes.
"""

from __future__ import annotations

import csv
from pathlib import Path

from nonlocal_nn._files import write_whole

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
)


class MetricsCsv:
    """Appends rows to the file; a step that is reported twice has its later values in the same row.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
    >>> log = MetricsCsv(path, from_step=0)
    >>> log.add(10, {"train_loss": 2.5}); log.add(10, {"val_top1": 25.0})
    >>> MetricsCsv(path, from_step=5).rows                   # resumed at step 5: 10 will come again
    {}
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
