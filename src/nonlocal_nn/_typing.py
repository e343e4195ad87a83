"""Annotations of tensors with their shapes: ``theta: Float[Tensor, "batch query channel"]``.

They are jaxtyping's. The library itself needs torch alone, so where jaxtyping is absent they mean "a tensor";
the tests install jaxtyping's import hook, which checks every annotated shape at each call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, Shaped, UInt8
    except ImportError:

        class _AnyShape:
            """`Float[Tensor, "..."]` without jaxtyping: the tensor type alone."""

            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = Shaped = UInt8 = _AnyShape

__all__ = ["Bool", "Float", "Int", "Shaped", "UInt8"]
