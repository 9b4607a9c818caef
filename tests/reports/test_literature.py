"""Published scores: their aggregates, recomputed without the code that is tested, and what is said about them."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

import stormlit
from stormlit.cli import main
from stormlit.envs import ATARI_100K_GAMES, human_normalized
from stormlit.reports.literature import FILE, method_aggregates, published

ROWS = list(csv.DictReader((Path(stormlit.__file__).parent / "reports" / FILE).open()))
METHODS = sorted({row["method"] for row in ROWS} - {"Random", "Human"})
RANDOM, HUMAN = ({row["game"]: float(row["score"]) for row in ROWS if row["method"] == m} for m in ("Random", "Human"))


def human(game: str, score: float) -> float:
    return (score - RANDOM[game]) / (HUMAN[game] - RANDOM[game])


def aggregates_by_hand(method: str) -> dict[str, float | None]:
    """In plain Python, from the file."""
    runs, means = defaultdict(list), {}
    for row in ROWS:
        if row["method"] == method and row["seed"]:
            runs[row["game"]].append(human(row["game"], float(row["score"])))
        elif row["method"] == method:
            means[row["game"]] = human(row["game"], float(row["score"]))
    by_game = [statistics.fmean(runs[game]) for game in runs] or list(means.values())
    every = sorted(score for scores in runs.values() for score in scores)
    quarter = len(every) // 4
    return {
        "mean": sum(by_game) / 26,
        "median": statistics.median(by_game),
        "interquartile mean": statistics.fmean(every[quarter:-quarter]) if every else None,
        "optimality gap": 1 - statistics.fmean(min(score, 1.0) for score in every) if every else None,
    }


@pytest.mark.parametrize("method", METHODS)
def test_aggregates_agree_with_an_independent_recomputation(method: str) -> None:
    found = {name: value and value.value for name, value in method_aggregates(published()[method]).items()}
    assert found == pytest.approx(aggregates_by_hand(method), abs=1e-6)


def test_every_method_has_every_game_and_every_figure_its_source() -> None:
    assert list(published()) == sorted(METHODS, key=str.lower) and len(METHODS) == 19
    assert all(row["source"] for row in ROWS)
    for method in published().values():
        assert set(method.means) == set(ATARI_100K_GAMES) and set(method.runs) in (set(), set(ATARI_100K_GAMES))
        assert method.num_runs in (0, 5) and method.sources


def test_the_references_are_those_that_returns_are_normalised_with() -> None:
    assert all(human_normalized(game, 12.5) == pytest.approx(human(game, 12.5)) for game in ATARI_100K_GAMES)


def test_storms_interval() -> None:
    mean = method_aggregates(published()["STORM"])["mean"]
    assert mean is not None and mean.interval is not None
    assert mean.interval == pytest.approx((1.13, 1.31), abs=0.01)


def test_where_the_papers_aggregates_of_storm_come_from() -> None:
    """What the note says: Freeway at 34, and every score rounded to a whole number."""
    storm = published()["STORM"]
    assert set(storm.runs["Freeway"]) == {0}
    rounded = {game: round(storm.score(game)) for game in ATARI_100K_GAMES} | {"Freeway": 34}
    normalised = [(x - round(RANDOM[game])) / (round(HUMAN[game]) - round(RANDOM[game])) for game, x in rounded.items()]
    assert f"{statistics.fmean(normalised):.1%} {statistics.median(normalised):.1%}" == "126.7% 58.4%"
    released = [human(game, storm.score(game)) for game in ATARI_100K_GAMES]
    assert f"{statistics.fmean(released):.1%} {statistics.median(released):.1%}" == "122.2% 42.5%"


def test_of_means_alone_there_is_no_aggregate_of_runs_and_no_interval() -> None:
    found = method_aggregates(published()["SPR"])
    assert found["interquartile mean"] is None and found["optimality gap"] is None
    assert found["mean"] is not None and found["mean"].interval is None


def test_scores_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scores", "storm", "SPR"]) == 0
    told = capsys.readouterr().out
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in told.splitlines()}
    assert lines["STORM"].startswith("STORM 1.222 [1.13, 1.31] 0.425 [") and lines["STORM"].endswith("] 5")
    assert lines["SPR"] == "SPR 0.616 0.396 - - means only" and lines["Freeway"].startswith("Freeway 0.0 ")
    assert "weipu-zhang/STORM:results/storm.json" in told and "126.7%" in told
    assert main(["scores"]) == 0
    assert capsys.readouterr().out.count("[") == 4 * 12


def test_an_unknown_method_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scores", "STROM"]) == 2
    told = capsys.readouterr().err
    assert "no published scores of 'STROM' (did you mean 'STORM'?)" in told and "DIAMOND" in told
