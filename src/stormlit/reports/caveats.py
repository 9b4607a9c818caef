"""What cannot be concluded from a table of runs, in words. Each sentence names what it is about."""

from __future__ import annotations

from collections.abc import Iterator

from stormlit.errors import counted
from stormlit.reports.find_runs import one_of_each
from stormlit.reports.statistics import CONFIDENCE, estimate, interquartile_mean, probability_of_improvement
from stormlit.reports.table import Comparison

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
    gaps = []
    for task in comparison.tasks:
        seeds = {run.seed for run in comparison.runs if run.task == task}
        for variant in comparison.variants:
            if missing := sorted(seeds - {run.seed for run in comparison.of(variant, task)}):
                gaps.append(f"{variant} in {task} (seed {one_of_each(missing)})")
    if gaps:
        yield f"Seeds are missing: {_some(gaps)}. Differences by seed are of the seeds that both sides have."
    if comparison.not_finite:
        yield (
            f"{_are(len(comparison.not_finite), 'run')} left out because the last evaluation has returns that are "
            f"no numbers: {_some(comparison.not_finite)}. Those runs failed, so their variants look better here than "
            "they are."
        )
    if partly := [task for task in comparison.tasks if not all(comparison.of(v, task) for v in comparison.variants)]:
        yield (
            f"Not every variant was run in {one_of_each(partly)}: that is left out of what is averaged over "
            "environments."
        )


def _numbers_of_runs(comparison: Comparison) -> Iterator[str]:
    places = [(variant, task) for variant in comparison.variants for task in comparison.tasks]
    counts = {f"{variant} in {task}": len(comparison.of(variant, task)) for variant, task in places}
    if single := [place for place, count in counts.items() if count == 1]:
        yield (
            f"There is one seed of {_some(single)}. How much seeds differ is unknown there, so that a difference may "
            "be luck; no interval is given."
        )
    if few := sorted({count for count in counts.values() if 1 < count < FEW_SEEDS}):
        yield (
            f"With {one_of_each(few)} seeds, intervals are too narrow as a rule: resampling so few runs cannot show "
            "how far apart further ones would lie. Read them as a lower bound of the uncertainty."
        )


def _differences(comparison: Comparison) -> Iterator[str]:
    if not comparison.others:
        yield "There is one variant, so that nothing is compared; how good its scores are, only the scale tells."
    if comparison.scales:
        yield from _aggregates_alike(comparison)
    pairs = max((len(comparison.differences(v, t)) for v in comparison.others for t in comparison.tasks), default=0)
    if 0 < pairs < PAIRS_FOR_5_PERCENT:
        yield (
            f"No environment has more than {counted(pairs, 'pair')} of runs with the same seed: even if all "
            f"their differences had the same sign, chance alone would do that with probability {2 / 2**pairs:.2g}, so "
            "that no single environment can show a difference at 5%."
        )


def _aggregates_alike(comparison: Comparison) -> Iterator[str]:
    base = estimate(interquartile_mean, comparison.normalised(comparison.base))
    alike: list[str] = []
    apart: list[str] = []
    for variant in comparison.others:
        scores = comparison.normalised(variant)
        ours = estimate(interquartile_mean, scores)
        chance = estimate(probability_of_improvement, scores, comparison.normalised(comparison.base))
        if chance.interval is not None:
            (alike if ours.overlaps(base) or chance.holds(0.5) else apart).append(f"{variant} {ours}")
    if alike:
        yield (
            f"The intervals of the interquartile mean overlap, or a better run is as likely as a worse one, for "
            f"{_some(alike)} against {comparison.base} {base}: these runs do not show that "
            f"{'it differs' if len(alike) == 1 else 'these differ'} from '{comparison.base}'."
        )
    if len(apart) > 1 or len(comparison.others) > 2:
        yield (
            f"{len(comparison.others)} variants were held against '{comparison.base}', each at {CONFIDENCE:.0%}: "
            f"about one in {1 / (1 - CONFIDENCE):.0f} such comparisons looks like a difference where there is none."
        )


def _budgets(comparison: Comparison) -> Iterator[str]:
    for task in comparison.tasks:
        budgets: dict[int, list[str]] = {}
        for run in comparison.runs:
            if run.task == task:
                budgets.setdefault(run.result.env_steps_wanted, []).append(run.variant)
        if len(budgets) > 1:
            told = [f"{_some(list(dict.fromkeys(names)))} {steps:,}" for steps, names in sorted(budgets.items())]
            yield f"Budgets differ in {task}, in environment steps: {'; '.join(told)}. More steps alone may score more."


def _circumstances(comparison: Comparison) -> Iterator[str]:
    provenance = [run.result.provenance for run in comparison.runs]
    for what, key in (("code (commit)", "commit"), ("device", "device"), ("precision", "precision")):
        seen = dict.fromkeys(each.get(key) for each in provenance)
        if len(seen) > 1:
            shown = [str(each or "unknown")[:12] for each in seen]
            yield f"Runs differ in {what}: {one_of_each(shown)}. A difference of scores may come from that."
    if any(each.get("dirty") for each in provenance):
        yield "Some runs are of uncommitted code, which nobody can get again."


def _generality(comparison: Comparison) -> Iterator[str]:
    if len(comparison.tasks) == 1:
        yield f"There is one environment: nothing here says how it would be in another than {comparison.tasks[0]}."
    episodes = {len(run.result.evaluation["agent"]) for run in comparison.runs}
    yield (
        f"A run's score is the mean of {one_of_each(sorted(episodes))} episodes, itself an estimate; that part of the "
        "spread between seeds is no property of the method."
    )


def _are(count: int, what: str) -> str:
    return f"{count} {what}{'s are' if count > 1 else ' is'}"


def _some(names: list[str]) -> str:
    shown = names if len(names) <= LISTED else [*names[: LISTED - 1], f"{len(names) - LISTED + 1} more"]
    return one_of_each(shown)
