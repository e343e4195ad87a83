"""A table that runs in seconds."""

from __future__ import annotations

from nonlocal_nn.data.long_range import LongRange
from nonlocal_nn.experiments.tables import Table, Variant

QUESTION = LongRange(space=(38, 0), time=(0, 6), train_videos=32, test_videos=16)
LITTLE = {"base_width": 2}

TINY = Table(
    name="tiny",
    title="A table for tests",
    claim="one block is better",
    question=QUESTION,
    variants=(
        Variant(name="C2D", model="c2d_small", options=LITTLE, paper=71.8),
        Variant(name="block", model="c2d_small_nl", options=LITTLE, paper=72.7),
    ),
    comparisons=(("block", "C2D"),),
    steps=30,
)
