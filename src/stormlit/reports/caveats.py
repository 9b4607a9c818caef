"""What cannot be concluded from a table of runs, in words. Each sentence names what it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stormlit.errors import counted
from stormlit.reports.find_runs import one_of_each
from stormlit.reports.literature import Aggregate, aggregates
from stormlit.reports.statistics import CONFIDENCE, probability_of_improvement, scalar_interval
from stormlit.reports.table import Cell, Comparison

FEW_SEEDS = 5  # a percentile bootstrap of fewer runs is clearly too narrow
LISTED = 6  # names in a sentence
PAIRS_FOR_5_PERCENT = 6  # 2 / 2^6 = 0.03


def what_cannot_be_concluded(comparison: Comparison) -> list[str]:
    """The sentences, the gravest first; never empty, since no table proves what it was not made for."""
    parts = (_what_is_missing, _numbers_of_runs, _differences, _budgets, _circumstances, _generality)
    return [sentence for part in parts for sentence in part(comparison)]


def _what_is_missing(comparison: Comparison) -> Iterator[str]:
    if comparison.unfinished:
        runs = [f"{name} (step {steps:,})" for name, steps in comparison.unfinished.items()]
        yield (
            f"This report is partial: {_are(len(runs), 'run')} not finished and in no figure: {_some(runs)}. If runs "
            "that fail or take longer also score differently, the others are no fair sample."
        )
    if missing := comparison.missing_seeds():
        gaps = [f"{variant} in {task} (seed {one_of_each(seeds)})" for (variant, task), seeds in missing.items()]
        yield f"Seeds are missing: {_some(gaps)}. Differences by seed are of the seeds that both sides have."
    if comparison.not_finite:
        yield (
            f"{_are(len(comparison.not_finite), 'run')} left out because the last evaluation has returns that are "
            f"no numbers: {_some(comparison.not_finite)}. Those runs failed, so their variants look better here than "
            "they are."
        )
    partly = [t for t in comparison.tasks if any((v, t) not in comparison.cells for v in comparison.variants)]
    if partly:
        yield (
            f"Not every variant was run in {one_of_each(partly)}: that is left out of what is averaged over "
            "environments."
        )


def _numbers_of_runs(comparison: Comparison) -> Iterator[str]:
    counts = {
        (variant, task): len(comparison.of(variant, task))
        for variant in comparison.variants
        for task in comparison.tasks
        if comparison.of(variant, task)
    }
    single = [f"{variant} in {task}" for (variant, task), count in counts.items() if count == 1]
    if single:
        yield (
            f"There is one seed of {_some(single)}. How much seeds differ is unknown there, so that a difference may "
            "be luck; no interval is given."
        )
    few = sorted({count for count in counts.values() if 1 < count < FEW_SEEDS})
    if few:
        yield (
            f"With {one_of_each(few)} seeds, intervals are too narrow as a rule: resampling so few runs cannot show "
            "how far apart further ones would lie. Read them as a lower bound of the uncertainty."
        )


def _differences(comparison: Comparison) -> Iterator[str]:
    if not comparison.others:
        yield "There is one variant, so that nothing is compared; how good its scores are, only the scale tells."
    if comparison.scales:
        base = aggregates(comparison.normalised(comparison.base))["interquartile mean"]
        alike: list[tuple[str, Aggregate]] = []
        told: list[str] = []
        for variant in comparison.others:
            ours = aggregates(comparison.normalised(variant))["interquartile mean"]
            chance = scalar_interval(
                probability_of_improvement, comparison.normalised(variant), comparison.normalised(comparison.base)
            )
            if base is None or ours is None or base.interval is None or ours.interval is None or chance is None:
                continue
            if ours.interval.overlaps(base.interval) or chance.holds(0.5):
                alike.append((variant, ours))
            else:
                told.append(variant)
        if alike and base:
            yield (
                f"The intervals of the interquartile mean overlap, or a better run is as likely as a worse one, for "
                f"{_some([_with_interval(*each) for each in alike])} against {_with_interval(comparison.base, base)}: "
                f"these runs do not show that {'it differs' if len(alike) == 1 else 'these differ'} from "
                f"'{comparison.base}'."
            )
        if len(told) > 1 or len(comparison.others) > 2:
            yield (
                f"{len(comparison.others)} variants were held against '{comparison.base}', each at {CONFIDENCE:.0%}: "
                f"about one in {1 / (1 - CONFIDENCE):.0f} such comparisons looks like a difference where there is none."
            )
    pairs = max((len(comparison.pairs(v, t)[0]) for v in comparison.others for t in comparison.tasks), default=0)
    if 0 < pairs < PAIRS_FOR_5_PERCENT:
        yield (
            f"No environment has more than {counted(pairs, 'pair')} of runs with the same seed: even if all "
            f"their differences had the same sign, chance alone would do that with probability {2 / 2**pairs:.2g}, so "
            "that no single environment can show a difference at 5%."
        )


def _budgets(comparison: Comparison) -> Iterator[str]:
    for task in comparison.tasks:
        budgets: dict[int, list[str]] = {}
        for cell in comparison.all_cells:
            if cell.task == task and cell.variant not in budgets.setdefault(cell.result.env_steps_wanted, []):
                budgets[cell.result.env_steps_wanted].append(cell.variant)
        if len(budgets) > 1:
            told = [f"{_some(names)} {steps:,}" for steps, names in sorted(budgets.items())]
            yield f"Budgets differ in {task}, in environment steps: {'; '.join(told)}. More steps alone may score more."


def _circumstances(comparison: Comparison) -> Iterator[str]:
    def values(of: Callable[[Cell], Any]) -> list[Any]:
        return list(dict.fromkeys(of(cell) for cell in comparison.all_cells))

    for what, key in (("code (commit)", "commit"), ("device", "device"), ("precision", "precision")):
        seen = values(lambda cell, key=key: cell.result.provenance.get(key))  # type: ignore[misc]
        if len(seen) > 1:
            shown = [str(each or "unknown")[:12] for each in seen]
            yield f"Runs differ in {what}: {one_of_each(shown)}. A difference of scores may come from that."
    if any(values(lambda cell: cell.result.provenance.get("dirty"))):
        yield "Some runs are of uncommitted code, which nobody can get again."


def _generality(comparison: Comparison) -> Iterator[str]:
    if len(comparison.tasks) == 1:
        yield f"There is one environment: nothing here says how it would be in another than {comparison.tasks[0]}."
    episodes = {len(cell.result.evaluation["agent"]) for cell in comparison.all_cells}
    yield (
        f"A run's score is the mean of {one_of_each(sorted(episodes))} episodes, itself an estimate; that part of the "
        "spread between seeds is no property of the method."
    )


def _with_interval(name: str, aggregate: Aggregate) -> str:
    return f"{name} {aggregate}"


def _are(count: int, what: str) -> str:
    return f"{count} {what}{'s are' if count > 1 else ' is'}"


def _some(names: list[str]) -> str:
    shown = names if len(names) <= LISTED else [*names[: LISTED - 1], f"{len(names) - LISTED + 1} more"]
    return one_of_each(shown)


def spread(values: np.ndarray) -> str:
    """Mean and standard error as one word, for tables."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return f"{values.mean():.4g}" + (f" ± {error:.3g}" if error is not None else "")
