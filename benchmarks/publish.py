"""Append a finished run to the published results, and renew the README's table of them.

    python benchmarks/publish.py RUN [--run-dir runs] [-o results]

There is a CSV file for each benchmark, results/BENCHMARK.csv, with a line for each configuration, environment and seed.
Exit codes: 0 it stands there, 2 it may not, which a sentence says why.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stormlit.config.compose import compose, to_tree
from stormlit.config.schema import Config
from stormlit.envs import ATARI_100K_GAMES, human_normalized
from stormlit.errors import ConfigError, StormlitError
from stormlit.files import write_atomically
from stormlit.registry import leaves
from stormlit.reports.statistics import mean, median
from stormlit.reports.table import BASE, changes_in_words, learned, settings
from stormlit.runs.directory import RunDirectory, find_run
from stormlit.runs.result import Result, protocol, read

COLUMNS = (
    "configuration", "environment", "seed", "mean_return", "standard_error", "human_normalized", "random_mean",
    "env_steps", "hours", "device", "precision", "version", "commit", "finished", "returns",
)  # fmt: skip
KEY = ("configuration", "environment", "seed")  # of which there is one row each
RESULTS = Path(__file__).resolve().parents[1] / "results"
START, END = "<!-- results, written by benchmarks/publish.py -->", "<!-- end of results -->"
NOTHING = "No run has been published in `results/` yet (`python benchmarks/publish.py RUN`)."

Row = Mapping[str, str]


@functools.cache
def _bundled(name: str) -> Config:
    return compose([name])


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in leaves(tree) if value != {}}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What is measured alike.  configuration: the bundled one whose protocol it is.  games: that may be played; empty:
    the configuration's own environment alone.
    """

    configuration: str
    games: Sequence[str] = ()

    def differences(self, result: Result) -> dict[str, tuple[Any, Any]]:
        """Keys of the protocol in which a result differs, with the benchmark's value and its own."""
        expected, found = _flat(protocol(_bundled(self.configuration))), _flat(result.task["protocol"])
        if self.games and found.get("env.game") in self.games:
            expected["env.game"] = found["env.game"]
        keys = dict.fromkeys([*expected, *found])
        return {key: (expected.get(key), found.get(key)) for key in keys if expected.get(key) != found.get(key)}

    def named(self, result: Result) -> str:
        """The benchmark's configuration, or what was changed in it."""
        base = settings(to_tree(_bundled(self.configuration)), result.task["protocol"])
        words = changes_in_words(base, learned(result))
        return self.configuration if words == BASE else words


BENCHMARKS = {
    "atari100k": Benchmark("storm", ATARI_100K_GAMES),
    "quickstart": Benchmark("quickstart"),
    "upndown": Benchmark("upndown"),
    "catch": Benchmark("tiny"),
}


def publish(directory: RunDirectory, folder: Path) -> Path:
    """Append a finished run to the file of its benchmark, and renew the table of the README beside the folder.

    Returns the file.  Raises ``ConfigError`` for a run that may not stand there, ``CheckpointError`` for a damaged one.
    """
    result = read(directory.path)
    if result is None or directory.finished_at() is None or result.env_steps < result.env_steps_wanted:
        raise ConfigError(f"{directory.name} is not finished: `{directory.resume_command()}` goes on with it")
    _refuse_doubtful(directory.name, result)
    name = _benchmark_of(directory.name, result)
    row, file = _row(BENCHMARKS[name], result), folder / f"{name}.csv"
    rows = published(file)
    for other in rows:
        if all(other[key] == row[key] for key in KEY):
            raise ConfigError(
                f"{directory.name} is a duplicate: {file} has {row['configuration']} on {row['environment']} with seed "
                f"{row['seed']} already, of commit {other['commit'][:9]}"
            )
    try:
        write_atomically(file, _csv([*rows, row]))
        renew_table(folder)
    except OSError as error:
        raise ConfigError(f"{file}: cannot write there ({error.strerror or error})") from error
    return file


def _refuse_doubtful(name: str, result: Result) -> None:
    commit, returns = result.provenance["commit"], result.evaluation.get("agent") or [None]
    if commit is None:
        raise ConfigError(f"{name} was not trained from a git checkout, so nobody can tell from what source")
    if result.provenance["dirty"] is not False:
        raise ConfigError(
            f"{name} was trained from source that differs from its commit {commit[:9]}: commit the changes, train anew"
        )
    if any(value is None for value in returns):
        raise ConfigError(f"{name} has returns that are no numbers")
    if result.config["run"].get("init_from") is not None:
        raise ConfigError(f"{name} began with the weights of another run (run.init_from)")


