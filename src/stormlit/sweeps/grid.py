"""What a grid is, and how one is read: from a file, or from keys to vary."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stormlit.config.compose import config_folder, config_names, is_override
from stormlit.config.text import read_mapping
from stormlit.errors import ConfigError, nearest
from stormlit.runs.result import VARIANT

KEYS = ("base", "variants", "environments", "seeds")
NAME = re.compile(r"\w[\w.+-]*")
LARGEST_SEED = 2**31 - 1
# What a grid gives each of its cells itself.
GIVEN = {
    "run.name": "a grid names its runs itself; --name names the grid",
    "resume": "a grid goes on with what it has anyway",
    "seed": "give --seeds N, or the seeds as in --seeds 0,4",
    f"tracking.tags.{VARIANT}": "a grid gives each run that tag itself",
}


@dataclass(frozen=True)
class Grid:
    """name: of its folder.  base: configurations and words of every cell.  variants: further words, by name.

    environments: words that choose one each; empty: the base's.  seeds: at least one.
    """

    name: str
    base: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]
    environments: tuple[str, ...]
    seeds: tuple[int, ...]


def read_grid(
    files: Sequence[str], overrides: Sequence[str], vary: Sequence[str], seeds: str | None, name: str | None
) -> Grid:
    """files: a grid, then configurations to lay over its base; with ``vary`` configurations only.

    overrides: words for every cell.  vary: ``KEY=a,b``; all combinations are made.  seeds, name: in place of the
    grid's.  Raises ``ConfigError``.
    """
    content: Mapping[str, Any]
    if vary:
        source, content = "--vary", {"variants": _varied(vary)}
        keys = [word.partition("=")[0].rpartition(".")[2] for word in vary]
        stem = "-".join([_stem(files[-1]) if files else "storm", *keys])
    elif files:
        source, content = _content(files[0])
        files, stem = files[1:], "-".join(map(_stem, files))
    else:
        raise ConfigError(f"there is no grid: give one of {', '.join(grid_names())}, a file, or --vary KEY=a,b")
    variants = content.get("variants")
    if not isinstance(variants, dict) or not variants:
        raise ConfigError(f"{source}: the grid is empty: variants must map at least one name to its words")
    for called in (name or stem, *variants):
        if not NAME.fullmatch(called):
            raise ConfigError(
                f"{source}: '{called}' cannot name a folder: use letters, digits, '_', '.', '+' and '-', and begin "
                "with a letter or a digit"
            )
    given_seeds = _seeds(content.get("seeds", "1"), f"{source}: seeds")
    if seeds is not None:
        given_seeds = _seeds(seeds.split(",") if "," in seeds else seeds, "--seeds")
    grid = Grid(
        name or stem,
        (*_words(content.get("base"), f"{source}: base"), *files, *overrides),
        {called: tuple(_words(words, f"{source}: variant '{called}'")) for called, words in variants.items()},
        tuple(_environment(word) for word in _words(content.get("environments"), f"{source}: environments")),
        given_seeds,
    )
    for called, words in grid.variants.items():
        for word in itertools.filterfalse(is_override, words):
            raise ConfigError(f"{source}: variant '{called}': '{word}' is not of the form KEY=VALUE")
    for word in itertools.chain(grid.base, *grid.variants.values()):
        key = word.partition("=")[0]
        if key in GIVEN:
            raise ConfigError(f"{word}: {GIVEN[key]}")
    return grid


def refuse_repeated(names: Sequence[str], what: str, why: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two {what} are called '{name}': {why}")


def grid_names() -> list[str]:
    """Names of the bundled grids."""
    return sorted(path.stem for path in (config_folder() / "ablations").glob("*.yaml"))


def _content(word: str) -> tuple[str, Mapping[str, Any]]:
    """Where a grid is read from, and what its file holds."""
    is_path = os.sep in word or word.endswith((".yaml", ".yml"))
    if not is_path and word not in grid_names():
        hint = nearest(word, grid_names())
        if word in config_names():
            hint = f": '{word}' is a configuration, and --vary KEY=a,b makes a grid of it"
        raise ConfigError(f"there is no grid '{word}'{hint}; bundled are {', '.join(grid_names())}, or give a file")
    path = Path(word) if is_path else config_folder() / "ablations" / f"{word}.yaml"
    content = read_mapping(path, "grid")
    for key in content:
        if key not in KEYS:
            raise ConfigError(f"{path}: a grid has no '{key}'{nearest(key, KEYS)}; it has {', '.join(KEYS)}")
    return str(path), content


def _words(value: Any, where: str) -> list[str]:
    """Words in one text, or in a list."""
    if value is None or getattr(value, "kind", "") == "null":
        return []
    if isinstance(value, str):
        return shlex.split(value)
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return [str(word) for word in value]
    raise ConfigError(f"{where}: expected words such as KEY=VALUE, in one text or a list")


def _environment(word: str) -> str:
    """The word that chooses an environment: a game is in CamelCase, an id has a slash, a colon or a version."""
    if is_override(word):
        return word
    return f"env.id={word}" if re.search(r"[/:]|-v\d+$", word) else f"env.game={word}"


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    """``3`` stands for 0, 1 and 2; a list for itself."""
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and re.fullmatch(r" *\d{1,10} *", text) for text in texts):
        raise ConfigError(f"{where}={value}: expected how many, or a list of seeds")
    numbers = tuple(int(text) for text in texts)
    seeds = numbers if isinstance(value, list) else tuple(range(numbers[0]))
    if not seeds or max(seeds) > LARGEST_SEED or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}={value}: expected at least one seed, each once, up to {LARGEST_SEED}")
    return seeds


def _varied(vary: Iterable[str]) -> dict[str, list[str]]:
    """All combinations of ``KEY=a,b``, named by their values."""
    choices = []
    for word in vary:
        key, separator, text = word.partition("=")
        values = [value for value in _split(text) if value]
        if not separator or not values:
            raise ConfigError(f"--vary {word}: expected KEY=VALUE,VALUE")
        choices.append([(key, value) for value in values])
    combinations = list(itertools.product(*choices))
    names = ["-".join(itertools.starmap(_value_name, chosen)) for chosen in combinations]
    if len(set(names)) < len(names):
        names = ["-".join(itertools.starmap(_full_name, chosen)) for chosen in combinations]
    refuse_repeated(names, "variants", "give each value once with --vary, or write a grid file")
    return {name: [f"{key}={value}" for key, value in chosen] for name, chosen in zip(names, combinations, strict=True)}


def _split(text: str) -> list[str]:
    """At the commas that stand in no brackets.

    >>> _split("a,[b,c],d")
    ['a', '[b,c]', 'd']
    """
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return values


def _value_name(key: str, value: str) -> str:
    """A word says what it is; a number needs its key beside it.

    >>> _value_name("agent.agent_state", "both"), _value_name("agent.gamma", "0.9")
    ('both', 'gamma_0.9')
    """
    says = re.fullmatch(r"[a-zA-Z]\w+", value) and value.lower() not in ("true", "false", "null", "on", "off")
    return value if says else _full_name(key, value)


def _full_name(key: str, value: str) -> str:
    return _safe(f"{key.rpartition('.')[2]}_{value}")


def _safe(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def _stem(word: str) -> str:
    return _safe(Path(word).stem) or "grid"
