"""Multi-view testing: the scores of a video are the mean over its views, 10 clips x 3 crops in the paper.

>>> from nonlocal_nn.data.sampling import CropBox
>>> frames = torch.zeros(3, 4, 6, 10, dtype=torch.uint8)                       # 4 frames of 6 x 10 pixels
>>> clips, crops = torch.tensor([[0, 1], [2, 3]]), (CropBox(0, 0, 6, 6), CropBox(0, 4, 6, 6))
>>> sample = ViewSample(frames, clips, crops, index=0, labels=torch.tensor(1))
>>> model = lambda views: views.mean((2, 3, 4))           # any callable: (batch, 3, T, H, W) -> logits
>>> score_video(model, sample).round(decimals=2).tolist()                     # softmax of equal logits
[0.33, 0.33, 0.33]

The mean is over probabilities (softmax, or sigmoid where a video has several labels), not over logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonlocal_nn._launch import launched
from nonlocal_nn._modes import evaluating
from nonlocal_nn._progress import counted
from nonlocal_nn._typing import Float
from nonlocal_nn.data.dataset import Skipped, ViewSample, collate_views
from nonlocal_nn.data.defaults import MEAN, STD
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.steady import FixedBatches, SteadyLoader
from nonlocal_nn.data.transforms import normalize
from nonlocal_nn.evaluation.config import Pool, Precision, ScoringConfig
from nonlocal_nn.evaluation.device import autocast
from nonlocal_nn.evaluation.metrics import label_ranks
from nonlocal_nn.evaluation.parts import Scored
from nonlocal_nn.evaluation.result import EvaluationResult, summarise

Model = Callable[[Tensor], Tensor]
_T = TypeVar("_T")


class ViewSource(Protocol):
    """What is tested: videos by index, each decoded once into all its views (`data.dataset.ViewDataset`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ViewSample | Skipped: ...


@dataclass(frozen=True)
class Scoring:
    """How views become scores.

    >>> Scoring(multi_label=True).views_per_batch
    8

    Attributes: multi_label: sigmoid for each class by itself; else softmax over classes. views_per_batch:
    views that go through the model together. Memory grows with it; the scores do not depend on it but for
    rounding. mean, std: of pixels in 0 .. 255, as in training. device: none: where the model's parameters
    are. precision: number format of the forward pass. pool: a video's score is the mean or the largest of
    its views', by class.
    """

    multi_label: bool = False
    views_per_batch: int = ScoringConfig.views_per_batch
    mean: float | tuple[float, ...] = MEAN
    std: float | tuple[float, ...] = STD
    device: torch.device | None = None
    precision: Precision = ScoringConfig.precision
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        if self.views_per_batch < 1:
            raise ValueError(
                f"views_per_batch = {self.views_per_batch}: at least one must go through at a time"
            )


@dataclass(frozen=True)
class VideoScores:
    """The scores of one video: `views` (views, classes), probabilities in the order of the views."""

    index: int
    labels: tuple[int, ...]
    views: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """The video's own scores (classes,)."""
        mean: NDArray[np.float64] = self.views.mean(axis=0)
        return mean

    def pooled(self, pool: Pool) -> NDArray[np.float64]:
        """The mean, or the largest of each class."""
        return self.mean if pool == "mean" else np.asarray(self.views.max(axis=0))

    @property
    def log_mean(self) -> NDArray[np.float64]:
        """The mean of the logarithms over views, by class: its differences are those of the mean logits."""
        mean: NDArray[np.float64] = np.log(self.views.clip(min=np.finfo(np.float64).tiny)).mean(axis=0)
        return mean


def score_views(
    model: Model, sample: ViewSample, scoring: Scoring = Scoring()
) -> Float[Tensor, "view class"]:
    """The scores of each view of one video, in [0, 1], on the CPU in float64.

    The model is in evaluation mode meanwhile.
    Raises ValueError where the model does not give one row of class scores a view, or gives scores that are
    no numbers.
    """
    device = _device_of(model) if scoring.device is None else scoring.device
    scores = []
    with torch.inference_mode(), evaluating(model):
        for views in sample.batches(scoring.views_per_batch):
            video = normalize(views.to(device), scoring.mean, scoring.std)
            with autocast(device, scoring.precision):
                logits = model(video)
            if logits.ndim != 2 or len(logits) != len(views):
                raise ValueError(
                    f"the model gave {tuple(logits.shape)} for {len(views)} views; "
                    "it must give (batch, classes) logits"
                )
            logits = logits.cpu().double()  # so that the logarithm of a score is as exact as the logits
            scores.append(logits.sigmoid() if scoring.multi_label else logits.softmax(dim=1))
    together = torch.cat(scores)
    if not together.isfinite().all():
        narrow = "" if scoring.precision == "32" else f" or {scoring.precision} is too narrow for them"
        raise ValueError(f"the model's scores are not all finite numbers: its weights are broken{narrow}")
    return together


def score_video(model: Model, sample: ViewSample, scoring: Scoring = Scoring()) -> Float[Tensor, "class"]:
    """The mean of `score_views` over the views: (classes,); with softmax it sums to one.

    >>> from nonlocal_nn.data.sampling import CropBox
    >>> frames = torch.randint(256, (3, 4, 6, 6), dtype=torch.uint8)
    >>> clips = torch.tensor([[0, 1], [2, 3]])
    >>> sample = ViewSample(frames, clips, (CropBox(0, 0, 6, 6),), 0, torch.tensor(1))
    >>> score_video(lambda views: views.mean((2, 3, 4)), sample).sum().round(decimals=6).item()
    1.0

    Raises what `score_views` raises.
    """
    return score_views(model, sample, scoring).mean(dim=0)


# All frames of the views of one video: 10 clips of 32 frames of 256 x 456 pixels take 112 MB.
_LARGEST_VIDEO_BYTES = 128 * 2**20


def score_dataset(
    model: Model,
    dataset: ViewSource,
    scoring: Scoring = Scoring(),
    *,
    only: Sequence[int] | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Iterator[VideoScores | Skipped]:
    """Every video of a set in order, scored or skipped with its reason; `only`: those at these places.

    `workers` processes decode while the model works; none: see `share_cores`; 0: no processes. At most two
    decoded videos a worker are in memory at once.
    Raises ValueError for a negative number of workers and what `score_views` raises.
    """
    device = _device_of(model) if scoring.device is None else scoring.device
    places = range(len(dataset)) if only is None else only
    cores = launched().cores
    share = share_cores(cores, len(places), model_on_cpu=device.type == "cpu")
    workers = share if workers is None else workers
    if workers < 0:
        raise ValueError(f"workers = {workers}: 0 or more processes can decode")
    loader: SteadyLoader[ViewSample | Skipped] = SteadyLoader(
        dataset,
        FixedBatches(places, 1),
        collate_views,
        batch_bytes=_LARGEST_VIDEO_BYTES,
        workers=workers,
        prefetch=1,
    )
    threads = torch.get_num_threads()
    try:
        if workers and device.type == "cpu":
            torch.set_num_threads(max(1, min(threads, cores - workers)))
        for item in counted(loader, len(places), "scoring", shown=progress):
            if isinstance(item, Skipped):
                yield item
            else:
                scores = score_views(model, item, scoring).numpy()
                yield VideoScores(item.index, _label_numbers(item.labels), scores)
    finally:
        loader.close()
        torch.set_num_threads(threads)


def share_cores(cores: int, videos: int, *, model_on_cpu: bool) -> int:
    """How many processes should decode.

    >>> share_cores(2, 100, model_on_cpu=True), share_cores(16, 100, model_on_cpu=True)
    (1, 4)
    >>> share_cores(16, 100, model_on_cpu=False), share_cores(16, 1, model_on_cpu=False)
    (8, 0)

    A model on the CPU keeps most of the cores: threads that wait for each other while other processes hold
    their cores are slower than one thread alone (measured on 2 busy cores: a hundred times).
    """
    if cores == 1 or videos <= 1:
        return 0
    return min(videos, 8, max(1, cores // 4) if model_on_cpu else cores)


class NothingTestedError(ValueError):
    """Not one video could be read; `skipped` says why, each in turn."""

    def __init__(self, message: str, skipped: tuple[Problem, ...]) -> None:
        super().__init__(message)
        self.skipped = skipped


def evaluate(
    model: Model,
    dataset: ViewSource,
    scoring: Scoring = Scoring(),
    *,
    workers: int | None = None,
    progress: bool = False,
) -> EvaluationResult:
    """Test a model on labelled videos: clip and video accuracy in one pass, or mean average precision.

    >>> from nonlocal_nn.data.sampling import CropBox
    >>> def shade(value, label, index):             # a video of 2 frames, one grey value each; 2 clips
    ...     frames = torch.tensor(value, dtype=torch.uint8).expand(3, 1, 1, 2).permute(0, 3, 1, 2)
    ...     clips, crops = torch.tensor([[0], [1]]), (CropBox(0, 0, 1, 1),)
    ...     return ViewSample(frames, clips, crops, index, torch.tensor(label))
    >>> videos = [shade([0, 40], 0, 0), shade([120, 200], 1, 1), shade([0, 150], 1, 2)]
    >>> model = lambda views: views[:, :2, 0, 0, 0] * torch.tensor([-1.0, 1.0])              # dark or bright
    >>> result = evaluate(model, videos)
    >>> round(result.clip_top1, 1), round(result.video_top1, 1)
    (83.3, 66.7)

    The model is put into evaluation mode and back. Broken videos are in no figure and listed in `skipped`.
    `clip_*` count each view by itself, `video_*` the mean over a video's views. With `multi_label` there is
    `map` alone.
    Raises ValueError when no video could be read, when a video's labels do not fit the model's classes, and
    for what `score_dataset` refuses.
    """
    items = score_dataset(model, dataset, scoring, workers=workers, progress=progress)
    return joined(pooled(items, scoring), scoring)


def pooled(
    items: Iterable[VideoScores | Skipped], scoring: Scoring, *, labelled: bool = True
) -> Iterator[Scored | Skipped]:
    """What is kept of each video's scores, with the places of the true class where they are labelled."""
    for item in items:
        if isinstance(item, Skipped):
            yield item
            continue
        ranks = np.empty(0, np.int64)
        if labelled:
            _check_labels(item, scoring.multi_label)
            if not scoring.multi_label:
                ranks = label_ranks(item.views, np.full(len(item.views), item.labels[0]))
        scores = item.pooled(scoring.pool)
        yield Scored(item.index, item.labels, scores, item.log_mean, ranks, len(item.views))


def joined(items: Iterable[Scored | Skipped], scoring: Scoring) -> EvaluationResult:
    """The figures of all videos of a set, whoever scored them.

    Raises NothingTestedError where no video could be read.
    """
    scored: list[Scored] = []
    skipped: list[Problem] = []
    for item in items:
        if isinstance(item, Skipped):
            skipped.append(item.problem)
        else:
            scored.append(item)
    if not scored:
        first = f"; the first: {skipped[0]}" if skipped else ""
        raise NothingTestedError(f"none of the {len(skipped)} videos could be tested{first}", tuple(skipped))
    return summarise(
        scores=np.stack([one.scores for one in scored]),
        log_scores=np.stack([one.log_scores for one in scored]),
        labels=tuple(one.labels for one in scored),
        indices=tuple(one.index for one in scored),
        view_ranks=None if scoring.multi_label else np.concatenate([one.view_ranks for one in scored]),
        views=sum(one.views for one in scored),
        skipped=tuple(skipped),
    )


def _label_numbers(labels: Tensor) -> tuple[int, ...]:
    """One number, several, or a row of zeros and ones (`data.dataset.ViewSample.labels`): as numbers."""
    numbers = labels.nonzero() if labels.is_floating_point() else labels
    return tuple(numbers.reshape(-1).tolist())


def _check_labels(item: VideoScores, multi_label: bool) -> None:
    classes = item.views.shape[1]
    outside = [label for label in item.labels if not 0 <= label < classes]
    if outside:
        raise ValueError(
            f"video {item.index} of the set has label {outside[0]}, but the model has {classes} classes "
            f"(0 to {classes - 1}): test on the classes it was trained on"
        )
    if not multi_label and len(item.labels) != 1:
        raise ValueError(
            f"video {item.index} of the set has {len(item.labels)} labels {item.labels}: accuracy needs "
            "exactly one; test with multi_label for mean average precision"
        )


def _device_of(model: Model) -> torch.device:
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device
