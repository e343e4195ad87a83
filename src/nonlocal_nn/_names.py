"""Names for error texts: what someone who mistyped a name may have meant.

>>> nearest_names("trian", ["train", "test", "scan"])
['train']
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

_Entry = TypeVar("_Entry")


def nearest_names(
    name: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6, otherwise: int = 0
) -> list[str]:
    """At most `count` of the known names that look like `name`, the most similar first.

    >>> nearest_names("res3.nonlocal", ["res3.nonlocal0", "res4.nonlocal2", "head"], count=1)
    ['res3.nonlocal0']
    >>> nearest_names("layer", ["res3.nonlocal0", "res4.nonlocal2", "head"], otherwise=2)
    ['res3.nonlocal0', 'res4.nonlocal2']

    Args:
        name: the one that does not exist.
        known: those that do.
        count: the most that are given.
        cutoff: similarity from which on a name counts as near, 0 to 1.
        otherwise: where none is near, the first so many of the known names are given instead.
    """
    known = list(known)
    return difflib.get_close_matches(name, known, n=count, cutoff=cutoff) or known[:otherwise]


def require_fields(what: str, names: Iterable[str], fields: Collection[str]) -> None:
    """Raise ValueError where a name is none of the fields; the nearest and all of them are listed.

    >>> require_fields("a box", ["widht"], ("width", "height"))
    Traceback (most recent call last):
    ...
    ValueError: a box has no field 'widht'; did you mean 'width'? The fields are: width, height
    """
    for name in names:
        if name not in fields:
            near = nearest_names(name, fields, count=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"{what} has no field {name!r}{hint} The fields are: {', '.join(fields)}")


def look_up(what: str, name: str, table: Mapping[str, _Entry]) -> _Entry:
    """The entry of a name; ValueError with the nearest names, or all, where there is none.

    >>> look_up("model", "c2d_r05", {"c2d_r50": 1})
    Traceback (most recent call last):
    ...
    ValueError: no model is called 'c2d_r05'; the nearest are c2d_r50
    """
    if name not in table:
        near = nearest_names(name, table, count=4, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"the {what}s are {', '.join(table)}"
        raise ValueError(f"no {what} is called {name!r}; {hint}")
    return table[name]
