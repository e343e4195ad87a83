"""What a non-local block is, as plain data for block, network specs, insertion and files; no torch.

>>> BlockOptions.from_file(BlockOptions(dims=2).to_file()) == BlockOptions(dims=2)
True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nonlocal_nn.pairwise import PairwiseFunction, get_pairwise

SubsampleAt = Literal["embedding", "input"]
Span = Literal["spacetime", "space", "time"]
Norm = Literal["batch", "frozen"]
Init = Literal["paper", "released"]

# What each option can be; numbers and pairwise functions are checked by themselves.
CHOICES: dict[str, tuple[object, ...]] = {
    "dims": (1, 2, 3),
    "subsample": (True, False),
    "subsample_at": get_args(SubsampleAt),
    "span": get_args(Span),
    "scale": (True, False),
    "norm": (*get_args(Norm), None),
    "init": get_args(Init),
}

FILE_VERSION = 1


@dataclass(frozen=True)
class BlockOptions:
    """The options of a `NonLocalBlock`, whose docstring explains them; those that change what it computes.

    Raises:
        ValueError: for options that do not exist or do not go together.
    """

    inner_channels: int | None = None
    pairwise: str | PairwiseFunction = "embedded_gaussian"
    dims: int = 3
    subsample: bool = True
    subsample_at: SubsampleAt = "embedding"
    span: Span = "spacetime"
    temporal_groups: int = 1
    scale: bool = False
    norm: Norm | None = "batch"
    init: Init = "paper"

    def __post_init__(self) -> None:
        function = self.function
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        if (self.inner_channels is not None and self.inner_channels < 1) or self.temporal_groups < 1:
            raise ValueError(
                "inner_channels and temporal_groups must be at least 1, got "
                f"{self.inner_channels} and {self.temporal_groups}"
            )
        if self.dims != 3 and (self.span != "spacetime" or self.temporal_groups != 1):
            raise ValueError(
                f"a map of dims={self.dims} has no time axis: span={self.span!r} and "
                f"temporal_groups={self.temporal_groups} need dims=3"
            )
        if self.span == "space" and self.temporal_groups != 1:
            raise ValueError(
                f"span='space' keeps every frame by itself; temporal_groups={self.temporal_groups} groups "
                "nothing"
            )
        if self.scale and not function.product:
            raise ValueError(
                f"scale=True needs a product of theta and phi; pairwise={function.name!r} has none"
            )

    @property
    def function(self) -> PairwiseFunction:
        """The entry of the table, or the function that was given."""
        return get_pairwise(self.pairwise)

    def arguments(self) -> dict[str, Any]:
        """As `NonLocalBlock` takes them by name.

        >>> BlockOptions(dims=2).arguments()["dims"]
        2
        """
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to_file(self) -> dict[str, Any]:
        """As JSON holds them, with the version of this list; a function by its name."""
        return {"version": FILE_VERSION, **self.arguments(), "pairwise": self.function.name}

    @classmethod
    def from_file(cls, values: object) -> BlockOptions:
        """What `to_file` wrote, in this version of the library or an earlier one.

        Files from before there were versions have the arguments of `NonLocalBlock`. `memory_budget` is no
        part of a block and left out; `init`, which says nothing of trained weights, is absent.

        Raises:
            ValueError: they are of a later version, or not the options of a block.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a block is described by a table of options, not by {str(values)[:200]}")
        given = dict(values)
        version = given.pop("version", 0)
        if version not in range(FILE_VERSION + 1):
            raise ValueError(
                f"the block's options are of version {version!r}; this library reads up to {FILE_VERSION}: "
                "update nonlocal-nn"
            )
        if version == 0:
            given.pop("memory_budget", None)
            given.setdefault("init", cls.init)
        names = [field.name for field in dataclasses.fields(cls)]
        if set(given) != set(names):
            raise ValueError(f"a block is described by {', '.join(names)}, not by {str(values)[:200]}")
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"the block's description has a value of the wrong type: {error}") from error


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises ValueError where `value` is none of those allowed; 1 is not True here."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in allowed):
        raise ValueError(f"{name}={value!r} does not exist; choose one of {', '.join(map(repr, allowed))}")