def _benchmark_of(name: str, result: Result) -> str:
    """Raises ``ConfigError`` naming what differs from the nearest benchmark."""
    differing = {benchmark: rules.differences(result) for benchmark, rules in BENCHMARKS.items()}
    nearest = min(differing, key=lambda benchmark: len(differing[benchmark]))
    for key, (expected, found) in differing[nearest].items():
        what = "budget" if key == "env_steps" else "protocol"
        raise ConfigError(
            f"{name} has another {what} than the benchmarks {', '.join(BENCHMARKS)}; the nearest, {nearest}, has "
            f"{key} = {json.dumps(expected)}, and this run {json.dumps(found)}"
        )
    return nearest


def _row(benchmark: Benchmark, result: Result) -> dict[str, str]:
    returns = np.array(result.evaluation["agent"], dtype=float)
    random = [value for value in result.evaluation.get("random", []) if value is not None]
    error = returns.std(ddof=1) / len(returns) ** 0.5 if len(returns) > 1 else np.nan
    game = result.task["game"]
    normalised = None if game is None else human_normalized(game, float(returns.mean()))
    provenance = result.provenance
    return {
        "configuration": benchmark.named(result),
        "environment": result.task["name"],
        "seed": str(result.seed),
        "mean_return": f"{returns.mean():.6g}",
        "standard_error": f"{error:.4g}" if np.isfinite(error) else "",
        "human_normalized": "" if normalised is None else f"{normalised:.6g}",
        "random_mean": f"{np.mean(random):.6g}" if random else "",
        "env_steps": str(result.env_steps),
        "hours": f"{result.cost['wall_seconds'] / 3600:.4g}",
        **{key: str(provenance[key]) for key in ("device", "precision", "version", "commit", "finished")},
        "returns": " ".join(f"{value:g}" for value in returns),
    }


def published(file: Path) -> list[Row]:
    """The rows of a benchmark's file, [] where there is none; raises ``ConfigError`` for one that is no such file."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            rows: list[Row] = list(reader)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row or None in row.values() for row in rows):
        raise ConfigError(f"{file} is not a file of results: expected the columns {', '.join(COLUMNS)} in each line")
    return rows


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def renew_table(folder: Path) -> None:
    """Write the table between the marks of the README beside the folder, if it has them; raises ``OSError``."""
    readme = folder.resolve().parent / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if start and end:
        write_atomically(readme, f"{before}{START}\n{table(folder)}\n{END}{after}".encode())


def table(folder: Path) -> str:
    """Markdown: a line for each configuration of each benchmark, or a sentence where there is none."""
    lines = [
        f"| {name} | {' | '.join(_summary([row for row in rows if row['configuration'] == configuration]))} |"
        for name in BENCHMARKS
        for rows in [published(folder / f"{name}.csv")]
        for configuration in dict.fromkeys(row["configuration"] for row in rows)
    ]
    header = ["benchmark", "configuration", "environments", "runs", "return", "random play", "human-normalised"]
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines]) if lines else NOTHING


def _summary(rows: Sequence[Row]) -> list[str]:
    """The cells of one configuration: returns of a single environment, human-normalised scores of all."""
    environments = list(dict.fromkeys(row["environment"] for row in rows))
    alone = len(environments) == 1
    scores = [
        np.array([float(row["human_normalized"]) for row in rows if row["environment"] == environment])
        for environment in environments
        if all(row["human_normalized"] for row in rows)
    ]
    normalised = "-" if not scores else f"{mean(scores):.3f}"
    if scores and not alone:
        normalised = f"mean {mean(scores):.3f}, median {median(scores):.3f}"
    return [
        rows[0]["configuration"].replace("|", "\\|"),
        environments[0] if alone else f"{len(environments)}",
        str(len(rows)),
        _over_seeds([row["mean_return"] for row in rows]) if alone else "-",
        _over_seeds([row["random_mean"] for row in rows if row["random_mean"]]) if alone else "-",
        normalised,
    ]


def _over_seeds(values: Sequence[str]) -> str:
    """The mean and its standard error.

    >>> _over_seeds(["1", "3"]), _over_seeds(["5"]), _over_seeds([])
    ('2 +- 1', '5', '-')
    """
    numbers = np.array([float(value) for value in values])
    if len(numbers) < 2:
        return f"{numbers[0]:.4g}" if len(numbers) else "-"
    return f"{numbers.mean():.4g} +- {numbers.std(ddof=1) / len(numbers) ** 0.5:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", help="a run's name, its MLflow run id, or its path")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="folder that runs are looked for in")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the files; default: results")
    given = parser.parse_args(arguments)
    try:
        print(f"appended to {publish(find_run(given.run, given.run_dir)[0], given.output)}")
    except StormlitError as error:
        print(f"publish.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
