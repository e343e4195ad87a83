"""What the non-local blocks of a network look at: rows of f/C, figures of them, and their statistics.

The package can be called: `nl.explain(model, clip)` is `nonlocal_nn.explain.explanation.explain`.

>>> import torch
>>> import nonlocal_nn as nl
>>> nl.explain(nl.create_model("c2d_tiny_nl2"), torch.randn(1, 3, 8, 48, 48))
Explanation of 2 blocks (res3.nonlocal0, res3.nonlocal1) in 8 frames of 48 x 48
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonlocal_nn.explain.explanation import Explanation


class _Package(ModuleType):
    """`nl.explain` has to be a function for notebooks and a package for imports: a package that is called."""

    def __call__(self, *args: Any, **options: Any) -> Explanation:
        from nonlocal_nn.explain.explanation import explain

        return explain(*args, **options)

    @property
    def __signature__(self) -> Any:
        import inspect

        from nonlocal_nn.explain.explanation import explain

        return inspect.signature(explain)


sys.modules[__name__].__class__ = _Package
