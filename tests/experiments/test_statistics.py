"""The statistics, with scipy and simulations as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nonlocal_nn.experiments.statistics import (
    bootstrap_interval,
    bootstrap_seeds_and_groups,
    difference,
    half_width,
    holm,
    sign_flip_p,
    smallest_difference,
    word_for,
)


def test_the_interval_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 5, 12):
        a, b = rng.normal(size=(2, n))
        found = difference(list(a), list(b))
        theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
        assert found.standard_deviation == pytest.approx(np.std(a - b, ddof=1))


def test_five_seeds() -> None:
    assert half_width(5) == pytest.approx(1.2417, abs=1e-3)
    assert smallest_difference(5) == pytest.approx(1.68, abs=0.02)
    assert smallest_difference(5, comparisons=4) == pytest.approx(2.5, abs=0.06)
    assert sign_flip_p([0.1, 3, 7, 9, 2]) == 0.0625
    assert sign_flip_p([1] * 6) == 0.03125


def test_the_t_interval_covers_and_a_bootstrap_over_five_does_not() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(20_000, 5))
    half = half_width(5) * samples.std(axis=1, ddof=1)
    assert (np.abs(samples.mean(axis=1)) <= half).mean() == pytest.approx(0.95, abs=0.006)
    drawn = rng.integers(5, size=(400, 5))
    means = samples[:4000][:, drawn].mean(axis=2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.837, abs=0.02)


def test_power_by_simulation() -> None:
    rng = np.random.default_rng(2)
    samples = rng.normal(loc=smallest_difference(5), size=(20_000, 5))
    p = stats.ttest_1samp(samples, 0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_sign_flips_are_scipys_permutations() -> None:
    rng = np.random.default_rng(3)
    for n in (2, 3, 6):
        d = rng.normal(size=n) + 0.5
        theirs = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert sign_flip_p(d) == pytest.approx(theirs.pvalue)


def test_holm_is_the_textbooks() -> None:
    p = [0.001, 0.008, 0.039, 0.041, 0.9]
    assert holm(p) == pytest.approx([0.005, 0.032, 0.117, 0.117, 0.9])
    assert holm(p[::-1]) == pytest.approx([0.9, 0.117, 0.117, 0.032, 0.005])
    assert holm([]) == []


def test_groups_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    by_quartet = np.repeat(rng.integers(2, size=50), 4).astype(float)
    quartets = np.repeat(np.arange(50), 4).tolist()
    grouped = bootstrap_interval(by_quartet.tolist(), quartets)
    single = bootstrap_interval(by_quartet.tolist(), list(range(200)))
    assert grouped[1] - grouped[0] > 1.7 * (single[1] - single[0])
    both = bootstrap_seeds_and_groups(np.stack([by_quartet] * 3), quartets)
    assert both == pytest.approx(grouped, abs=0.03)  # equal seeds add nothing


@pytest.mark.parametrize(
    ("by_seed", "paper", "word"),
    [
        ([2, 2.5, 3, 2, 2.2], +1, "agrees"),
        ([2, 2.5, 3, 2, 2.2], -1, "contradicts"),
        ([5, 0.1, 0.2, 0.1, -0.1], +1, "leans"),
        ([5, 0.1, 0.2, -0.2, -0.1], +1, "open"),
        ([-5, 0.1, 0.2, 0.2, 0.1], +1, "open"),
        ([0, 0, 0, 0, 0], +1, "open"),
    ],
)
def test_words(by_seed: list[float], paper: float, word: str) -> None:
    assert word_for(difference(by_seed, [0.0] * 5), paper) == word


def test_what_cannot_be_is_refused() -> None:
    for a, b, reason in (
        ([1.0], [1.0], "2 or more"),
        ([1.0, 2.0], [1.0], "2 or more"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "the same seeds"),
        ([1.0, np.nan], [1.0, 2.0], "no numbers: nan"),
    ):
        with pytest.raises(ValueError, match=reason):
            difference(a, b)
    with pytest.raises(ValueError, match="no direction"):
        word_for(difference([1.0, 2.0], [0.0, 0.0]), 0)
    with pytest.raises(ValueError, match=r"p = 1\.5"):
        holm([1.5])
    with pytest.raises(ValueError, match="one group alone"):
        bootstrap_interval([1.0, 0.0], ["a", "a"])
    with pytest.raises(ValueError, match="2 figures and 1 groups"):
        bootstrap_interval([1.0, 0.0], ["a"])
    with pytest.raises(ValueError, match=r"\(seeds, videos\)"):
        bootstrap_seeds_and_groups([1.0], ["a"])
    with pytest.raises(ValueError, match="1 seed"):
        smallest_difference(1)
