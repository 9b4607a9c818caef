"""The table that everything else is computed from: one score for each variant, environment and seed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stormlit.envs import human_normalized
from stormlit.errors import ConfigError, nearest
from stormlit.registry import leaves
from stormlit.reports.find_runs import Found
from stormlit.reports.statistics import Scores
from stormlit.runs.allowed_changes import MAY_CHANGE
from stormlit.runs.result import NOT_WHAT_WAS_ASKED, Result

BASE = "base"


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """One finished run.  score: the mean return of its last evaluation."""

    variant: str
    task: str
    seed: int
    score: float
    folder: Path
    result: Result


class Scale(NamedTuple):
    """What counts as 0 and as 1 in an environment, so that environments can be averaged."""

    zero: float
    one: float

    def __call__(self, score: Any) -> Any:
        """A score, or an array of them."""
        return (score - self.zero) / (self.one - self.zero)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a report is about.

    variants: the base first.  runs: by variant, task and seed.  unfinished: run -> environment steps so far.
    not_finite: runs whose last evaluation has returns that are no numbers; they are in no figure.
    scales: for the tasks that every variant has played, or empty.  scale: what they are, in words, or why there are
    none.
    """

    variants: list[str]
    tasks: list[str]
    runs: list[ScoredRun]
    unfinished: Mapping[str, int]
    not_finite: list[str]
    scales: Mapping[str, Scale]
    scale: str

    @property
    def base(self) -> str:
        return self.variants[0]

    @property
    def others(self) -> list[str]:
        return self.variants[1:]

    @property
    def is_atari(self) -> bool:
        """Whether scores are human-normalised."""
        return bool(self.scales) and all(human_normalized(task, 0.0) is not None for task in self.scales)

    def of(self, variant: str, task: str) -> list[ScoredRun]:
        """In the order of their seeds."""
        return [run for run in self.runs if (run.variant, run.task) == (variant, task)]

    def scores(self, variant: str, task: str) -> np.ndarray:
        """(R,): the mean return of each run."""
        return np.array([run.score for run in self.of(variant, task)])

    def normalised(self, variant: str) -> Scores:
        """The scaled scores of the tasks that have a scale."""
        return [scale(self.scores(variant, task)) for task, scale in self.scales.items()]

    def differences(self, variant: str, task: str) -> np.ndarray:
        """(P,): the variant's score less the base's for each seed that both have."""
        base = {run.seed: run.score for run in self.of(self.base, task)}
        return np.array([run.score - base[run.seed] for run in self.of(variant, task) if run.seed in base])


def compare(
    found: Sequence[Found], base: str | None = None, references: Sequence[str] = (), usual_base: str | None = None
) -> Comparison:
    """Sort runs into a table.

    base: the variant that others are compared with; None: usual_base, the one called "base", or the first,
    whichever is there.
    references: ``VARIANT``, or ``ENVIRONMENT=SCORE``: what counts as 1 where there is no human score.
    Raises ``ConfigError`` when no run is finished, when runs of an environment were not measured alike, and when two
    runs have the same place in the table.
    """
    finished = [(run, run.result) for run in found if run.result is not None]
    if not finished:
        raise ConfigError(f"none of {len(found)} runs is finished: there is nothing to report yet")
    _refuse_mixed_protocols([result for _, result in finished])
    variants = _variants([result for _, result in finished])
    scored_runs: dict[tuple[str, str, int], ScoredRun] = {}
    not_finite = []
    for (run, result), variant in zip(finished, variants, strict=True):
        returns = [value for value in result.evaluation.get("agent", ()) if value is not None]
        if not returns or None in result.evaluation["agent"]:
            not_finite.append(run.name)
            continue
        scored = ScoredRun(variant, result.task["name"], result.seed, float(np.mean(returns)), run.folder, result)
        other = scored_runs.setdefault((variant, scored.task, scored.seed), scored)
        if other is not scored:
            raise ConfigError(
                f"the runs {other.folder} and {scored.folder} are the same: variant '{variant}', {scored.task}, seed "
                f"{scored.seed}; name the runs that the report is about one by one"
            )
    if not scored_runs:
        raise ConfigError("every run that is finished has returns that are no numbers: there is nothing to compare")
    names = _with_base_first(list(dict.fromkeys(variants)), base, usual_base)
    tasks = list(dict.fromkeys(scored.task for scored in scored_runs.values()))
    ordered = sorted(
        scored_runs.values(), key=lambda scored: (names.index(scored.variant), tasks.index(scored.task), scored.seed)
    )
    unfinished = {run.name: run.env_steps for run in found if run.result is None}
    comparison = Comparison(names, tasks, ordered, unfinished, not_finite, {}, "")
    scales, scale = _scales(comparison, references)
    return dataclasses.replace(comparison, scales=scales, scale=scale)


def _with_base_first(names: list[str], base: str | None, usual: str | None) -> list[str]:
    if base is not None and base not in names:
        raise ConfigError(f"--base={base}: there is no variant of that name{nearest(base, names)}; {_listed(names)}")
    base = base or next((name for name in (usual, BASE) if name in names), names[0])
    return [base, *(name for name in names if name != base)]


def _listed(names: Sequence[str]) -> str:
    return f"variants are {', '.join(names)}"


