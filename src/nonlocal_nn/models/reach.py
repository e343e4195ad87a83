"""How far a feature sees: the pixels and frames of the clip that one feature can depend on.

>>> reach("c2d_small").end
Field(pixels=25, frames=1)
>>> reach("i3d_small_nl", span="space").blocks_relate
('space',)

A convolution or pool with kernel k and stride s, on features of field r whose neighbours are j pixels apart,
gives features of field r + (k - 1) j with neighbours j s apart; 1 and 1 to begin with. Norms, ReLU and sums
change nothing, and the longer of a residual block's two ways is the one through its 3x3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nonlocal_nn.models.catalog import get_spec
from nonlocal_nn.models.spec import STEMS, Triple, VideoResNetSpec


class Field(NamedTuple):
    """From the first to the last: the side of the square of pixels, and the frames."""

    pixels: int
    frames: int


@dataclass(frozen=True)
class Reach:
    """What one feature sees through convolutions and pools alone.

    Attributes:
        first_block: in the map that the first non-local block gets; None without blocks.
        end: in the last map, before the average. Blocks are passed over: what they add is `blocks_relate`.
        blocks_relate: the axes along which the blocks relate all positions, whatever their distance: "space",
            "time", or both. Temporal groups limit "time" to the frames of a group.
    """

    first_block: Field | None
    end: Field
    blocks_relate: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        sees = f"{self.end.pixels} pixels, {self.end.frames} frame{'' if self.end.frames == 1 else 's'}"
        return f"{sees}; blocks: all of {' and '.join(self.blocks_relate)}" if self.blocks_relate else sees


def reach(network: str | VideoResNetSpec, **spec_overrides: Any) -> Reach:
    """The reach of a network, computed from its spec; nothing is built.

    >>> import nonlocal_nn as nl
    >>> nl.reach("c2d_r50").end                       # more pixels than a clip of 224 x 224 has
    Field(pixels=427, frames=13)
    >>> nl.reach("c2d_small_nl").first_block
    Field(pixels=25, frames=1)

    Args:
        network: a name of the catalog, or a spec.
        spec_overrides: changes to it, by field of `VideoResNetSpec`.

    Raises:
        ValueError: no such network or field.
    """
    spec = get_spec(network) if isinstance(network, str) else network
    spec = spec.replace(**spec_overrides)
    fields, steps = Field(1, 1), Field(1, 1)
    first: Field | None = None
    for kernel, stride, is_block in _layers(spec):
        if is_block:
            first = first or fields
            continue
        fields = Field(
            fields.pixels + (kernel[1] - 1) * steps.pixels, fields.frames + (kernel[0] - 1) * steps.frames
        )
        steps = Field(steps.pixels * stride[1], steps.frames * stride[0])
    spans = {"space": ("space",), "time": ("time",), "spacetime": ("space", "time")}
    return Reach(first, fields, spans[spec.span] if first else ())


def _layers(spec: VideoResNetSpec) -> Iterator[tuple[Triple, Triple, bool]]:
    """(kernel, stride, whether it is a non-local block) in the order they run."""
    stem = STEMS[spec.stem]
    time = 1 if spec.inflation is None else stem.inflated_time
    time = time if spec.conv1_frames is None else spec.conv1_frames
    yield (time, stem.conv_size, stem.conv_size), stem.conv_stride, False
    if stem.pool1 is not None:
        yield stem.pool1.kernel, stem.pool1.stride, False
    for name, blocks, stride in zip(spec.stage_names, spec.stage_blocks, spec.stage_strides, strict=True):
        for index in range(blocks):
            inflated = spec.is_inflated(name, index)
            side = stride if index == 0 else 1
            yield (3 if inflated else 1, 3, 3), (1, side, side), False
            if index in spec.nonlocal_after.get(name, ()):
                yield (1, 1, 1), (1, 1, 1), True
        if name == "res2" and stem.pool2 is not None:
            yield stem.pool2.kernel, stem.pool2.stride, False
