"""Importing this module registers every bundled part, and says which configuration key holds a part of which kind."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, get_origin

from stormlit import nn, registry, tracking
from stormlit.config.schema import KEYS
from stormlit.errors import ConfigError

PART_KEYS = {key: option.part for key, option in KEYS.items() if option.part and get_origin(option.type) is not list}
# Keys that hold any number of parts.
PART_LISTS = {key: option.part for key, option in KEYS.items() if option.part and key not in PART_KEYS}

__all__ = ["PART_KEYS", "PART_LISTS", "check_part", "nn", "tracking"]


def check_part(kind: str, part: str | type, **options: Any) -> list[str]:
    """Try a part of any origin on the laws of its kind; one sentence for each that it does not keep, none if all hold.

    kind: such as "encoder".  part: a class, or a name as in the configuration.  options: of the part.
    Raises ``ConfigError`` for a kind, a name or an option that does not exist.
    """
    from stormlit.checks.laws import (
        LAWS,
        broken_laws,
        spaces_for,  # a training never needs the laws
        surroundings,
    )

    registry.names(kind)
    cls = registry.part_class(kind, part) if isinstance(part, str) else part
    who = f"{kind.replace('_', ' ')} '{part if isinstance(part, str) else f'{cls.__module__}:{cls.__qualname__}'}'"
    given = surroundings(kind) if kind in LAWS else (Path("runs", "run"), Path("runs"))
    try:
        registry.check_class(kind, cls)
        inspect.signature(cls).bind(*given, **options)
    except (ConfigError, TypeError) as error:
        return [f"{who}: {error}"]
    if kind == "policy":  # tried on every kind of actions that it is for
        surroundings_of_all = [(space,) for space in spaces_for(cls)]
    else:
        surroundings_of_all = [given] if kind in LAWS else []
    return [
        sentence
        for given in surroundings_of_all
        for sentence in broken_laws(who, kind, functools.partial(cls, *given, **options), given)
    ]
