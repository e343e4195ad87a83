"""Which blocks can be put into a network, by name or by a function that makes them.

>>> maker("squeeze_excitation", {"reduction": 4})(64, 2).hidden
16
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from nonlocal_nn._names import nearest_names
from nonlocal_nn.blocks.global_context import GlobalContext
from nonlocal_nn.blocks.squeeze_excitation import SqueezeExcitation

Maker = Callable[[int, int], nn.Module]
"""From channels and the number of position axes."""

# Each with what makes it start as the identity.
_KINDS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "squeeze_excitation": (SqueezeExcitation, {"gate": "twice_sigmoid"}),
    "global_context": (GlobalContext, {}),
}
NAMES = ("nonlocal", *_KINDS)

# The child of a layer that a block becomes, which is a part of its weights' names.
CHILDREN = {"nonlocal": "nonlocal_block", **{name: name for name in _KINDS}}
OTHER_CHILD = "inserted_block"


def child_of(block: str | Maker) -> str:
    """The name of the child.

    Raises:
        ValueError: a name that there is not.
    """
    if not isinstance(block, str):
        return OTHER_CHILD
    if block not in CHILDREN:
        near = nearest_names(block, NAMES, otherwise=len(NAMES))
        raise ValueError(f"no block is called {block!r}; the nearest are {', '.join(near)}")
    return CHILDREN[block]


def maker(block: str | Maker, options: Mapping[str, Any]) -> Maker:
    """What makes a block other than the non-local one.

    Raises:
        ValueError: an option that the block does not have, with the nearest ones.
    """
    if not isinstance(block, str):
        if options:
            raise ValueError(
                f"block_options {sorted(options)} with a block of your own: make it with them, as in "
                "block=lambda channels, axes: Mine(channels, option=...)"
            )
        return block
    kind, start = _KINDS[block]
    known = [name for name in inspect.signature(kind).parameters if name != "channels"]
    for name in options:
        if name not in known:
            near = nearest_names(name, known, otherwise=len(known))
            raise ValueError(f"{block} has no option {name!r}; the nearest are {', '.join(near)}")
    return lambda channels, _: kind(channels, **{**start, **options})
