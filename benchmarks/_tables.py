"""Rows as tables: for a terminal, and as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from _cases import SOFTMAXES
from _memory import in_words
from _store import Row

COLUMNS = ("case", "contender", "seconds", "runs", "x plain", "GFLOP/s", "of products", "peak", "difference")


def printed(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]], console: Console) -> None:
    """A table for people; the first two columns are text."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=number > 0)
    for line in lines:
        table.add_row(*line)
    console.print(table)


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """The same for a page.

    >>> print(markdown(("a", "b"), [("1", "2")]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    rows = [columns, ["---"] * len(columns), *lines]
    text = ["| " + " | ".join(row) + " |" for row in rows]
    text[1] = "|" + "---|" * len(columns)
    return "\n".join(text)


def products_rate(rows: Iterable[Row], *, torch_mm: bool = False) -> float | None:
    """GFLOP/s of a case's matrix products alone, the fastest form, or the faster with torch.mm."""
    names = ("products", "products_chunked", *(() if torch_mm else ("products_fastest",)))
    rates = [rate(row) for row in rows if row["contender"] in names]
    return max((one for one in rates if one is not None), default=None)


def rate(row: Row) -> float | None:
    """GFLOP/s, counting the products that a softmax cannot do without."""
    if "seconds" not in row or row["function"] not in SOFTMAXES or row["level"] == "block":
        return None
    return float(row["flops"] / row["seconds"] / 1e9)


def lines_of(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """One line a row, with ratios to the plain form and to the matrix products of the same case."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    lines = []
    for name, group in cases.items():
        plain = next((row.get("seconds") for row in group if row["contender"] == "plain"), None)
        machine = products_rate(group)
        for number, row in enumerate(group):
            lines.append(_line(name if number == 0 else "", row, plain, machine))
    return lines


def _line(name: str, row: Row, plain: float | None, machine: float | None) -> tuple[str, ...]:
    seconds, speed = row.get("seconds"), rate(row)
    if seconds is None:
        return (name, row["label"], row["status"], "", "", "", "", in_words(row.get("peak_bytes")), "")
    return (
        name,
        row["label"],
        f"{seconds:.4g}",
        str(row["runs"]) + ("" if row.get("warmed_up", True) else ", cold"),
        f"{plain / seconds:.2f}" if plain else "",
        f"{speed:.0f}" if speed else "",
        f"{speed / machine:.0%}" if speed and machine else "",
        in_words(row.get("peak_bytes")),
        f"{row['difference']:.0e}" if "difference" in row else "",
    )
