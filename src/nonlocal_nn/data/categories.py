"""What a detector finds, by the user's own names and numbers: categories and keypoints.

Inside a network labels are 1, 2, ... without gaps, 0 is the background. Outside are the ids of the user's
json, with whatever gaps. What joins them is this list, which travels with the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

__all__ = ["COCO_PERSON", "Category", "Keypoints", "Task", "number_categories"]

Task = Literal["boxes", "masks", "keypoints"]


class Category(NamedTuple):
    """One kind of object: its id in the user's json, and its name."""

    id: int | str
    name: str


def number_categories(
    categories: Sequence[str] | Mapping[int, str] | Mapping[str, str],
) -> tuple[Category, ...]:
    """The categories in the order of their labels 1, 2, ...

    >>> number_categories(["cat", "dog"])
    (Category(id=1, name='cat'), Category(id=2, name='dog'))
    >>> number_categories({7: "dog", 3: "cat"})
    (Category(id=7, name='dog'), Category(id=3, name='cat'))

    Raises:
        ValueError: there are none, or two have one name or one id.
    """
    if isinstance(categories, str):
        raise ValueError(f"categories is the text {categories!r}; give a list of names")
    if isinstance(categories, Mapping):
        numbered = tuple(Category(number, name) for number, name in categories.items())
    else:
        numbered = tuple(Category(number, name) for number, name in enumerate(categories, start=1))
    if not numbered:
        raise ValueError("there are no categories; a detector needs one or more")
    for what, values in (
        ("name", [category.name for category in numbered]),
        ("id", [category.id for category in numbered]),
    ):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ValueError(f"two categories have the {what} {twice[0]!r}")
    return numbered


@dataclass(frozen=True)
class Keypoints:
    """The keypoints of an object.

    >>> hand = Keypoints(("wrist", "left_tip", "right_tip"), flip_pairs=((1, 2),), skeleton=((0, 1), (0, 2)))
    >>> hand.flipped_order
    (0, 2, 1)

    Args:
        names: of each.
        flip_pairs: numbers of those that change places in a mirrored image: left and right.
        sigmas: how far annotators differ, relative to the object's size, as COCO's score (OKS) takes it.
            None: unknown.
        skeleton: numbers of those that are joined in a picture.

    Raises:
        ValueError: names that occur twice, numbers that are none of a keypoint, or sigmas of another number.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] | None = None
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        for field in ("flip_pairs", "skeleton"):
            object.__setattr__(self, field, tuple((int(a), int(b)) for a, b in getattr(self, field)))
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if not self.names or twice:
            raise ValueError(f"two keypoints are called {twice[0]!r}" if twice else "there are no keypoints")
        for field in ("flip_pairs", "skeleton"):
            for pair in getattr(self, field):
                if not all(0 <= number < len(self.names) for number in pair) or pair[0] == pair[1]:
                    raise ValueError(
                        f"{field} has {pair}; each is of two keypoints, 0 to {len(self.names) - 1}"
                    )
        paired = [number for pair in self.flip_pairs for number in pair]
        if len(set(paired)) < len(paired):
            raise ValueError(f"flip_pairs {self.flip_pairs} names a keypoint twice")
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in self.sigmas))
            if len(self.sigmas) != len(self.names) or not all(sigma > 0 for sigma in self.sigmas):
                raise ValueError(
                    f"sigmas has {len(self.sigmas)} values; give one above 0 for each of the "
                    f"{len(self.names)} keypoints"
                )

    @property
    def flipped_order(self) -> tuple[int, ...]:
        """Which keypoint each one becomes in a mirrored image."""
        order = list(range(len(self.names)))
        for one, other in self.flip_pairs:
            order[one], order[other] = other, one
        return tuple(order)

    def to_dict(self) -> dict[str, Any]:
        """For a file, as JSON has it."""
        return {
            "names": list(self.names),
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "sigmas": None if self.sigmas is None else list(self.sigmas),
            "skeleton": [list(pair) for pair in self.skeleton],
        }


_SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_PERSON = Keypoints(
    names=("nose", *(f"{side}_{part}" for part in _SIDED for side in ("left", "right"))),
    flip_pairs=tuple((number, number + 1) for number in range(1, 17, 2)),
    # The values of COCO's evaluation: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
    sigmas=(
        0.026,
        *(sigma for sigma in (0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089) for _ in range(2)),
    ),
    skeleton=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
        *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
)
