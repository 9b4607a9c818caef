"""The sections of a report on scores: environments, aggregates, profiles, differences, curves, literature."""

from __future__ import annotations

import numpy as np

from stormlit.reports.caveats import what_cannot_be_concluded
from stormlit.reports.curves import Curve, learning_curves
from stormlit.reports.document import Figure, Section, Table
from stormlit.reports.figures import Line, Row, lines_figure, rows_figure
from stormlit.reports.find_runs import one_of_each
from stormlit.reports.literature import NOTES, Aggregate, aggregates, method_aggregates, published
from stormlit.reports.statistics import (
    AGGREGATES,
    CONFIDENCE,
    DRAWS,
    Interval,
    interval,
    performance_profile,
    probability_of_improvement,
    scalar_interval,
    sign_flip_probability,
    standard_error,
)
from stormlit.reports.table import Comparison

MOST_IN_ONE = 6  # curves in one figure; more variants get a figure each, with the base behind
THRESHOLDS = 200


def conclusions(comparison: Comparison) -> Section:
    return Section("limits", "What cannot be concluded", notes=what_cannot_be_concluded(comparison))


def environments(comparison: Comparison) -> Section:
    """Every seed as a dot, mean and standard error, for each environment."""
    section = Section(
        "environments",
        "Returns by environment",
        [
            "Each dot is one seed: the mean return of its last evaluation. The line is their mean, the bar its "
            "standard error on either side."
        ],
    )
    rows = []
    for task in comparison.tasks:
        drawn = []
        for index, variant in enumerate(comparison.variants):
            scores = comparison.scores(variant, task)
            if not len(scores):
                rows.append([task, variant, "0", "-", "-", "-"])
                continue
            error, average = standard_error(scores), float(scores.mean())
            around = Interval(average - error, average + error) if error is not None else None
            drawn.append(Row(variant, index, average, around, scores.tolist()))
            rows.append([
                task, variant, str(len(scores)), f"{average:.4g}", "-" if error is None else f"{error:.2g}",
                ", ".join(f"{cell.seed}: {cell.score:.4g}" for cell in comparison.of(variant, task)),
            ])  # fmt: skip
        section.figures.append(Figure(rows_figure(drawn, "return", _marks(comparison, task)), task))
    header = ["environment", "variant", "seeds", "mean", "standard error", "every seed"]
    section.tables.append(Table(header, rows))
    return section


def _marks(comparison: Comparison, task: str) -> dict[str, float]:
    played = [value for cell in comparison.all_cells if cell.task == task
              for value in cell.result.evaluation.get("random", ()) if value is not None]  # fmt: skip
    return {"random": float(np.mean(played))} if played else {}


def over_environments(comparison: Comparison) -> Section:
    """Aggregates of scaled scores with intervals."""
    section = Section("aggregates", "Over environments", [f"Scores are {comparison.scale}."])
    if not comparison.scales:
        section.lead = [f"{comparison.scale[0].upper()}{comparison.scale[1:]}."]
        return section
    section.lead.append(
        f"Intervals are {CONFIDENCE:.0%} percentile bootstraps of {DRAWS:,} draws, stratified by environment. The "
        "interquartile mean is that of the middle half of all runs; the optimality gap is how far runs stay below 1 on "
        "average, and lower is better."
    )
    found = {variant: aggregates(comparison.normalised(variant)) for variant in comparison.variants}
    for name in AGGREGATES:
        drawn = [_row(variant, index, found[variant][name]) for index, variant in enumerate(comparison.variants)]
        section.figures.append(Figure(rows_figure(drawn, name), f"{name[0].upper()}{name[1:]}"))
    rows = [[variant, *(str(value or "-") for value in found[variant].values())] for variant in comparison.variants]
    section.tables.append(Table(["variant", *AGGREGATES], rows))
    return section


def _row(label: str, colour: int | None, aggregate: Aggregate | None) -> Row:
    if aggregate is None:
        return Row(label, colour, None)
    return Row(label, colour, aggregate.value, aggregate.interval)


def profiles(comparison: Comparison) -> Section | None:
    """Performance profiles, and the probability of improvement over the base."""
    if not comparison.scales:
        return None
    section = Section("profiles", "Profiles and improvement")
    tables = {variant: comparison.normalised(variant) for variant in comparison.variants}
    every = np.concatenate([task for scores in tables.values() for task in scores])
    span = max(float(np.ptp(every)), 1e-9)
    thresholds = np.linspace(every.min() - 0.05 * span, every.max() + 0.05 * span, THRESHOLDS)
    curves: dict[str, list[Line]] = {}
    for index, (variant, scores) in enumerate(tables.items()):
        band = interval(lambda table: performance_profile(table, thresholds), scores)
        low, high = (None, None) if band is None else band
        curves[variant] = [Line(index, thresholds, performance_profile(scores, thresholds), low, high)]
    section.figures += [
        Figure(lines_figure(drawn, "scaled score", "share of runs above it"), caption)
        for drawn, caption in together_or_apart(comparison, curves, "Performance profile: further up is better")
    ]
    rows, told = [], []
    for index, variant in enumerate(comparison.others, start=1):
        pair = tables[variant], tables[comparison.base]
        probability, ends = float(probability_of_improvement(*pair)), scalar_interval(probability_of_improvement, *pair)
        rows.append(Row(variant, index, probability, ends))
        told.append([variant, str(Aggregate(probability, ends))])
    if rows:
        caption = f"Probability that a run scores higher than one of '{comparison.base}'"
        section.figures.append(Figure(rows_figure(rows, "probability", {"even": 0.5}), caption))
        section.tables.append(Table(["variant", f"probability of improvement over {comparison.base}"], told))
    return section


