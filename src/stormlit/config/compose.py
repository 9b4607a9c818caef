"""From configuration files and ``key=value`` overrides to one checked ``Config``.

Layers, later ones winning: the schema's defaults, the files in the order given, the overrides. Two rules keep the
layers free of stale values: naming another part drops the options of the one before, and of ``env.game`` and ``env.id``
the last one set clears the other.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stormlit.config.checks import check_ranges
from stormlit.config.components import PART_KEYS, PART_LISTS
from stormlit.config.schema import KEYS, Config
from stormlit.config.text import Word, read_mapping, read_word, read_yaml, value_for, value_of_word
from stormlit.errors import ConfigError, nearest
from stormlit.registry import Option, allowed_values, fill, first_line, leaves, names, options, part_class, structured

Tree = dict[str, Any]


def config_folder() -> Path:
    """Where the bundled configurations are: the repository's ``configs/``, or the copy inside an installed package."""
    repository = Path(__file__).resolve().parents[3] / "configs"
    return repository if repository.is_dir() else Path(str(resources.files("stormlit"))) / "configs"


def config_names() -> list[str]:
    """Names of the bundled configurations, ``storm`` first among equals."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def compose(files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Config:
    """Resolve a configuration.

    files: names of bundled configurations or paths of YAML files.  overrides: ``key=value`` strings.
    Raises ``ConfigError`` with one sentence that names the key or file, what was expected and the nearest choice.
    """
    tree = _defaults()
    for name, following in itertools.zip_longest(files, files[1:], fillvalue="VALUE"):
        path, layer = _read(name, following)
        _assign(tree, leaves(layer), source=f"{path}: ")
    _assign(tree, itertools.chain.from_iterable(map(_parse, overrides)), source="")
    return _typed(tree)


def from_tree(tree: Tree) -> Config:
    """The configuration that ``to_tree`` made one of, or a part of one; what is missing has its default."""
    filled = _defaults()
    # As from a file, or the text "010" would be taken for a number.
    _assign(filled, leaves(read_yaml(OmegaConf.to_yaml(OmegaConf.create(tree)))), source="a saved configuration: ")
    return _typed(filled)


def _typed(filled: Tree) -> Config:
    """The checked configuration that a tree with every key describes."""
    for key, kind in PART_KEYS.items():
        parent, leaf = _parent(filled, key)
        parent[leaf] = fill(kind, parent[leaf], key)
    for key, kind in PART_LISTS.items():
        parent, leaf = _parent(filled, key)
        if not isinstance(parent[leaf], list):
            raise ConfigError(f"{key}={parent[leaf]} is no list: expected [] or [NAME,...] of {', '.join(names(kind))}")
        parent[leaf] = [fill(kind, node, f"{key}[{index}]") for index, node in enumerate(parent[leaf])]
    try:
        config = cast(Config, OmegaConf.to_object(OmegaConf.merge(structured(Config), filled)))
    except OmegaConfBaseException as error:
        hint = "; Apple's GPUs are not supported: choose cpu" if filled["accelerator"] == "mps" else ""
        if error.full_key == "threads":  # OmegaConf names neither of the two types in words
            hint = f": expected {allowed_values(KEYS['threads'])}"
            raise ConfigError(f"threads={filled['threads']} is not possible{hint}") from error
        raise ConfigError(f"{error.full_key}: {first_line(error)}{hint}") from error
    check_ranges(config)
    return config


def to_tree(config: Config) -> Tree:
    """The configuration as nested built-in types; ``from_tree`` takes it back, and ``compose`` from a file."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The configuration as YAML text that ``compose`` takes back."""
    # OmegaConf quotes what its own reader would take for a number, such as the name 1e3.
    return OmegaConf.to_yaml(OmegaConf.create(to_tree(config)))


def _defaults() -> Tree:
    return cast(Tree, OmegaConf.to_container(structured(Config)))


def _read(name: str, following: str) -> tuple[Path, Tree]:
    path = config_folder() / f"{name}.yaml"
    if os.sep in name or name.endswith((".yaml", ".yml")):
        path = Path(name)
    elif is_key(name):
        raise ConfigError(f"'{name}' is a key, not a configuration: write {as_override(name, following)}")
    elif name not in config_names():
        raise ConfigError(
            f"there is no configuration '{name}'{nearest(name, config_names())}; bundled are "
            f"{', '.join(config_names())}, or give the path of a .yaml file, or KEY=VALUE"
        )
    return path, read_mapping(path, "configuration")


