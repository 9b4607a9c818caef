"""Values as they were typed, in a file or in a word, and what a key takes them for.

YAML 1.1 reads 010 as 8, 1:30 as 90 and the name "on" as true. So only the structure is left to YAML; a single value
stays text until its key says what it wants: text is taken as typed, and whole numbers are decimal.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import yaml

from stormlit.errors import ConfigError
from stormlit.registry import Option

LONGEST_NUMBER = 300  # characters
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[-+]?\d+)?|[-+]?\.?inf|\.?nan")


class Word(str):
    """One value as it was typed.  kind: what YAML takes it for, or "text" where it stood in quotes."""

    kind: str

    @classmethod
    def of(cls, text: str, kind: str) -> Word:
        word = cls(text)
        word.kind = kind
        return word

    @property
    def value(self) -> Any:
        """What it is where no text is wanted."""
        plain = self.lower().replace("_", "")
        if self.kind in ("null", "bool"):
            return None if self.kind == "null" else yaml.SafeLoader.bool_values[plain]
        if self.kind == "text" or len(self) > LONGEST_NUMBER or not _NUMBER.fullmatch(self.lower()):
            return str(self)
        return int(plain) if plain.lstrip("+-").isdecimal() else float(plain.replace(".inf", "inf").replace(".n", "n"))


def read_yaml(text: str) -> Any:
    """Nested dictionaries and lists of ``Word``.

    Raises ``ValueError`` for an empty text, ``yaml.YAMLError`` for what is not YAML, and ``RecursionError`` for what is
    nested too deeply.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ValueError("it is empty")
        loader.deep_construct = True  # so that an alias that contains itself is refused
        return loader.construct_document(root)
    finally:
        loader.dispose()


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """What a YAML file holds; raises ``ConfigError`` unless that is a mapping.  what: the file is, in a sentence."""
    try:
        content = read_yaml(path.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(f"the {what} file {path} does not exist") from None
    except RecursionError:
        raise ConfigError(f"{path} is not a readable YAML file: it is nested too deeply") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else f"'{content}'"
        raise ConfigError(f"{path} must hold a mapping of {what} keys, not {found}")
    return content


def value_of_word(option: Option, text: str, key: str) -> Any:
    """What a key takes the right side of ``KEY=VALUE`` for: the text itself, or what it would be in a file."""
    lists = option.type is Any or typing.get_origin(option.types[0]) is list
    if _wants_text(option) and not (lists and text.startswith("[")):
        return value_for(option, Word.of(text, "null" if text == "null" else "text"), key)
    return value_for(option, read_word(text, key), key)


def read_word(text: str, key: str) -> Any:
    """A word's value as YAML; raises ``ConfigError`` naming the key for what is none."""
    try:
        return read_yaml(text) if text.strip() else Word.of("", "null")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key}: the value '{text}' cannot be read: {' '.join(str(error).split())}") from error


def value_for(option: Option, typed: Any, key: str) -> Any:
    """What a key takes a value for: a ``Word``, or lists and mappings of them.

    Raises ``ConfigError`` for a value that is left open, for more than one where one is expected, and for a path that
    can be none.
    """
    wanted = option.types[0]
    if typing.get_origin(wanted) is list and getattr(typed, "kind", "") != "null":
        option = dataclasses.replace(option, type=typing.get_args(wanted)[0])
        typed = typed if isinstance(typed, list) else [typed]  # one of them, without brackets
    elif isinstance(typed, (list, dict)) and wanted is str:
        raise ConfigError(f"{key}={typed} is more than one value: expected one")
    if isinstance(typed, dict):
        return {str(name): value_for(option, value, key) for name, value in typed.items()}
    if isinstance(typed, list):
        return [value_for(option, value, key) for value in typed]
    if typed == "???":
        raise ConfigError(f"{key}=??? leaves the value open: give one")
    value = str(typed) if _wants_text(option) and typed.kind != "null" else typed.value
    if isinstance(value, float) and value.is_integer() and int in option.types:
        return int(value)  # 1e5
    return _expanded_path(key, value) if option.path and value is not None else value


def _wants_text(option: Option) -> bool:
    wanted = option.types[0]
    named = typing.get_origin(wanted) is Literal and all(isinstance(choice, str) for choice in option.choices)
    return option.path or named or wanted is str or wanted == list[str]


def _expanded_path(key: str, path: str) -> str:
    if not path or "\0" in path:
        raise ConfigError(f"{key}={path!r} is no path: expected one that is not empty")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(f"{key}={path}: there is no home directory of that user; a folder of that name is ./{path}")
    return expanded


class _Loader(yaml.SafeLoader):
    """YAML's structure, with every single value left as it was typed."""

    yaml_constructors: typing.ClassVar = {  # anything else, such as !!binary, is refused
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
    }

    def word(self, node: yaml.Node) -> Word:
        return Word.of(node.value, node.tag.rpartition(":")[2] if node.style is None else "text")

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        names = Counter(name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode))
        for name, count in names.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {name}", node.start_mark)
        return super().construct_mapping(node, deep)


for _kind in ("null", "bool", "int", "float", "str", "timestamp", "value"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.word)
