"""``stormlit scores``: what has been published on Atari 100k."""

from __future__ import annotations

from collections.abc import Sequence

from stormlit.cli.output import columns
from stormlit.envs import ATARI_100K_GAMES
from stormlit.reports.literature import NOTES, Method, chosen, method_aggregates
from stormlit.reports.statistics import AGGREGATES


def published_scores(methods: Sequence[str]) -> str:
    """Aggregates of published methods on Atari 100k; for those that are named, also every game and the sources."""
    shown = chosen(methods)
    rows = [["method", *AGGREGATES, "runs a game"]]
    for method in shown:
        cells = [str(aggregate or "-") for aggregate in method_aggregates(method).values()]
        rows.append([method.name, *cells, str(method.num_runs or "means only")])
    lines = [
        f"human-normalised scores of the {len(ATARI_100K_GAMES)} games of Atari 100k, with 95% bootstrap intervals",
        "",
        *columns(rows),
    ]
    if methods:
        header = ["game", *(method.name for method in shown)]
        lines += ["", *columns([header, *([game, *(_score(m, game) for m in shown)] for game in ATARI_100K_GAMES)]), ""]
        lines += [f"{method.name}: {source}" for method in shown for source in method.sources]
    lines += ["", *(NOTES[method.name] for method in shown if method.name in NOTES)]
    return "\n".join(lines).rstrip()


def _score(method: Method, game: str) -> str:
    return f"{method.score(game):,.1f}"
