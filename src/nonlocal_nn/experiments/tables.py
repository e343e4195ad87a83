"""The paper's ablations as data: variants, baseline, set, budget, the paper's figures, what is expected.

>>> table = get_table("2a")
>>> [variant.name for variant in table.variants]
['C2D', 'gaussian', 'embedded gaussian', 'dot product', 'concatenation']
>>> table.paper_difference("gaussian", "C2D")
0.7

The networks are the paper's in small (`c2d_small`: one feature sees 25 pixels of one frame), the videos are
the long-range set (`data/long_range.py`), so that every table runs on two CPU cores; `nonlocal ablate --data`
runs the same variants on any labelled set. What is compared with the paper is the direction of a difference,
never its size: `comparisons` says which, and stood here before any of them was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nonlocal_nn.data.long_range import LongRange
from nonlocal_nn.models.catalog import get_spec
from nonlocal_nn.models.spec import VideoResNetSpec


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row: a network as changes to one of the catalog.

    Attributes:
        name: in the table.
        model, options: name in the catalog, and changes to its spec.
        paper: the paper's top-1 on Kinetics-400, ResNet-50; None where it has no such row.
        question: what it is asked; None: what the table asks.
        clip_frames: frames that the network sees at once.
        clips: of a test video, their log odds averaged.
    """

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: float | None = None
    question: LongRange | None = None
    clip_frames: int = 8
    clips: int = 1

    @property
    def spec(self) -> VideoResNetSpec:
        return get_spec(self.model, **self.options)


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a table about images trains on.

    Attributes:
        count: of the training images, the same for every variant and seed.
        side: rows and columns of pixels; larger images are averaged down.
        batch: images of a step.
    """

    count: int
    side: int = 16
    batch: int = 50


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its variants, what they are asked, and what the paper says of them.

    Attributes:
        name: as in `nonlocal ablate NAME`.
        title: one line.
        claim: the paper's sentence, or what is asked where the paper is silent.
        question: the set; None where the table is about images.
        images: of a table about images, which the user names.
        variants: rows, the baseline first.
        comparisons: (variant, other): whether variant minus other has the paper's direction.
        steps: of training, 32 clips each, or a batch of images.
    """

    name: str
    title: str
    claim: str
    question: LongRange | None = None
    images: Images | None = None
    variants: tuple[Variant, ...]
    comparisons: tuple[tuple[str, str], ...]
    steps: int = 500

    def __post_init__(self) -> None:
        if (self.question is None) == (self.images is None):
            raise ValueError(f"table {self.name}: either a question on videos or images")

    def __getitem__(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)

    @property
    def shown(self) -> str:
        """What its networks see: videos or images."""
        return "videos" if self.images is None else "images"

    def question_of(self, variant: Variant) -> LongRange:
        """Of a table about videos."""
        question = variant.question or self.question
        if question is None:
            raise ValueError(f"table {self.name} is about images")
        return question

    def paper_difference(self, name: str, other: str) -> float | None:
        """In points of top-1 on Kinetics; None where the paper lacks one of the two."""
        a, b = self[name].paper, self[other].paper
        return None if a is None or b is None else round(a - b, 1)


# Far in space, in time, in both, and near in time (within the reach of an I3D); six inks and three
# distractors, since two inks are solved by every function and tell nothing.
FAR = LongRange(
    space=(38, 0, 38, 0), time=(0, 6, 6, 3), classes=6, distractors=3, train_videos=1440, test_videos=640
)
LONGER = LongRange(
    space=(38, 0, 0), time=(0, 6, 12), classes=2, frames=16, train_videos=1440, test_videos=600
)
APART_IN_SPACE = LongRange(
    space=(12, 16, 20, 24, 28, 32, 35, 38), time=(0,), train_videos=1440, test_videos=960
)
APART_IN_TIME = LongRange(space=(0,), time=(2, 3, 4, 5, 6), train_videos=1440, test_videos=600)

KINDS = LongRange(space=(38, 0, 38), time=(0, 6, 6), train_videos=1440, test_videos=600)
ANY_DISTANCE = LongRange(
    space=(12, 24, 38, 0, 0, 12, 24, 38, 38),
    time=(0, 0, 0, 3, 6, 3, 3, 3, 6),
    token="digit",
    classes=10,  # two digits, 0 and 1, are learned as easily as two inks
    train_videos=1440,
    test_videos=720,
)

_C2D = Variant(name="C2D", model="c2d_small", paper=71.8)
_NL = "c2d_small_nl"
_DEEP: dict[str, Any] = {"stage_blocks": (2, 3)}


def _nl(name: str, paper: float | None = None, **options: Any) -> Variant:
    return Variant(name=name, model=_NL, options=options, paper=paper)


