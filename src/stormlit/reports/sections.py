"""What a report says, section by section: sentences, tables, figures and dreams. How it looks is the templates'."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stormlit.analysis.diagnosis import newest_diagnosis
from stormlit.errors import counted
from stormlit.registry import leaves
from stormlit.reports.caveats import what_cannot_be_concluded
from stormlit.reports.figures import Line, Row, lines_figure, rows_figure
from stormlit.reports.find_runs import one_of_each
from stormlit.reports.literature import NOTES, method_aggregates, published
from stormlit.reports.statistics import (
    AGGREGATES,
    CONFIDENCE,
    DRAWS,
    Estimate,
    aggregates,
    estimate,
    interval,
    mean_and_error,
    performance_profile,
    probability_of_improvement,
    sign_flip_probability,
)
from stormlit.reports.table import Comparison, ScoredRun, learned, random_play

MOST_IN_ONE = 6  # curves in one figure; more variants get a figure each, with the base behind
THRESHOLDS = 200
BINS = 20  # of the training's episodes, where nothing was evaluated on the way
LARGEST_FILM = 1_500_000  # bytes; a larger one gives way to the dream's picture
MEDIA_TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
# Column of the table of world models -> where it stands in a diagnosis.
DIAGNOSED = {
    "reward precision": "reward.precision",
    "reward recall": "reward.recall",
    "end recall": "end.recall",
    "Brier score of ends": "end.brier_score",
    "KL (nats)": "latent.kl",
    "codes used": "latent.codes_used",
    "value bias": "value.bias",
    "value correlation": "value.correlation",
    "return dreamt": "dream_return.inside.mean",
    "return got": "dream_return.outside.mean",
}


@dataclass(frozen=True, slots=True)
class Table:
    """The first column is a heading of its row, numbers stand to the right."""

    header: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """svg: an ``<svg>`` element, or "" where a film (a video or a picture) is shown.  poster: a video's picture."""

    caption: str
    svg: str = ""
    film: Path | None = None
    media_type: str = ""
    poster: Path | None = None


@dataclass(slots=True)
class Section:
    """key: of its place in the page.  lead: paragraphs before the rest; notes: a list after it."""

    key: str
    title: str
    lead: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def sections(comparison: Comparison) -> list[Section]:
    """Everything that a report says, in its order."""
    parts = (conclusions, environments, over_environments, profiles, differences, curves, literature, world_models,
             dreams, cost, configuration, runs)  # fmt: skip
    return [section for part in parts if (section := part(comparison))]


def summary(comparison: Comparison) -> str:
    """The sentence under the title."""
    scored, tasks = comparison.runs, comparison.tasks
    budgets = sorted({run.result.env_steps_wanted for run in scored})
    named = f"{one_of_each(tasks[:6])} and {len(tasks) - 6} more" if len(tasks) > 6 else one_of_each(tasks)
    parts = [
        counted(len(comparison.variants), "variant"),
        f"{counted(len(tasks), 'environment')} ({named})",
        counted(len({run.seed for run in scored}), "seed"),
        f"{one_of_each(budgets, '{:,}'.format)} environment steps",
    ]
    partial = f" {counted(len(comparison.unfinished), 'run')} not finished." if comparison.unfinished else ""
    return f"{counted(len(scored), 'run')}: {', '.join(parts)}. The base is '{comparison.base}'.{partial}"


def conclusions(comparison: Comparison) -> Section:
    return Section("limits", "What cannot be concluded", notes=what_cannot_be_concluded(comparison))


def environments(comparison: Comparison) -> Section:
    """Every seed as a dot, mean and standard error, for each environment."""
    lead = (
        "Each dot is one seed: the mean return of its last evaluation. The line is their mean, the bar its standard "
        "error on either side."
    )
    section, rows = Section("environments", "Returns by environment", [lead]), []
    for task in comparison.tasks:
        scores = {variant: comparison.scores(variant, task) for variant in comparison.variants}
        section.figures.append(_dots(comparison, scores, task, "return", {"random": random_play(comparison, task)}))
        for variant, values in scores.items():
            every = [f"{run.seed}: {run.score:.4g}" for run in comparison.of(variant, task)]
            rows.append([task, variant, *_mean_and_error_words(values, ".4g"), ", ".join(every) or "-"])
    header = ["environment", "variant", "seeds", "mean", "standard error", "every seed"]
    section.tables.append(Table(header, rows))
    return section


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
    section.figures = [_aggregate_figure(name, found, {}) for name in AGGREGATES]
    rows = [[variant, *_words(each.values())] for variant, each in found.items()]
    section.tables.append(Table(["variant", *AGGREGATES], rows))
    return section