def is_key(name: str) -> bool:
    """Whether a name could be a key, or a group of keys."""
    open_ended = [*PART_KEYS, *(key for key, option in KEYS.items() if option.any_keys)]
    return any(f"{key}.".startswith(f"{name}.") for key in KEYS) or name.startswith(
        tuple(f"{key}." for key in open_ended)
    )


def as_override(name: str, following: str = "VALUE") -> str:
    """How to write a key, or one of a group, that was given as ``seed 1`` or ``--seed 1``."""
    members = [key for key in KEYS if key.startswith(f"{name}.") and name not in PART_KEYS]
    return f"{members[0]}=VALUE" if members else f"{name}={following}"


def is_override(word: str) -> bool:
    """Whether a word is ``KEY=VALUE``; the path of a configuration file may have an equals sign too."""
    key, separator, _ = word.partition("=")
    return bool(separator) and (is_key(key) or not word.endswith((".yaml", ".yml")))


def _parse(override: str) -> Iterator[tuple[str, Any]]:
    """The keys that a word sets, with what they are set to as it was typed; several where it is a mapping."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"'{override}' is neither a configuration nor of the form KEY=VALUE")
    mapping = text.startswith("{") and (key in PART_KEYS or key not in KEYS)
    yield from leaves({key: read_word(text, key)}) if mapping else [(key, text)]


# Keys of earlier releases that nothing reads any more. Files, such as an old run's config.yaml, may still hold them.
REMOVED = {"world_model.sequence_model.cache": "keys and values are kept, which gives the same numbers for less work"}


def _assign(tree: Tree, assignments: Iterable[tuple[str, Any]], source: str) -> None:
    """Write ``(key, value)`` pairs into the tree: names of parts first, so that the order given does not matter."""
    pairs = [(f"{key}.name" if key in PART_KEYS else key, value) for key, value in assignments]
    names = {f"{key}.name": key for key in PART_KEYS}
    for key, value in sorted(pairs, key=lambda pair: pair[0] not in names):
        if key in REMOVED and source:
            continue
        try:
            if key in names:
                part = names[key]
                parent, leaf = _parent(tree, part)
                fill(PART_KEYS[part], str(value), part)
                if parent[leaf]["name"] != value:
                    parent[leaf] = {"name": str(value)}
                continue
            option = _option(tree, key)
            parent, leaf = _parent(tree, key)
            as_word = isinstance(value, str) and not isinstance(value, Word)
            parent[leaf] = (value_of_word if as_word else value_for)(option, value, key)
            if key in ("env.game", "env.id") and parent[leaf] is not None:
                parent["id" if leaf == "game" else "game"] = None
        except ConfigError as error:
            raise ConfigError(f"{source}{error}") from error


def _parent(tree: Tree, key: str) -> tuple[Tree, str]:
    *path, leaf = key.split(".")
    for name in path:
        # A name that nothing declares, as in env.kwargs: the first word below it makes a mapping.
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    return tree, leaf


def _option(tree: Tree, key: str) -> Option:
    """What a key sets; raises ``ConfigError`` unless that is one value of the schema or of the part now named."""
    if key in REMOVED:
        raise ConfigError(f"{key} is gone: {REMOVED[key]}")
    allowed, where, path = options(Config), "", key.split(".")
    for depth, name in enumerate(path, start=1):
        if name not in allowed:
            raise ConfigError(_unknown(tree, key, name, list(allowed), where))
        option, where = allowed[name], ".".join(path[:depth])
        if option.group is not None:
            allowed = options(option.group)
        elif option.part and where in PART_KEYS:
            parent, leaf = _parent(tree, where)
            part = parent[leaf]["name"]
            allowed, where = options(part_class(option.part, part)), f"{where} ({part})"
        elif option.any_keys:
            return option if depth == len(path) else Option(name=path[-1])
        elif depth < len(path):
            raise ConfigError(f"{where} is a single value and has no key '{path[depth]}'")
    if option.group is not None:
        members = ", ".join(f"{key}.{name}" for name in allowed)
        raise ConfigError(f"{key} is a group of settings; set one of them: {members}")
    return option


def _unknown(tree: Tree, key: str, name: str, allowed: Sequence[str], here: str) -> str:
    everywhere = [full for full, _ in leaves(tree) if full.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = nearest(name, allowed) or (f" (did you mean '{everywhere[0]}'?)" if everywhere else "")
    return f"there is no key '{key}'{hint}; {here or 'the configuration'} has {', '.join(allowed) or 'no options'}"
