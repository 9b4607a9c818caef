"""What ``stormlit bench`` does."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from stormlit.cli.bench.measure import measure
from stormlit.cli.bench.report import as_json, report
from stormlit.config.compose import compose
from stormlit.config.schema import Config
from stormlit.errors import ConfigError
from stormlit.files import write_json
from stormlit.storm.fabric_internals import launched_by_fabric


def bench(
    files: Sequence[str], overrides: Sequence[str], groups: Sequence[str], rounds: int, output: Path | None
) -> str:
    """Measure one configuration, or several side by side; returns the report, and writes it as JSON.

    files, overrides: see ``compose``.  groups: further words for each of the configurations to compare, none or two and
    more.  rounds: how often everything is measured.  output: JSON file, None: ``bench-<last of files>.json``.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds={rounds}: expected at least 1")
    if launched_by_fabric():
        raise ConfigError("bench measures a single process: call `stormlit bench` without `fabric run`")
    output = output or Path(f"bench-{Path(files[-1]).stem if files else 'storm'}.json")
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"--json={output}: the folder {output.parent} does not exist")
    compared = ["--compare", *groups] if groups else []
    words = ["stormlit", "bench", *(Path(file).name for file in files), *overrides, "--rounds", str(rounds), *compared]
    results = measure(_settings(files, overrides, groups), rounds)
    text = report(results)
    try:
        write_json(output, as_json(results, rounds, shlex.join(words)))
    except OSError as error:
        return f"{text}\nnot written to {output}: {error.strerror}"
    return f"{text}\nwritten to {output}"


def _settings(files: Sequence[str], overrides: Sequence[str], groups: Sequence[str]) -> list[tuple[str, Config]]:
    """A name and a configuration for each group, or for the configuration without any."""
    if len(groups) == 1:
        raise ConfigError(f"--compare '{groups[0]}': expected two or more groups of words, such as '' '{groups[0]}'")
    if len(set(groups)) < len(groups):
        raise ConfigError("--compare: expected groups that differ from each other")
    settings = []
    for group in groups or [""]:
        try:
            words = shlex.split(group)
        except ValueError as error:
            raise ConfigError(f"--compare {group!r}: cannot be read as words ({error})") from error
        layers = [*files, *(word for word in words if "=" not in word)]
        config = compose(layers, [*overrides, *(word for word in words if "=" in word)])
        settings.append((group or "as configured", config))
    return settings
