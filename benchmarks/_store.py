"""Results that survive a stop: whole rows in a JSON file, written each time some are finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nonlocal_nn._files import write_whole

Row = dict[str, Any]

# A resumed run goes on where all of these are the same; rows of another machine would not compare.
SAME = ("cpu", "cores", "threads", "gpu", "python", "torch", "numpy")


class Store:
    """Rows by their names; `add` replaces rows of the same name and writes the file whole.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.json"
    >>> Store(path, {"torch": "2"}, "code").add([{"name": "a", "seconds": 1.0}])
    >>> Store.load(path).rows
    {'a': {'name': 'a', 'seconds': 1.0, 'code': 'code'}}
    """

    def __init__(self, path: Path, machine: dict[str, Any], code: str, rows: list[Row] | None = None) -> None:
        self.path, self.machine, self.code = path, machine, code
        self.rows: dict[str, Row] = {row["name"]: row for row in rows or []}

    @classmethod
    def load(cls, path: Path) -> Store:
        """What an earlier run saved.

        Raises:
            ValueError: where there is no such file, or it is not one of these.
        """
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, saved["machine"], saved["code"], saved["rows"])
        except OSError as error:
            raise ValueError(f"no results in {path} ({error.strerror}); measure first") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not hold results of a benchmark: {error!r}") from error

    def resume(self) -> None:
        """Take over the rows that an earlier run left in the file, where they still hold.

        Raises:
            ValueError: where they were measured on another machine or with other versions.
        """
        if not self.path.exists():
            return
        earlier = Store.load(self.path)
        for field in SAME:
            if earlier.machine.get(field) != self.machine.get(field):
                raise ValueError(
                    f"{self.path} was measured with {field} {earlier.machine.get(field)!r}, this is "
                    f"{self.machine.get(field)!r}; give another --out, or leave out --resume to start anew"
                )
        self.rows = {name: row for name, row in earlier.rows.items() if row.get("code") == self.code}

    def add(self, rows: list[Row]) -> None:
        """Add finished rows, and write."""
        for row in rows:
            self.rows[row["name"]] = {**row, "code": self.code}
        saved = {"machine": self.machine, "code": self.code, "rows": list(self.rows.values())}
        write_whole(
            self.path, lambda file: file.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        )