def profiles(comparison: Comparison) -> Section | None:
    """Performance profiles, and the probability of improvement over the base."""
    if not comparison.scales:
        return None
    section = Section("profiles", "Profiles and improvement")
    scores = {variant: comparison.normalised(variant) for variant in comparison.variants}
    every = np.concatenate([task for tasks in scores.values() for task in tasks])
    margin = 0.05 * max(float(np.ptp(every)), 1e-9)
    thresholds = np.linspace(every.min() - margin, every.max() + margin, THRESHOLDS)
    lines: dict[str, list[Line]] = {}
    for index, (variant, tasks) in enumerate(scores.items()):
        band = interval(lambda table: performance_profile(table, thresholds), tasks)
        lines[variant] = [Line(index, thresholds, performance_profile(tasks, thresholds), band)]
    caption = "Performance profile: further up is better"
    section.figures = _lines(comparison, lines, caption, "scaled score", "share of runs above it")
    base = scores.pop(comparison.base)
    found = {variant: estimate(probability_of_improvement, tasks, base) for variant, tasks in scores.items()}
    if found:
        rows = [Row(name, index, each.value, each.interval) for index, (name, each) in enumerate(found.items(), 1)]
        caption = f"Probability that a run scores higher than one of '{comparison.base}'"
        section.figures.append(Figure(caption, rows_figure(rows, "probability", {"even": 0.5})))
        header = ["variant", f"probability of improvement over {comparison.base}"]
        section.tables.append(Table(header, [[variant, str(each)] for variant, each in found.items()]))
    return section


def differences(comparison: Comparison) -> Section | None:
    """Paired differences by seed against the base."""
    if not comparison.others:
        return None
    lead = (
        f"Return of each variant less that of '{comparison.base}' with the same seed. The last column is the "
        "probability of a mean at least as far from 0 if each difference could as well have the other sign."
    )
    section, rows = Section("differences", "Differences by seed", [lead]), []
    for task in comparison.tasks:
        found = {name: values for name in comparison.others if len(values := comparison.differences(name, task))}
        if found:
            section.figures.append(_dots(comparison, found, task, "difference of returns", {"equal": 0.0}))
        for variant, values in found.items():
            better, chance = f"{(values > 0).sum()} of {len(values)}", f"{sign_flip_probability(values):.2g}"
            rows.append([task, variant, *_mean_and_error_words(values, "+.4g"), better, chance])
    if rows:
        header = ["environment", "variant", "pairs", "mean", "standard error", "better", "probability by chance"]
        section.tables.append(Table(header, rows))
    else:
        section.lead.append("No seed was run by both a variant and the base.")
    return section


def curves(comparison: Comparison) -> Section:
    """Returns over environment steps: of evaluations on the way where every run has several, else of the training's own
    episodes.
    """
    lead = "The line is the mean over seeds, the band its standard error on either side; one seed has none."
    section = Section("curves", "Learning curves", [lead])
    for task in comparison.tasks:
        evaluated = all(len(run.result.curve) > 1 for run in comparison.runs if run.task == task)
        lines = {}
        for index, variant in enumerate(comparison.variants):
            points = [_evaluations(run) if evaluated else _training(run) for run in comparison.of(variant, task)]
            if steps := sorted(set.intersection(*map(set, points))) if points else []:
                returns = np.array([[each[step] for step in steps] for each in points])
                lines[variant] = [Line(index, np.array(steps), *mean_and_error(returns))]
        caption = f"{task}, {'evaluations on the way' if evaluated else 'episodes of the training'}"
        marks = {"random": random_play(comparison, task)}
        section.figures += _lines(comparison, lines, caption, "environment steps", "return", marks)
    return section


def _evaluations(run: ScoredRun) -> dict[int, float]:
    """Mean return at each step; an evaluation with a return that is no number is left out."""
    return {step: float(np.mean(returns)) for step, returns in run.result.curve if returns and None not in returns}  # type: ignore[arg-type]


