"""The commands that set results beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stormlit.cli.columns import columns
from stormlit.envs import ATARI_100K_GAMES
from stormlit.errors import ConfigError
from stormlit.reports.literature import NOTES, Method, chosen, method_aggregates
from stormlit.reports.statistics import AGGREGATES
from stormlit.reports.write import write_report


def report_runs(
    files: Sequence[str], overrides: Sequence[str], root: Path, output: Path, base: str | None, scale: Sequence[str]
) -> str:
    """Write a report; returns where it is."""
    for word in overrides:
        if not word.startswith("run.dir="):
            raise ConfigError(f"'{word}': a report changes no setting; it takes runs, and run.dir=DIR")
    if not files:
        raise ConfigError("which runs? expected names, folders, groups or experiments")
    return "\n".join(f"written to {file}" for file in write_report(files, root, output, base, scale))


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
