"""Statistics of runs: hand-worked numbers, and SciPy as the oracle of the intervals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from stormlit.reports.statistics import (
    AGGREGATES,
    Estimate,
    estimate,
    interquartile_mean,
    interval,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    sign_flip_probability,
)

# Three tasks of different numbers of runs.
SCORES = [np.array([0.0, 0.2, 0.4]), np.array([1.0, 3.0]), np.array([0.5, 0.7, 0.9, 0.7])]


def test_aggregates_by_hand() -> None:
    assert mean(SCORES) == pytest.approx((0.2 + 2.0 + 0.7) / 3)
    assert median(SCORES) == pytest.approx(0.7)
    # Nine runs, two off at each end: 0, 0.2 | 0.4, 0.5, 0.7, 0.7, 0.9 | 1, 3.
    assert interquartile_mean(SCORES) == pytest.approx((0.4 + 0.5 + 0.7 + 0.7 + 0.9) / 5)
    assert optimality_gap(SCORES) == pytest.approx(1 - (0.2 + 1.0 + 0.7) / 3)


def test_profiles_and_improvement_by_hand() -> None:
    profile = performance_profile(SCORES, np.array([-1.0, 0.4, 0.7, 3.0]))
    assert profile == pytest.approx([1.0, (0 + 1 + 1) / 3, (0 + 1 + 1 / 4) / 3, 0.0])
    base = [np.array([0.1]), np.array([3.0, 4.0]), np.array([0.7, 0.0])]
    # Of the pairs: 2 of 3; one tie of 4; 0.5: 1, 0.7: 1.5, 0.9: 2, 0.7: 1.5 of 8.
    assert probability_of_improvement(SCORES, base) == pytest.approx((2 / 3 + 0.5 / 4 + 6 / 8) / 3)
    assert probability_of_improvement(SCORES, SCORES) == pytest.approx(0.5)


@pytest.mark.parametrize("name", AGGREGATES)
def test_statistics_take_resampled_tables_one_by_one(name: str) -> None:
    random = np.random.default_rng(3)
    tables = [random.standard_normal((6, 3)), random.standard_normal((6, 5))]
    one_by_one = [AGGREGATES[name]([task[row] for task in tables]) for row in range(6)]
    assert AGGREGATES[name](tables) == pytest.approx(one_by_one)


@pytest.mark.parametrize("name", AGGREGATES)
def test_intervals_are_scipys_stratified_bootstrap(name: str) -> None:
    """SciPy draws each sample anew by itself, which is what stratified means. Both are random: 50,000 draws each."""
    scores = [np.random.default_rng(seed).gamma(2.0, 0.3 + 0.2 * seed, size=5) for seed in range(6)]
    statistic = AGGREGATES[name]
    oracle = scipy.stats.bootstrap(
        scores,
        lambda *tasks, axis: statistic(tasks),
        method="percentile",
        n_resamples=50_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = interval(statistic, scores, draws=50_000)
    assert found is not None
    assert found == pytest.approx([oracle.low, oracle.high], abs=0.02 * (oracle.high - oracle.low) + 1e-9)


def test_two_tables_are_drawn_apart() -> None:
    scores = [np.random.default_rng(seed).standard_normal(8) for seed in range(4)]
    found = estimate(probability_of_improvement, scores, scores)
    assert found.value == 0.5 and found.holds(0.5) and not found.holds(0.1) and np.ptp(found.interval or (0, 0)) > 0.1


def test_one_run_of_a_task_has_no_interval() -> None:
    assert interval(mean, [np.array([1.0, 2.0]), np.array([1.0])]) is None
    alone = estimate(mean, [np.array([1.0])])
    assert str(alone) == "1.000" and not alone.holds(1.0) and not alone.overlaps(alone)


def test_sign_flips_by_hand() -> None:
    assert sign_flip_probability(np.array([1.0, 1.0, 1.0, 1.0, 1.0])) == pytest.approx(2 / 32)
    # Means of +-1 +-2 +-3 with |sum| >= 4 (that of -1 + 2 + 3): +-6, +-4.
    assert sign_flip_probability(np.array([-1.0, 2.0, 3.0])) == pytest.approx(4 / 8)
    assert sign_flip_probability(np.zeros(3)) == 1.0
    oracle = scipy.stats.permutation_test(
        (np.array([0.3, -0.1, 0.8, 0.5, 0.2, 0.4]),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_probability(np.array([0.3, -0.1, 0.8, 0.5, 0.2, 0.4])) == pytest.approx(oracle.pvalue)
    many = np.random.default_rng(0).standard_normal(30) + 0.3
    oracle = scipy.stats.permutation_test((many,), np.mean, permutation_type="samples", n_resamples=50_000, rng=0)
    assert sign_flip_probability(many) == pytest.approx(oracle.pvalue, abs=0.015)


def test_intervals_overlap_where_they_share_a_value() -> None:
    low, above, apart = (Estimate(0.5, ends) for ends in ((0.0, 1.0), (1.0, 2.0), (1.1, 2.0)))
    assert low.overlaps(above) and above.overlaps(low) and not low.overlaps(apart) and not apart.overlaps(low)
