"""Published scores of the 26 games of Atari 100k, as they were released: one number a run where runs are public."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources

import numpy as np

from stormlit.envs import ATARI_100K_GAMES, human_normalized
from stormlit.errors import ConfigError, nearest
from stormlit.reports.statistics import Estimate, Scores, aggregates

FILE = "atari100k_scores.csv"
REFERENCES = ("Random", "Human")  # rows of the file that are no methods: they make 0 and 1 of the normalised score

NOTES = {
    "STORM": "STORM's released runs give a mean of 122.2% and a median of 42.5%: Freeway is 0 in all five. The paper's "
    "126.7% and 58.4% come out when Freeway counts 34, its score with a demonstration, and every score is rounded to a "
    "whole number, Random's and Human's too.",
    "delta-IRIS": "delta-IRIS's runs are published rounded and in order of size: its n-th run of two games is not one "
    "seed. Statistics that resample runs within a game are not touched by that.",
}


@dataclass(slots=True)
class Method:
    """A published method.  runs: one score a run, for each game, empty where only means are public.

    means: the mean score of each game.  sources: the repositories and files that the figures were read from.
    """

    name: str
    runs: dict[str, list[float]] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    @property
    def num_runs(self) -> int:
        """Runs a game, 0 where only means are public."""
        return max((len(runs) for runs in self.runs.values()), default=0)

    def score(self, game: str) -> float:
        """The mean score of a game: of its runs where they are public."""
        return float(np.mean(self.runs[game])) if game in self.runs else self.means[game]

    def normalised(self, games: Iterable[str] = ATARI_100K_GAMES) -> Scores:
        """Human-normalised scores of games: (R,) each, or (1,) with the mean where runs are not public."""
        scores = {game: self.runs.get(game) or [self.means.get(game, np.nan)] for game in games}
        return [np.array([human_normalized(game, score) for score in each]) for game, each in scores.items()]


@functools.cache
def published() -> dict[str, Method]:
    """Every method of the file, by name, in alphabetical order."""
    methods: dict[str, Method] = {}
    with resources.files("stormlit.reports").joinpath(FILE).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["method"] in REFERENCES:
                continue
            method = methods.setdefault(row["method"], Method(row["method"]))
            if row["source"] not in method.sources:
                method.sources.append(row["source"])
            if row["seed"]:
                method.runs.setdefault(row["game"], []).append(float(row["score"]))
            else:
                method.means[row["game"]] = float(row["score"])
    return dict(sorted(methods.items(), key=lambda item: item[0].lower()))


def chosen(names: Sequence[str]) -> list[Method]:
    """The methods of these names, whatever their case, or all; raises ``ConfigError`` for a name that is not there."""
    methods = published()
    if not names:
        return list(methods.values())
    by_lowercase = {name.lower(): method for name, method in methods.items()}
    for name in names:
        if name.lower() not in by_lowercase:
            raise ConfigError(
                f"there are no published scores of '{name}'{nearest(name, methods)}; there are those of "
                f"{', '.join(methods)}"
            )
    return [by_lowercase[name.lower()] for name in dict.fromkeys(names)]


def method_aggregates(method: Method, games: Iterable[str] = ATARI_100K_GAMES) -> dict[str, Estimate | None]:
    """Aggregates of human-normalised scores over games."""
    return aggregates(method.normalised(games), of_runs=method.num_runs > 0)
