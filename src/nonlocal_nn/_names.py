"""Names for error texts: what someone who mistyped a name may have meant.

>>> nearest_names("trian", ["train", "test", "scan"])
['train']
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
