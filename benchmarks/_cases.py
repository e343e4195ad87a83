"""What is measured: functions, maps, passes. A case is one comparison; its contenders take turns."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from math import prod

FUNCTIONS = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
SOFTMAXES = ("embedded_gaussian", "gaussian")
PASSES = ("forward", "forward_backward")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

# name: channels of the map, positions. The paper's res3 and res4 at two clip lengths, images, a sequence.
SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "res4_4x14x14": (1024, (4, 14, 14)),
    "res3_4x28x28": (512, (4, 28, 28)),
    "res4_16x14x14": (1024, (16, 14, 14)),
    "2d_64x64": (256, (64, 64)),
    "res3_8x28x28": (512, (8, 28, 28)),
    "2d_128x128": (256, (128, 128)),
    "1d_65536": (64, (65536,)),
}
# Of whole blocks alone: the last stage of an image network, and a batch of the one before; with their batch.
SMALL_SHAPES: dict[str, tuple[int, tuple[int, ...], int]] = {
    "2d_7x7": (2048, (7, 7), 1),
    "8_of_2d_14x14": (1024, (14, 14), 8),
}
QUICK_SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {"tiny_2x6x6": (16, (2, 6, 6)), "tiny_80": (8, (80,))}

# One call each in linear memory: does it fit?
LIMITS: dict[str, tuple[str, int, int, tuple[str, ...]]] = {
    "1d_1000000": ("concatenation", 64, 1_000_000, PASSES),
    "1d_131072": ("embedded_gaussian", 128, 131_072, ("forward_backward",)),
}


@dataclass(frozen=True)
class Case:
    """One comparison.

    >>> case = Case("operator", "gaussian", "res3", 512, (4, 28, 28), True, "forward")
    >>> case.name, case.queries, case.keys, case.inner
    ('operator/gaussian/res3/subsampled/forward/float32', 3136, 784, 256)
    """

    level: str  # "operator", "block", or "limit": the operator, one call, memory
    function: str
    shape: str
    channels: int
    positions: tuple[int, ...]
    subsample: bool
    passes: str
    dtype: str = "float32"
    batch: int = 1

    @property
    def name(self) -> str:
        """Says all of it; the options --only match it."""
        keys = "subsampled" if self.subsample else "all"
        return f"{self.level}/{self.function}/{self.shape}/{keys}/{self.passes}/{self.dtype}"

    @property
    def dims(self) -> int:
        """1, 2 or 3."""
        return len(self.positions)

    @property
    def inner(self) -> int:
        """Channels of theta, phi and g (gaussian: of g alone)."""
        return self.channels // 2

    @property
    def width(self) -> int:
        """Channels that the logits' product sums over."""
        return self.channels if self.function == "gaussian" else self.inner

    @property
    def queries(self) -> int:
        """N."""
        return prod(self.positions)

    @property
    def key_positions(self) -> tuple[int, ...]:
        """The keys' grid: halved in space, never in time."""
        if not self.subsample:
            return self.positions
        time = 1 if self.dims == 3 else 0
        return tuple(size if axis < time else size // 2 for axis, size in enumerate(self.positions))

    @property
    def keys(self) -> int:
        """M."""
        return prod(self.key_positions)

    @property
    def backward(self) -> bool:
        """Forward and backward, not forward alone."""
        return self.passes == "forward_backward"

    @property
    def flops(self) -> int:
        """Of the matrix products that a softmax cannot do without: 4 N M d, or 12 N M d, each; d channels.

        Two products forward, four more backward; what is recomputed does not count.

        >>> Case("operator", "embedded_gaussian", "", 4, (10,), False, "forward").flops == 4 * 10 * 10 * 2
        True
        """
        forward = 2 * self.batch * self.queries * self.keys * (self.width + self.inner)
        return forward * (3 if self.backward else 1)


def all_cases(dtype: str, *, quick: bool) -> list[Case]:
    """Everything the issue lists, small maps first, and blocks on smaller ones."""
    shapes = QUICK_SHAPES if quick else SHAPES
    cases = [
        Case(level, function, shape, *shapes[shape], subsample, passes, dtype)
        for shape, level, function, subsample, passes in product(
            shapes, ("operator", "block"), FUNCTIONS, (False, True), PASSES
        )
    ]
    if not quick:
        cases += [
            Case("block", function, shape, channels, positions, subsample, passes, dtype, batch)
            for shape, (channels, positions, batch) in SMALL_SHAPES.items()
            for function, subsample, passes in product(FUNCTIONS, (False, True), PASSES)
        ]
    for shape, (function, channels, length, passes) in LIMITS.items():
        length = 500 if quick else length
        cases += [Case("limit", function, shape, channels, (length,), False, one, dtype) for one in passes]
    return cases


def select(cases: list[Case], patterns: list[str]) -> list[Case]:
    """Those whose name holds one of the patterns, which may have * and ?; all where no pattern is given.

    Raises:
        ValueError: for a pattern that chooses nothing.
    """
    for pattern in patterns:
        if not any(_matches(case, pattern) for case in cases):
            raise ValueError(f"--only {pattern!r} chooses nothing; a name looks like {cases[0].name}")
    return [case for case in cases if not patterns or any(_matches(case, one) for one in patterns)]


def _matches(case: Case, pattern: str) -> bool:
    return fnmatch(case.name, f"*{pattern}*")