def _training(run: ScoredRun) -> dict[int, float]:
    """Mean return of the episodes that ended in each twentieth of the budget, at its end."""
    width = max(run.result.env_steps_wanted / BINS, 1)
    found: dict[int, list[float]] = {}
    for step, value in run.result.returns:
        if value is not None:
            found.setdefault(round(width * max(-(-step // width), 1)), []).append(value)
    return {step: float(np.mean(values)) for step, values in found.items()}


def literature(comparison: Comparison) -> Section | None:
    """Published methods over the same games, for Atari."""
    if not comparison.is_atari:
        return None
    games, methods = list(comparison.scales), published()
    lead = (
        f"Human-normalised scores of {one_of_each(games)} by the published methods, from their released runs where "
        "there are some. Their protocols differ in details, such as the number of episodes of the last evaluation."
    )
    section = Section("literature", "Beside the literature", [lead], notes=list(NOTES.values()))
    ours = {variant: aggregates(comparison.normalised(variant)) for variant in comparison.variants}
    theirs = {name: method_aggregates(method, games) for name, method in methods.items()}
    section.figures = [_aggregate_figure(name, ours, theirs) for name in ("interquartile mean", "mean")]
    rows = [[variant, *_words(found.values()), "this report"] for variant, found in ours.items()]
    rows += [[name, *_words(found.values()), "; ".join(methods[name].sources)] for name, found in theirs.items()]
    section.tables.append(Table(["method", *AGGREGATES, "source"], rows))
    return section


def world_models(comparison: Comparison) -> Section | None:
    """Means over the runs of each variant that have a diagnosis; None where no run has one."""
    lead = [
        "Measured by `stormlit diagnose` on new steps of each run's own policy, so that variants are not measured on "
        "the same data. Open-loop error: frames imagined without seeing any, against repeating the last frame seen "
        "(dashed). Return: of the policy over the horizon of imagination, discounted, inside its dream and outside.",
        "Numbers are means over runs, ± their standard error.",
    ]
    section, rows, measured = Section("world-models", "World models", lead), [], 0
    for task in comparison.tasks:
        lines: dict[str, list[Line]] = {}
        for index, variant in enumerate(comparison.variants):
            found = [each for run in comparison.of(variant, task) if (each := newest_diagnosis(run.folder))]
            if not found:
                continue
            measured += len(found)
            measures = [dict(leaves(each)) for each in found]
            told = [_spread(each.get(key) for each in measures) for key in DIAGNOSED.values()]
            rows.append([task, variant, str(len(found)), *told])
            reach = min(len(each["open_loop"]["horizon"]) for each in found)  # the horizon that all runs have
            steps = np.arange(1, reach + 1)
            for name in ("imagined", "repeated"):
                mean, error = mean_and_error(np.array([each["open_loop"][name][:reach] for each in found]))
                line = Line(index, steps, mean, error) if name == "imagined" else Line(index, steps, mean, dashed=True)
                lines.setdefault(variant, []).append(line)
        caption = f"{task}, open-loop error"
        section.figures += _lines(comparison, lines, caption, "steps since a real frame", "squared error of frames")
    if measured < len(comparison.runs):
        section.notes = [f"{measured} of {len(comparison.runs)} runs have been diagnosed."]
    section.tables.append(Table(["environment", "variant", "runs", *DIAGNOSED], rows))
    return section if rows else None


def dreams(comparison: Comparison) -> Section | None:
    """The last dream of one run of each variant."""
    lead = (
        "What really happened, what the world model makes of each frame, and what it imagines without seeing any: one "
        "run of each variant."
    )
    found: dict[str, Figure] = {}
    for run in comparison.runs:
        if run.variant not in found and (film := _last_dream(run)):
            found[run.variant] = film
    return Section("dreams", "Dreams", [lead], figures=list(found.values())) if found else None


def _last_dream(run: ScoredRun) -> Figure | None:
    for suffix, media_type in MEDIA_TYPES.items():
        files = sorted((run.folder / "media").glob(f"dream-[0-9]*{suffix}"))
        if files and files[-1].stat().st_size <= LARGEST_FILM:
            step = int(files[-1].stem.partition("-")[2])
            picture = files[-1].with_suffix(".png")
            poster = picture if suffix == ".mp4" and picture.is_file() else None
            caption = f"{run.variant}: {run.task}, seed {run.seed}, step {step:,}"
            return Figure(caption, film=files[-1], media_type=media_type, poster=poster)
    return None


def cost(comparison: Comparison) -> Section:
    """Hours, speed, memory and device of each variant."""
    units = {"wall_seconds": 3600, "env_steps_per_second": 1, "peak_memory_bytes": 2**30}
    rows = []
    for task in comparison.tasks:
        for variant in comparison.variants:
            if found := [run.result for run in comparison.of(variant, task)]:
                told = [_spread((result.cost.get(key) for result in found), unit) for key, unit in units.items()]
                machines = [f"{r.provenance.get('device')} ({r.provenance.get('precision')})" for r in found]
                rows.append([task, variant, *told, one_of_each(machines)])
    hours = sum(run.result.cost.get("wall_seconds") or 0.0 for run in comparison.runs) / 3600
    header = ["environment", "variant", "hours a run", "steps a second", "peak memory (GiB)", "device"]
    lead = f"All runs together took {hours:.3g} hours. Times of runs that shared a machine are longer than alone."
    return Section("cost", "Cost", [lead], tables=[Table(header, rows)])


def configuration(comparison: Comparison) -> Section | None:
    """What each variant changes against the base; None where no run of the base has a score."""
    first = {run.variant: run.result for run in reversed(comparison.runs)}
    if comparison.base not in first:
        return None
    section = Section("configuration", "Differences in configuration")
    base, rows = learned(first[comparison.base]), []
    for variant in (each for each in comparison.others if each in first):
        now = learned(first[variant])
        for key in (key for key in dict.fromkeys([*now, *base]) if base.get(key, ...) != now.get(key, ...)):
            rows.append([variant, key, *(json.dumps(each[key]) if key in each else "-" for each in (base, now))])
    if rows:
        section.tables.append(Table(["variant", "key", comparison.base, "variant's"], rows))
    changed = first[comparison.base].differences
    rows = [[key, json.dumps(default), json.dumps(now)] for key, (default, now) in changed.items()]
    caption = f"What '{comparison.base}' changes against the default configuration"
    section.tables.append(Table(["key", "default", comparison.base], rows, caption))
    return section


def runs(comparison: Comparison) -> Section:
    """Where every number comes from."""
    rows = []
    for run in comparison.runs:
        result, made = run.result, run.result.provenance
        commit = str(made.get("commit") or "-")[:10] + ("*" if made.get("dirty") else "")
        rows.append([
            result.run["name"], run.variant, run.task, str(run.seed), f"{run.score:.4g}", f"{result.env_steps:,}",
            commit, result.config_hash[:10],
        ])  # fmt: skip
    rows += [[name, *"---", "not finished", f"{steps:,}", *"--"] for name, steps in comparison.unfinished.items()]
    rows += [[name, *"---", "no number", *"---"] for name in comparison.not_finite]
    header = ["run", "variant", "environment", "seed", "return", "steps", "commit", "configuration"]
    lead = "A star marks a commit with changes that were not committed."
    return Section("runs", "Runs", [lead], tables=[Table(header, rows)])


def _dots(
    comparison: Comparison, found: Mapping[str, np.ndarray], caption: str, label: str, marks: Mapping[str, float | None]
) -> Figure:
    """The values of each variant as dots, with their mean and its standard error; a variant without any is left out."""
    rows = []
    for variant, values in found.items():
        if len(values):
            mean, error = mean_and_error(values)
            around = None if error is None else (float(mean - error), float(mean + error))
            rows.append(Row(variant, comparison.variants.index(variant), float(mean), around, values.tolist()))
    return Figure(caption, rows_figure(rows, label, marks))


def _aggregate_figure(
    name: str, ours: Mapping[str, Mapping[str, Estimate | None]], theirs: Mapping[str, Mapping[str, Estimate | None]]
) -> Figure:
    """Ours in the order of their colours, theirs from the best one down."""
    rows = [Row(variant, index, each.value, each.interval)
            for index, (variant, found) in enumerate(ours.items()) if (each := found[name])]  # fmt: skip
    known = [Row(method, None, each.value, each.interval) for method, found in theirs.items() if (each := found[name])]
    known.sort(key=lambda row: -(row.value or 0.0))
    return Figure(f"{name[0].upper()}{name[1:]}", rows_figure([*rows, *known], name))


def _lines(
    comparison: Comparison,
    lines: Mapping[str, list[Line]],
    caption: str,
    x_label: str,
    y_label: str,
    marks: Mapping[str, float | None] | None = None,
) -> list[Figure]:
    """One figure of all variants, or, of many, one each with the base behind."""
    drawn = {caption: [line for each in lines.values() for line in each]} if lines else {}
    if len(lines) > MOST_IN_ONE:
        behind = lines.get(comparison.base, [])
        drawn = {f"{caption}: {name}": [*behind, *each] for name, each in lines.items() if name != comparison.base}
    return [Figure(name, lines_figure(each, x_label, y_label, marks)) for name, each in drawn.items()]


def _mean_and_error_words(values: np.ndarray, shown: str) -> list[str]:
    """How many, their mean and its standard error, a dash for what there is none of."""
    if not len(values):
        return ["0", "-", "-"]
    mean, error = mean_and_error(values)
    return [str(len(values)), format(mean, shown), "-" if error is None else f"{error:.2g}"]


def _spread(values: Iterable[float | None], unit: float = 1.0) -> str:
    """Mean and standard error of what is known, as one word."""
    known = np.array([value / unit for value in values if value is not None])
    if not len(known):
        return "-"
    mean, error = mean_and_error(known)
    return f"{mean:.4g}" + ("" if error is None else f" ± {error:.3g}")


def _words(values: Iterable[Estimate | None]) -> list[str]:
    return [str(value or "-") for value in values]
