"""Triton's language, and `jit`, for the programs of this folder and of `means/gpu_programs.py`.

A program is imported when it is first started. Without Triton it can be imported too, and is no program then.
"""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = ["jit", "tl"]


def jit(function: Any) -> Any:
    """A program, or a part of one; where there is no Triton, the function as it is."""
    return function if triton is None else triton.jit(function)
