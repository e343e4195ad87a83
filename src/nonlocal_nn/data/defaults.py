"""Values of the paper's recipe that several parts share; nothing heavy is imported here.

>>> jitter_range(224)
(256, 320)
"""

from __future__ import annotations

MEAN = 114.75  # of RGB in 0 .. 255: the authors' released code
STD = 57.375


def jitter_range(crop: int) -> tuple[int, int]:
    """Return the range of the shorter side before a training crop, in pixels: crop * (256, 320) / 224."""
    return short_side_of(crop), round(crop * 320 / 224)


def short_side_of(crop: int) -> int:
    """Return the shorter side of a test frame for a network trained on that crop, in pixels.

    >>> short_side_of(224), short_side_of(48)
    (256, 55)

    A test sees a scale that training saw: its smallest, crop * 256 / 224.
    """
    return round(crop * 256 / 224)
