"""Statistics over several runs and environments, after Agarwal et al., "Deep RL at the Edge of the Statistical
Precipice" (NeurIPS 2021).

Scores are a sequence with one array a task (environment), whose last axis is the runs: (..., R). Tasks may have
different numbers of runs. Statistics reduce the tasks and the last axis, and keep the axes before it, so that they work
on thousands of resampled tables at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Scores = Sequence[np.ndarray]
Statistic = Callable[..., np.ndarray]

CONFIDENCE = 0.95
DRAWS = 2000
MOST_SIGNS = 14  # pairs up to which every pattern of signs is counted


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with the ends of its confidence interval, None where runs are too few for one."""

    value: float
    interval: tuple[float, float] | None

    def holds(self, value: float) -> bool:
        """Whether a value lies in the interval."""
        return self.interval is not None and self.interval[0] <= value <= self.interval[1]

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals share a value."""
        ends = self.interval, other.interval
        return None not in ends and max(low for low, _ in ends) <= min(high for _, high in ends)  # type: ignore[misc]

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.interval is None else " [{:.2f}, {:.2f}]".format(*self.interval))


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The mean over the first axis and its standard error, from the sample standard deviation; None for one value."""
    error = np.std(values, axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return values.mean(axis=0), error


def mean(scores: Scores) -> np.ndarray:
    """The mean over tasks of the mean over runs."""
    return np.mean([task.mean(axis=-1) for task in scores], axis=0)


def median(scores: Scores) -> np.ndarray:
    """The median over tasks of the mean over runs."""
    return np.median([task.mean(axis=-1) for task in scores], axis=0)


def interquartile_mean(scores: Scores) -> np.ndarray:
    """The mean of the middle half of all runs of all tasks: a quarter of them, rounded down, is cut off at each end."""
    runs = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    cut = runs.shape[-1] // 4
    return runs[..., cut : runs.shape[-1] - cut].mean(axis=-1)


def optimality_gap(scores: Scores) -> np.ndarray:
    """How far runs stay below 1 on average; what is above 1 counts as 1. Lower is better."""
    return 1.0 - mean([np.minimum(task, 1.0) for task in scores])


AGGREGATES: dict[str, Statistic] = {
    "mean": mean,
    "median": median,
    "interquartile mean": interquartile_mean,
    "optimality gap": optimality_gap,
}
OVER_RUNS = ("interquartile mean", "optimality gap")
"""Aggregates of single runs; the others can be had of the tasks' means, too."""


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs above each threshold, averaged over tasks.  thresholds: (X,).  Returns (..., X)."""
    return np.mean([(task[..., np.newaxis] > thresholds).mean(axis=-2) for task in scores], axis=0)


def probability_of_improvement(scores: Scores, base: Scores) -> np.ndarray:
    """How probable it is that a run scores higher than one of the base in the same task, averaged over tasks.

    A tie counts half (the Mann-Whitney statistic).
    """
    wins = []
    for task, other in zip(scores, base, strict=True):
        left, right = task[..., :, np.newaxis], other[..., np.newaxis, :]
        wins.append(((left > right) + 0.5 * (left == right)).mean(axis=(-2, -1)))
    return np.mean(wins, axis=0)


def interval(statistic: Statistic, *tables: Scores, draws: int = DRAWS) -> np.ndarray | None:
    """Percentile bootstrap of a statistic of one or more tables of scores, stratified: runs are drawn anew with
    replacement within each task of each table.

    Returns (2, ...): the low and the high ends.  None where a task has fewer than two runs, of which nothing can be
    said: drawing a single run again and again would make an interval of no width.
    """
    if any(task.shape[-1] < 2 for scores in tables for task in scores):
        return None
    random = np.random.default_rng(0)
    drawn = [[task[random.integers(len(task), size=(draws, len(task)))] for task in scores] for scores in tables]
    values = statistic(*drawn)
    return np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)


def estimate(statistic: Statistic, *tables: Scores) -> Estimate:
    """A statistic that is a single number, with its interval."""
    ends = interval(statistic, *tables)
    return Estimate(float(statistic(*tables)), None if ends is None else (float(ends[0]), float(ends[1])))


def aggregates(scores: Scores, *, of_runs: bool = True) -> dict[str, Estimate | None]:
    """Every aggregate.  of_runs: False where each task has only a mean, without which those of runs are None."""
    return {
        name: estimate(statistic, scores) if of_runs or name not in OVER_RUNS else None
        for name, statistic in AGGREGATES.items()
    }


def sign_flip_probability(differences: np.ndarray) -> float:
    """How probable a mean at least as far from 0 is if each paired difference could as well have the other sign.

    Fisher's permutation test, two-sided. With few pairs it cannot be small: 2 / 2^n is the least that n pairs give.
    """
    count = len(differences)
    if count <= MOST_SIGNS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        drawn = np.random.default_rng(0).choice((1.0, -1.0), size=(20_000, count))
        signs = np.concatenate([np.ones((1, count)), drawn])  # with the pattern that was seen, so that it is never 0
    means = np.abs(signs @ differences)
    return float((means >= np.abs(differences.sum()) - 1e-12 * np.abs(differences).sum()).mean())