# Squeeze-and-excitation in a ResNet-14 of widths 16, 32 and 64: 10,000 images, 4 epochs.
_PLAIN: dict[str, Any] = {
    "stage_blocks": (1, 2, 1),
    "stage_strides": (1, 2, 2),
    "base_width": 16,
    "stem": "small_image",
    "crop": 16,
    "se_reduction": None,
}
_EXCITATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("standard", {}),
    ("pre", {"se_placement": "pre"}),
    ("post", {"se_placement": "post"}),
    ("identity", {"se_placement": "identity"}),
    ("reduction 2", {"se_reduction": 2}),
    ("reduction 8", {"se_reduction": 8}),
    ("reduction 16", {"se_reduction": 16}),
    ("max pooling", {"se_pool": "max"}),
)


def _excited(name: str, options: Mapping[str, Any]) -> Variant:
    return Variant(name=name, model="seresnet50", options={**_PLAIN, "se_reduction": 4, **options})


def _excitation(name: str, title: str, images: int, steps: int) -> Table:
    names = [name for name, _ in _EXCITATIONS]
    return Table(
        name=name,
        title=title,
        claim="every place but after the addition does as well as the standard one, the reduction matters "
        "little, and the average does a little better than the maximum",
        images=Images(count=images),
        variants=(
            Variant(name="none", model="seresnet50", options=_PLAIN),
            *(_excited(name, options) for name, options in _EXCITATIONS),
        ),
        comparisons=(
            *_against("none", *names),
            *_against("standard", *names[1:]),
        ),
        steps=steps,
    )


def _against(first: str, *others: str) -> tuple[tuple[str, str], ...]:
    return tuple((other, first) for other in others)