def _refuse_mixed_protocols(results: Sequence[Result]) -> None:
    """Budgets may differ, which the report says; anything else makes scores that cannot stand side by side."""
    first: dict[str, Result] = {}
    for result in results:
        other = first.setdefault(result.task["name"], result)
        before, now = (dict(leaves(each.task["protocol"])) for each in (other, result))
        for key in dict.fromkeys([*before, *now]):
            if key != "env_steps" and before.get(key) != now.get(key):
                raise ConfigError(
                    f"the runs {other.run['name']} and {result.run['name']} of {result.task['name']} were not measured "
                    f"alike: {key} is {json.dumps(before.get(key))} in one and {json.dumps(now.get(key))} in the "
                    "other, and a report compares runs of one protocol"
                )


def _variants(results: Sequence[Result]) -> list[str]:
    """The variant of each run: its name in a grid, else what its configuration changes against that of the first."""
    first = next((learned(result) for result in results if not result.run["variant"]), {})
    return [result.run["variant"] or changes_in_words(first, learned(result)) for result in results]


def learned(result: Result) -> dict[str, Any]:
    """What decides how a run learns, but for its environment, seed and budget."""
    return settings(result.config, result.task["protocol"])


def settings(config: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a configuration as a tree.  measured: its protocol."""
    task = [f"env.{key}" for key in measured["env"]]
    flat = leaves({name: node for name, node in config.items() if name not in NOT_WHAT_WAS_ASKED})
    return {key: value for key, value in flat if not key.startswith((*MAY_CHANGE, *task))}


def changes_in_words(first: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is set otherwise in the second settings than in the first, ``BASE`` where nothing is."""
    changed = {key: value for key, value in now.items() if first.get(key) != value or key not in first}
    names = {key: value for key, value in changed.items() if key.endswith(".name")}
    # Where another part stands, its own options only say how.
    inside = tuple(f"{key.removesuffix('.name')}." for key in names)
    told = (
        {**names, **{key: value for key, value in changed.items() if not key.startswith(inside)}} if names else changed
    )
    gone = sorted(first.keys() - now.keys()) if not changed else []
    words = [f"{_short(key)}={value}" for key, value in told.items()] + [f"no {_short(key)}" for key in gone]
    return ", ".join(words) or BASE


def _short(key: str) -> str:
    """A part by its last word, its options by their last two."""
    if key.endswith(".name"):
        return key.split(".")[-2]
    return ".".join(key.split(".")[-2 if key.count(".") > 1 else -1 :])


def _scales(comparison: Comparison, references: Sequence[str]) -> tuple[dict[str, Scale], str]:
    """The scale of each task that every variant has played, and what it is; none, and why."""
    given, reference = _references(comparison, references)
    shared = [task for task in comparison.tasks if all(comparison.of(name, task) for name in comparison.variants)]
    if not shared:
        return {}, "no environment was played by every variant, so that there are no aggregates"
    human = {task: scale for task in shared if (scale := _human(comparison.of(comparison.base, task)[0].result))}
    if len(human) == len(shared) and not references:
        return human, "human-normalised: 0 is random play, 1 a human"
    scales = {}
    for task in shared:
        zero, one = random_play(comparison, task), given.get(task, float(comparison.scores(reference, task).mean()))
        if zero is None:
            why = f"random play was not measured in {task} (evaluation.baselines=[random])"
            return {}, f"there are no aggregates: {why}"
        if one <= zero:
            return {}, (
                f"there are no aggregates: in {task} the reference scores {one:.4g}, no more than random play's "
                f"{zero:.4g}; choose another with --reference"
            )
        scales[task] = Scale(zero, one)
    what = f"the mean of '{reference}'" if set(shared) - given.keys() else "the score that was given"
    return scales, f"scaled: 0 is random play, 1 {what}; both are taken as exact in the intervals"


def _references(comparison: Comparison, references: Sequence[str]) -> tuple[dict[str, float], str]:
    """The scores that are given for tasks, and the variant whose mean is 1 in the others."""
    given: dict[str, float] = {}
    named = [word for word in references if "=" not in word]
    for task, word in (word.split("=", 1) for word in references if "=" in word):
        if task not in comparison.tasks:
            raise ConfigError(f"--reference={task}={word}: no run is of {task}{nearest(task, comparison.tasks)}")
        try:
            given[task] = float(word)
        except ValueError:
            given[task] = np.nan
        if not np.isfinite(given[task]):
            raise ConfigError(f"--reference={task}={word}: expected a score, such as {task}=1.0")
    if len(named) > 1 or any(name not in comparison.variants for name in named):
        raise ConfigError(
            f"--reference={named[-1]}: expected one variant or ENVIRONMENT=SCORE"
            f"{nearest(named[0], comparison.variants)}; {_listed(comparison.variants)}"
        )
    return given, named[0] if named else comparison.base


def _human(result: Result) -> Scale | None:
    """None outside the 26 games of Atari 100k."""
    game = result.task["game"] or ""
    at_zero, at_one = human_normalized(game, 0.0), human_normalized(game, 1.0)
    if at_zero is None or at_one is None:
        return None
    span = 1.0 / (at_one - at_zero)
    return Scale(-at_zero * span, -at_zero * span + span)


def random_play(comparison: Comparison, task: str) -> float | None:
    """Its mean return, over all the runs of a task that have measured it."""
    runs = [run for run in comparison.runs if run.task == task]
    played = [value for run in runs for value in run.result.evaluation.get("random", ()) if value is not None]
    return float(np.mean(played)) if played else None
