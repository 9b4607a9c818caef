"""Importing this module registers every bundled part, and says which configuration key holds a part of which kind."""

from __future__ import annotations

import inspect
from typing import Any

from stormlit import nn, registry, tracking
from stormlit.errors import ConfigError
from stormlit.nn import agent_states as agent_state
from stormlit.nn.laws import LAWS, broken_laws, surroundings

PART_KEYS: dict[str, str] = {
    "world_model.encoder": "encoder",
    "world_model.decoder": "decoder",
    "world_model.latent": "latent",
    "world_model.sequence_model": "sequence_model",
    "world_model.reward_head": "head",
    "world_model.continuation_head": "head",
    "agent.agent_state": "agent_state",
    "agent.actor": "head",
    "agent.critic": "head",
    "tracking": "tracker",
}

__all__ = ["PART_KEYS", "agent_state", "check_part", "nn", "tracking"]


def check_part(kind: str, part: str | type, **options: Any) -> list[str]:
    """Try a part of any origin on the laws of its kind; one sentence for each that it does not keep, none if all hold.

    kind: such as "encoder".  part: a class, or a name as in the configuration.  options: of the part.
    Raises ``ConfigError`` for a kind, a name or an option that does not exist.
    """
    registry.names(kind)
    cls = registry.part_class(kind, part) if isinstance(part, str) else part
    name = part if isinstance(part, str) else f"{cls.__module__}:{cls.__qualname__}"
    who = f"{kind.replace('_', ' ')} '{name}'"
    try:
        for option in registry._options(cls):
            if option.annotation is option.empty:
                return [f"{who}: option '{option.name}' of {cls.__name__} needs a type"]
            if option.default is option.empty:
                return [f"{who}: option '{option.name}' of {cls.__name__} needs a default"]
    except ConfigError as error:
        return [f"{who}: {error}"]
    if kind not in LAWS:
        return []
    given = surroundings(kind)
    try:
        inspect.signature(cls).bind(*given, **options)
    except TypeError as error:
        return [f"{who}: {error}"]
    return broken_laws(who, kind, lambda: cls(*given, **options), given)