def differences(comparison: Comparison) -> Section | None:
    """Paired differences by seed against the base."""
    if not comparison.others:
        return None
    section = Section(
        "differences",
        "Differences by seed",
        [f"Return of each variant less that of '{comparison.base}' with the same seed. The last column is the "
         "probability of a mean at least as far from 0 if each difference could as well have the other sign."],
    )  # fmt: skip
    table = []
    for task in comparison.tasks:
        drawn = []
        for index, variant in enumerate(comparison.others, start=1):
            seeds, values = comparison.pairs(variant, task)
            if not seeds:
                continue
            error, average = standard_error(values), float(values.mean())
            around = Interval(average - error, average + error) if error is not None else None
            drawn.append(Row(variant, index, average, around, values.tolist()))
            table.append([
                task, variant, str(len(seeds)), f"{average:+.4g}", "-" if error is None else f"{error:.2g}",
                f"{int((values > 0).sum())} of {len(seeds)}", f"{sign_flip_probability(values):.2g}",
            ])  # fmt: skip
        if drawn:
            section.figures.append(Figure(rows_figure(drawn, "difference of returns", {"equal": 0.0}), task))
    if not table:
        section.lead.append("No seed was run by both a variant and the base.")
    else:
        header = ["environment", "variant", "pairs", "mean", "standard error", "better", "probability by chance"]
        section.tables.append(Table(header, table))
    return section


def curves(comparison: Comparison) -> Section:
    """Returns over environment steps."""
    section = Section("curves", "Learning curves")
    for task in comparison.tasks:
        found, source = learning_curves(comparison, task)
        lines = {
            variant: [_line(index, found[variant])]
            for index, variant in enumerate(comparison.variants)
            if variant in found
        }
        section.figures += [
            Figure(lines_figure(drawn, "environment steps", "return", _marks(comparison, task)), caption)
            for drawn, caption in together_or_apart(comparison, lines, f"{task}, {source}")
        ]
    section.lead = ["The line is the mean over seeds, the band its standard error on either side; one seed has none."]
    return section


def _line(index: int, curve: Curve) -> Line:
    low, high = (None, None) if curve.error is None else (curve.mean - curve.error, curve.mean + curve.error)
    return Line(index, curve.steps, curve.mean, low, high)


def together_or_apart(
    comparison: Comparison, lines: dict[str, list[Line]], caption: str
) -> list[tuple[list[Line], str]]:
    """The lines and caption of each figure: one for all variants, or, of many, one each with the base behind."""
    if len(lines) <= MOST_IN_ONE:
        return [([line for drawn in lines.values() for line in drawn], caption)] if lines else []
    behind = lines.get(comparison.base, [])
    return [
        ([*behind, *drawn], f"{caption}: {variant}") for variant, drawn in lines.items() if variant != comparison.base
    ]


def literature(comparison: Comparison) -> Section | None:
    """Published methods over the same games, for Atari."""
    if not comparison.is_atari:
        return None
    games = list(comparison.scales)
    section = Section(
        "literature",
        "Beside the literature",
        [f"Human-normalised scores of {one_of_each(games) if len(games) < 27 else ''} by the published methods, from "
         "their released runs where there are some. Their protocols differ in details, such as the number of "
         "episodes of the last evaluation."],
    )  # fmt: skip
    ours = {variant: aggregates(comparison.normalised(variant)) for variant in comparison.variants}
    theirs = {method.name: method_aggregates(method, games) for method in published().values()}
    for name in ("interquartile mean", "mean"):
        rows = [_row(variant, index, ours[variant][name]) for index, variant in enumerate(comparison.variants)]
        known = [(method, found[name]) for method, found in theirs.items() if found[name] is not None]
        known.sort(key=lambda pair: -pair[1].value if pair[1] else 0.0)
        rows += [_row(method, None, aggregate) for method, aggregate in known]
        section.figures.append(Figure(rows_figure(rows, name), f"{name[0].upper()}{name[1:]}"))
    methods = published()
    section.tables.append(Table(
        ["method", *AGGREGATES, "source"],
        [[variant, *(str(value or "-") for value in found.values()), "this report"] for variant, found in ours.items()]
        + [[name, *(str(value or "-") for value in found.values()), "; ".join(methods[name].sources)]
           for name, found in theirs.items()],
    ))  # fmt: skip
    section.notes = list(NOTES.values())
    return section
