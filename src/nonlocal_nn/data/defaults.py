"""Default values that several parts share, most of them the paper's; nothing heavy is imported here.

>>> jitter_range(CROP)
(256, 320)
"""

from __future__ import annotations

from typing import Final

MEAN = 114.75  # of RGB in 0 .. 255: the authors' released code
STD = 57.375

FRAME_STRIDE = 2  # every second frame: 32 of 64 (section 4.1)
CROP = 224  # side of a training crop, in pixels
FLIP = 0.5  # probability of a left-right mirror image
CROPS: Final = 3  # of a clip in a test, along the longer side

# Videos of the demo's rendered data set.
RENDERED_TRAIN_VIDEOS = 2000
RENDERED_TEST_VIDEOS = 400


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