_TABLES = (
    Table(
        name="2a",
        title="Pairwise functions: one block",
        claim="all four are better than the baseline, and alike: the function is not the key",
        question=FAR,
        variants=(
            _C2D,
            _nl("gaussian", 72.5, pairwise="gaussian"),
            _nl("embedded gaussian", 72.7),
            _nl("dot product", 72.9, pairwise="dot_product"),
            _nl("concatenation", 72.8, pairwise="concatenation"),
        ),
        comparisons=(
            *_against("C2D", "gaussian", "embedded gaussian", "dot product", "concatenation"),
            *_against("embedded gaussian", "gaussian", "dot product", "concatenation"),
        ),
    ),
    Table(
        name="2b",
        title="Stages: one block",
        claim="res2, res3 and res4 gain alike (res5 less); this network has res2 and res3",
        question=FAR,
        variants=(_C2D, _nl("res2", 72.7, nonlocal_after={"res2": (0,)}), _nl("res3", 72.9)),
        comparisons=(*_against("C2D", "res2", "res3"), ("res3", "res2")),
    ),
    Table(
        name="2c",
        title="Number of blocks, in a deeper network (2 and 3 residual blocks)",
        claim="more blocks are better",
        question=FAR,
        variants=(
            Variant(name="C2D", model="c2d_small", options=_DEEP, paper=71.8),
            Variant(
                name="1 block", model=_NL, options={**_DEEP, "nonlocal_after": {"res3": (1,)}}, paper=72.7
            ),
            Variant(
                name="5 blocks",
                model=_NL,
                options={**_DEEP, "nonlocal_after": {"res2": (0, 1), "res3": (0, 1, 2)}},
                paper=73.8,
            ),
        ),
        comparisons=(*_against("C2D", "1 block", "5 blocks"), ("5 blocks", "1 block")),
    ),
    Table(
        name="2d",
        title="Space, time, spacetime: one block",
        claim="all are better than the baseline, and spacetime is best",
        question=FAR,
        variants=(
            _C2D,
            _nl("space", 72.9, span="space"),
            _nl("time", 73.1, span="time"),
            _nl("spacetime", 73.8),
        ),
        comparisons=(
            *_against("C2D", "space", "time", "spacetime"),
            ("spacetime", "space"),
            ("spacetime", "time"),
        ),
    ),
    Table(
        name="2e",
        title="Non-local against 3D convolution: accuracy and cost",
        claim="non-local C2D is better than I3D, with fewer multiply-adds",
        question=FAR,
        variants=(
            _C2D,
            Variant(name="I3D 3x3x3", model="i3d_small", options={"inflation": "3x3x3"}, paper=73.2),
            Variant(name="I3D 3x1x1", model="i3d_small", paper=73.3),
            _nl("NL C2D", 73.8),
        ),
        comparisons=(
            *_against("C2D", "I3D 3x3x3", "I3D 3x1x1", "NL C2D"),
            ("NL C2D", "I3D 3x3x3"),
            ("NL C2D", "I3D 3x1x1"),
        ),
    ),
    Table(
        name="2f",
        title="Blocks in an I3D",
        claim="non-local and 3D convolution are complementary: the non-local I3D is best",
        question=FAR,
        variants=(
            _C2D,
            Variant(name="I3D", model="i3d_small", paper=73.3),
            Variant(name="NL I3D", model="i3d_small_nl", paper=74.9),
        ),
        comparisons=(*_against("C2D", "I3D", "NL I3D"), ("NL I3D", "I3D")),
    ),
    Table(
        name="2g",
        title="Longer clips: 8 and 16 frames of videos of 16",
        claim="all are better on longer clips, and blocks help there as on short ones",
        question=LONGER,
        variants=(
            Variant(name="I3D, 8 frames", model="i3d_small", paper=73.3, clips=3),
            Variant(name="NL I3D, 8 frames", model="i3d_small_nl", paper=74.9, clips=3),
            Variant(name="I3D, 16 frames", model="i3d_small", paper=74.9, clip_frames=16),
            Variant(name="NL I3D, 16 frames", model="i3d_small_nl", paper=76.5, clip_frames=16),
        ),
        comparisons=(
            ("I3D, 16 frames", "I3D, 8 frames"),
            ("NL I3D, 16 frames", "NL I3D, 8 frames"),
            ("NL I3D, 8 frames", "I3D, 8 frames"),
            ("NL I3D, 16 frames", "I3D, 16 frames"),
        ),
    ),
    Table(
        name="distance",
        title="Accuracy against distance, in space (one frame) and in time (one place)",
        claim="a non-local network relates what convolutions cannot reach",
        question=APART_IN_SPACE,
        variants=(
            Variant(name="C2D, in space", model="c2d_small"),
            Variant(name="NL C2D, in space", model=_NL),
            Variant(name="I3D, in time", model="i3d_small", question=APART_IN_TIME),
            Variant(name="NL C2D, in time", model=_NL, question=APART_IN_TIME),
        ),
        comparisons=(("NL C2D, in space", "C2D, in space"), ("NL C2D, in time", "I3D, in time")),
        steps=250,
    ),
    Table(
        name="far",
        title="Two inks, nothing in the way: far in space, in time, in both",
        claim="a block relates what lies in its span, and nothing else does",
        question=KINDS,
        variants=(
            Variant(name="C2D", model="c2d_small"),
            Variant(name="I3D", model="i3d_small"),
            _nl("space block", span="space"),
            _nl("time block", span="time"),
            _nl("spacetime block"),
        ),
        comparisons=_against("C2D", "space block", "time block", "spacetime block"),
        steps=250,
    ),
    Table(
        name="digit",
        title="The harder dial: which digit, instead of which ink",
        claim="what is not learned in this budget, even within reach?",
        question=ANY_DISTANCE,
        variants=(
            Variant(
                name="C2D, 12 px",
                model="c2d_small",
                question=replace(ANY_DISTANCE, space=(12,), time=(0,), test_videos=480),
            ),
            Variant(
                name="I3D, 3 frames",
                model="i3d_small",
                question=replace(ANY_DISTANCE, space=(0,), time=(3,), test_videos=480),
            ),
            _nl("spacetime block, nine distances"),
        ),
        comparisons=(),
        steps=600,
    ),
    Table(
        name="scale",
        title="What the paper left open: scaled logits",
        claim="is theta . phi to be divided by the root of its length, as in attention?",
        question=FAR,
        variants=(_nl("unscaled"), _nl("scaled", scale=True)),
        comparisons=(("scaled", "unscaled"),),
    ),
    Table(
        name="subsample",
        title="What the paper left open: where keys are pooled",
        claim="after the embeddings (the paper's text), before them (the released code), or not at all?",
        question=FAR,
        variants=(
            _nl("after the embeddings"),
            _nl("before them", subsample_at="input"),
            _nl("not at all", subsample=False),
        ),
        comparisons=_against("after the embeddings", "before them", "not at all"),
    ),
    Table(
        name="start",
        title="What the paper left open: how a block starts",
        claim="a norm with gamma 0, W_z itself at 0, or the released code's small weights?",
        question=FAR,
        variants=(
            _nl("gamma 0"),
            _nl("W_z 0", nonlocal_norm=None),
            _nl("gamma 0, small weights", nonlocal_init="released"),
        ),
        comparisons=_against("gamma 0", "W_z 0", "gamma 0, small weights"),
    ),
    Table(
        name="groups",
        title="What the paper left open: temporal groups",
        claim="what do blocks lose that see the clip in groups of frames?",
        question=FAR,
        variants=(
            _nl("one group"),
            _nl("2 groups", temporal_groups={"res3": 2}),
            _nl("4 groups", temporal_groups={"res3": 4}),
        ),
        comparisons=_against("one group", "2 groups", "4 groups"),
    ),
    _excitation("se", "Squeeze-and-excitation: place, reduction, pooling", images=10_000, steps=800),
    _excitation("se-long", "The same, twice the images and eight times the steps", images=20_000, steps=6400),
)
TABLES: dict[str, Table] = {table.name: table for table in _TABLES}


def get_table(name: str) -> Table:
    """The table of a name.

    >>> get_table("2f").title
    'Blocks in an I3D'

    Raises:
        ValueError: no such table; the names there are.
    """
    if name not in TABLES:
        raise ValueError(f"no table is called {name!r}; the tables are {', '.join(TABLES)}")
    return TABLES[name]
