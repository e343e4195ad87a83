"""Choose rows of a table by a condition such as ``set == 1 and sequence not in 3, 4``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

__all__ = ["RowFilter"]

_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<sign>==|!=|[(),\[\]])|(?P<word>[^\s=!(),\[\]"']+))"""
)
_SYNTAX = "write COLUMN == VALUE, COLUMN != VALUE, COLUMN in A, B, C or COLUMN not in A, B, joined by `and`"


@dataclass(frozen=True)
class _Condition:
    column: str
    values: tuple[str, ...]
    wanted: bool  # True: the cell must be one of the values; False: none of them

    def holds(self, row: Mapping[str, str]) -> bool:
        cell = row[self.column].strip()
        return any(_same(cell, value) for value in self.values) == self.wanted


class RowFilter:
    """A condition on the columns of a table, parsed, never evaluated as code.

    >>> train = RowFilter("set == 1 and sequence not in 3, 4", columns=["set", "sequence"])
    >>> train({"set": "1", "sequence": "2"}), train({"set": "1", "sequence": "3"})
    (True, False)
    >>> RowFilter("speed == 3", columns=["path", "set"])
    Traceback (most recent call last):
    ValueError: no column 'speed' in where='speed == 3'; the columns are path, set

    Cells equal a value if the texts are equal, or both are numbers and equal ("01" and 1). Values with
    spaces, or the word `and`, go in quotes; a list may stand in parentheses or brackets.

    Raises:
        ValueError: an unknown column, or a text that is no condition.
    """

    def __init__(self, text: str, columns: Collection[str]) -> None:
        self.text = text
        self._conditions = _parse(text)
        for condition in self._conditions:
            if condition.column not in columns:
                raise ValueError(
                    f"no column {condition.column!r} in where={text!r}; the columns are {', '.join(columns)}"
                )

    def __call__(self, row: Mapping[str, str]) -> bool:
        """Tell whether a row (column name to cell) meets every condition."""
        return all(condition.holds(row) for condition in self._conditions)


def _same(cell: str, value: str) -> bool:
    if cell == value:
        return True
    try:
        return float(cell) == float(value)
    except ValueError:
        return False


def _parse(text: str) -> list[_Condition]:
    tokens = _tokens(text)
    conditions: list[_Condition] = []
    at = 0

    def take() -> tuple[str, bool]:
        nonlocal at
        if at >= len(tokens):
            raise ValueError(f"where={text!r} ends too early; {_SYNTAX}")
        at += 1
        return tokens[at - 1]

    def value() -> str:
        token, quoted = take()
        if not quoted and (token in {"==", "!=", "(", ")", "[", "]", ","} or token in {"and", "in", "not"}):
            raise ValueError(f"a value was expected, not {token!r}, in where={text!r}; {_SYNTAX}")
        return token

    while True:
        column = value()
        operator = take()[0]
        if operator == "not":
            operator = f"not {take()[0]}"
        if operator in {"==", "!="}:
            values = [value()]
        elif operator in {"in", "not in"}:
            closing = {"(": ")", "[": "]"}.get(tokens[at][0]) if at < len(tokens) else None
            if closing:
                take()
            values = [value()]
            while at < len(tokens) and tokens[at][0] == ",":
                take()
                values.append(value())
            if closing and take()[0] != closing:
                raise ValueError(f"the list in where={text!r} is not closed; {_SYNTAX}")
        else:
            raise ValueError(f"{operator!r} is no operator in where={text!r}; {_SYNTAX}")
        conditions.append(_Condition(column, tuple(values), operator in {"==", "in"}))
        if at == len(tokens):
            return conditions
        joint = take()[0]
        if joint != "and":
            raise ValueError(f"`and` was expected, not {joint!r}, in where={text!r}; {_SYNTAX}")


def _tokens(text: str) -> list[tuple[str, bool]]:
    """Split into (text, was it quoted?)."""
    tokens: list[tuple[str, bool]] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"cannot read {text[at:].strip()!r} in where={text!r}; {_SYNTAX}")
        quoted = match["quoted"]
        tokens.append((quoted[1:-1], True) if quoted is not None else (match["sign"] or match["word"], False))
        at = match.end()
    return tokens
