"""The commands about results: runs listed, side by side, reported on; and what others have published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stormlit.cli.output import columns
from stormlit.config.schema import keys_of
from stormlit.envs import ATARI_100K_GAMES
from stormlit.errors import ConfigError
from stormlit.registry import leaves
from stormlit.reports.find_runs import Found, gather
from stormlit.reports.literature import NOTES, chosen, method_aggregates
from stormlit.reports.statistics import AGGREGATES
from stormlit.runs.checkpoint import list_checkpoints
from stormlit.runs.directory import RunDirectory, is_training
from stormlit.runs.result import Result, evaluations, step_of

NOT_COMPARED = keys_of("place", "start")
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def list_runs(files: Sequence[str], overrides: Sequence[str], root: Path) -> str:
    """A line for each run under the folders or groups that are named, or under ``run.dir``."""
    _only_run_dir(overrides)
    if not files and not any(root.glob("**/run.json")):
        return f"no runs in {root} (another folder is chosen with run.dir=DIR)"
    rows = [["run", "state", "game", "seed", "steps", "return", "size"]]
    rows += [_row(run, root) for run in gather(files or [str(root)], root)]
    return "\n".join(columns(rows, str.ljust))


def compare_runs(files: Sequence[str], overrides: Sequence[str], root: Path) -> str:
    """How runs differ in their configurations and in what came out."""
    _only_run_dir(overrides)
    runs = gather(files, root)
    if len(runs) < 2:
        raise ConfigError(f"{' '.join(files)}: one run alone cannot be compared, expected at least two")
    header = ["", *(_name(run.folder, root) for run in runs)]
    settings = [_settings(run.config) for run in runs]
    keys = dict.fromkeys(key for values in settings for key in values)
    rows = [[key, *(_shown(values.get(key, "-")) for values in settings)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    lines = columns([header, *differing], str.ljust) if differing else ["the configurations are the same"]
    return "\n".join([*lines, "", *columns([header, *_outcomes(runs)], str.ljust)])


def report_runs(
    files: Sequence[str], overrides: Sequence[str], root: Path, output: Path, base: str | None, scale: Sequence[str]
) -> str:
    """Write a report; returns where it is."""
    from stormlit.reports.write import write_report  # a template engine, which lists do not wait for

    _only_run_dir(overrides, "a report changes no setting; it takes runs, and run.dir=DIR")
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
        games = [[game, *(f"{method.score(game):,.1f}" for method in shown)] for game in ATARI_100K_GAMES]
        lines += ["", *columns([["game", *(method.name for method in shown)], *games]), ""]
        lines += [f"{method.name}: {source}" for method in shown for source in method.sources]
    lines += ["", *(NOTES[method.name] for method in shown if method.name in NOTES)]
    return "\n".join(lines).rstrip()


def _only_run_dir(
    overrides: Sequence[str], told: str = "no setting is changed here; expected runs, and run.dir=DIR"
) -> None:
    for word in overrides:
        if not word.startswith("run.dir="):
            raise ConfigError(f"'{word}': {told}")


def _row(run: Found, root: Path) -> list[str]:
    directory = RunDirectory(run.folder)
    settings, result = _settings(run.config), run.result
    wanted = settings.get("loop.env_steps")
    steps = max([step_of(folder) for folder in list_checkpoints(directory)], default=0)
    if is_training(directory):
        state = "running"
    elif directory.finished_at() is not None:
        state = "finished"
    else:
        state = "stopped" if steps else "begun"
    evaluated = [returns for _, returns in evaluations(directory, 10**9 - 1)]
    returns = result.evaluation.get("agent", []) if result is not None else (evaluated or [[]])[-1]
    return [
        _name(run.folder, root),
        state,
        str(settings.get("env.game") or settings.get("env.id") or "?"),
        str(settings.get("seed", "?")),
        f"{steps:,}" if steps == wanted or not isinstance(wanted, int) else f"{steps:,}/{wanted:,}",
        _mean(returns),
        _size(sum(file.lstat().st_size for file in run.folder.rglob("*") if not file.is_dir())),
    ]


def _name(folder: Path, root: Path) -> str:
    """As other commands take it."""
    path, top = folder.resolve(), root.resolve()
    return str(path.relative_to(top)) if path.is_relative_to(top) else str(folder)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in leaves(config) if not key.startswith(NOT_COMPARED)}


def _outcomes(runs: Sequence[Found]) -> list[list[str]]:
    """Rows of results, with a dash for a run that has none."""
    rows = {
        "environment steps": lambda r: f"{r.env_steps:,}",
        "return": lambda r: _with_error(r.evaluation.get("agent", [])),
        "random play": lambda r: _mean(r.evaluation.get("random", [])),
        "hours": lambda r: f"{r.cost['wall_seconds'] / 3600:.3g}",
        "steps a second": lambda r: f"{r.cost['env_steps_per_second']:.3g}",
        "peak memory": lambda r: _size(r.cost["peak_memory_bytes"]),
        "device": lambda r: f"{r.provenance['device']}, {r.provenance['precision']}",
        "threads": lambda r: str(r.provenance["threads"]),
        "commit": _commit,
    }
    return [[name, *("-" if run.result is None else value(run.result) for run in runs)] for name, value in rows.items()]


def _commit(result: Result) -> str:
    commit = result.provenance["commit"]
    return "-" if commit is None else commit[:9] + ", changed" * bool(result.provenance["dirty"])


def _mean(returns: Sequence[float | None]) -> str:
    finite = [value for value in returns if value is not None]
    return f"{np.mean(finite):.4g}" if finite else "-"


def _with_error(returns: Sequence[float | None]) -> str:
    finite = [value for value in returns if value is not None]
    if len(finite) < 2:
        return _mean(returns)
    return f"{np.mean(finite):.4g} +- {np.std(finite, ddof=1) / len(finite) ** 0.5:.2g} ({len(finite)} episodes)"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _size(size: float) -> str:
    """
    >>> _size(900), _size(5 * 2**20)
    ('900 B', '5.0 MiB')
    """
    power = 0
    while size >= 1024 and power < len(UNITS) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.0f} B" if power == 0 else f"{size:.1f} {UNITS[power]}"
