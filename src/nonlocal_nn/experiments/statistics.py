"""What a few seeds allow one to say: paired differences, their spread, and fixed words for a comparison.

Seeds are few, so the interval is Student's t over the differences by seed: of five it covers the mean
in 95.0 % of normal samples, where a percentile bootstrap covers 83.7 % (both in the tests). Within one run
the unit is a quartet or fold, never a single video: the four videos of a quartet share their pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Word = Literal["agrees", "leans", "open", "contradicts"]
Floats = NDArray[np.float64]

_MOST_SEEDS = 20  # 2^20 signs are flipped one by one


@dataclass(frozen=True)
class Difference:
    """A variant minus the baseline, seed by seed.

    Attributes:
        by_seed: the differences.
        mean, standard_deviation: of them; the deviation is the sample's (n - 1).
        low, high: the 95 % t interval of the mean.
        p: of the exact sign-flip test, two-sided: the share of the 2^n ways to sign the differences whose
            mean is at least as far from zero.
        same_sign: how many seeds have the mean's sign.
    """

    by_seed: tuple[float, ...]
    mean: float
    standard_deviation: float
    low: float
    high: float
    p: float
    same_sign: int

    @property
    def seeds(self) -> int:
        return len(self.by_seed)


def difference(variant: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Difference:
    """The paired difference of two rows of figures, one for each seed, in the same order.

    >>> found = difference([87.0, 90.0, 88.0, 91.0, 89.0], [50.0] * 5)
    >>> found.mean, round(found.low, 2), round(found.high, 2), found.p, found.same_sign
    (39.0, 37.04, 40.96, 0.0625, 5)

    Raises:
        ValueError: fewer than two seeds, rows of different lengths, figures that are no numbers.
    """
    a, b = _row(variant), _row(baseline)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} figures: a paired difference needs the same seeds in both")
    by_seed = a - b
    n = len(by_seed)
    mean, deviation = float(by_seed.mean()), float(by_seed.std(ddof=1))
    half = half_width(n, confidence) * deviation
    sign = math.copysign(1.0, mean) if mean else 0.0
    return Difference(
        by_seed=tuple(float(d) for d in by_seed),
        mean=mean,
        standard_deviation=deviation,
        low=mean - half,
        high=mean + half,
        p=sign_flip_p(by_seed),
        same_sign=int((np.sign(by_seed) == sign).sum()) if sign else 0,
    )


def half_width(seeds: int, confidence: float = 0.95) -> float:
    """Half of the t interval of a mean, in standard deviations.

    >>> round(half_width(5), 2)
    1.24
    """
    from scipy import stats

    if seeds < 2:
        raise ValueError(f"{seeds} seed: a spread needs two or more")
    return float(stats.t.ppf((1 + confidence) / 2, seeds - 1) / math.sqrt(seeds))


def sign_flip_p(differences: ArrayLike) -> float:
    """The exact two-sided p of "the differences are as likely to have the other sign".

    >>> sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0])          # five seeds: never less
    0.0625
    >>> sign_flip_p([0.0, 0.0])
    1.0

    Raises:
        ValueError: no or more than 20 differences.
    """
    d = _row(differences, least=1)
    if len(d) > _MOST_SEEDS:
        raise ValueError(f"{len(d)} differences: all signs of at most {_MOST_SEEDS} are gone through")
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(float(d.sum()))
    return float((np.abs(sums) >= observed - 1e-12 * np.abs(d).sum()).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of several comparisons: below 0.05 where one of them is safe to tell.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Raises:
        ValueError: a p outside of 0 to 1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"p = {p}: from 0 to 1")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def smallest_difference(seeds: int, *, comparisons: int = 1, power: float = 0.8) -> float:
    """The least true difference that so many seeds find with such a power, in standard deviations.

    Of a two-sided t test at level 0.05 / comparisons (Holm's first step).

    >>> round(smallest_difference(5), 1), round(smallest_difference(5, comparisons=4), 1)
    (1.7, 2.5)

    Raises:
        ValueError: fewer than two seeds, no comparison, a power outside of 0 to 1.
    """
    from scipy import optimize, stats

    if comparisons < 1 or not 0 < power < 1:
        raise ValueError(f"comparisons = {comparisons}, power = {power}: 1 or more, and between 0 and 1")
    if seeds < 2:
        raise ValueError(f"{seeds} seed: a spread needs two or more")
    bound = stats.t.ppf(1 - 0.05 / comparisons / 2, seeds - 1)
    # The sample's own deviation, at evenly spaced quantiles: the noncentral t distribution by parts.
    deviations = np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, seeds - 1) / (seeds - 1))

    def short_of(effect: float) -> float:
        shift = effect * math.sqrt(seeds)
        found = stats.norm.sf(bound * deviations - shift) + stats.norm.cdf(-bound * deviations - shift)
        return float(found.mean() - power)

    return float(optimize.brentq(short_of, 0.0, 1000.0))


def bootstrap_interval(
    right: Sequence[float], groups: Sequence[object], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of the mean of one run's videos or quartets, drawn anew by group.

    >>> low, high = bootstrap_interval([1.0, 0.0] * 50, [number // 2 for number in range(100)])
    >>> low, high                                            # every group has one right, one wrong
    (0.5, 0.5)

    Args:
        right: 1 or 0 (or one half, a tie) for each.
        groups: which quartet or fold each belongs to: whole groups are drawn.

    Raises:
        ValueError: no figures, other lengths, one group alone.
    """
    values = _row(right, least=1)
    sums, counts = _by_group(values, groups)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_seeds_and_groups(
    right: ArrayLike, groups: Sequence[object], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds and groups together, both drawn anew. Conservative.

    Counting both spreads covers more than it says (98.5 % of samples, simulated): prefer the t interval over
    seeds, which speaks of new seeds on these videos.

    Args:
        right: (seeds, videos), of a figure or of a difference between two networks.
        groups: of each video.

    Raises:
        ValueError: no figures, other lengths, one group alone.
    """
    table = np.asarray(right, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"right has the shape {table.shape}: (seeds, videos)")
    by_seed = [_by_group(row, groups) for row in table]
    sums, counts = np.stack([s for s, _ in by_seed]), by_seed[0][1]
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):
        seeds, drawn = rng.integers(len(sums), size=len(sums)), rng.integers(len(counts), size=len(counts))
        means[i] = sums[np.ix_(seeds, drawn)].sum() / (counts[drawn].sum() * len(sums))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def word_for(found: Difference, paper: float) -> Word:
    """Whether a difference has the direction that the paper reports.

    >>> word_for(difference([52.0, 53.0, 54.0, 53.0, 52.5], [50.0] * 5), paper=+0.9)
    'agrees'
    >>> word_for(difference([52.0, 49.0, 54.0, 50.5, 50.5], [50.0] * 5), paper=+0.9)
    'leans'

    agrees: the same sign, and the 95 % interval leaves out zero; leans: the same sign in the mean and in at
    least four of five seeds; contradicts: the other sign, and the interval leaves out zero; open: all else.

    Raises:
        ValueError: the paper reports no direction (a difference of zero).
    """
    if paper == 0:
        raise ValueError("the paper's difference is 0: there is no direction to compare with")
    same = found.mean * paper > 0
    off_zero = found.low > 0 or found.high < 0
    if off_zero:
        return "agrees" if same else "contradicts"
    return "leans" if same and found.same_sign >= math.ceil(0.8 * found.seeds) else "open"


def _row(values: ArrayLike, least: int = 2) -> Floats:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or len(row) < least:
        raise ValueError(f"figures of shape {row.shape}: one for each seed, {least} or more")
    if not np.isfinite(row).all():
        raise ValueError(f"figures that are no numbers: {row[~np.isfinite(row)][0]}")
    return row


def _by_group(values: Floats, groups: Sequence[object]) -> tuple[Floats, Floats]:
    """Sum and number of the values of each group."""
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} figures and {len(groups)} groups: one for each")
    keys: dict[object, int] = {}
    places = [keys.setdefault(group, len(keys)) for group in groups]
    if len(keys) < 2:
        raise ValueError("one group alone: what could be drawn anew?")
    sums: Floats = np.bincount(places, weights=values).astype(np.float64)
    counts: Floats = np.bincount(places).astype(np.float64)
    return sums, counts
