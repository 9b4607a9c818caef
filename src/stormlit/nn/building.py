"""Building the parts that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from stormlit.checks.interfaces import INTERFACES
from stormlit.errors import ConfigError
from stormlit.registry import build, names, part_class, require_base
from stormlit.spaces import KINDS, ActionSpace

for _kind in INTERFACES:
    require_base(_kind, nn.Module, "torch.nn.Module")


def build_part(kind: str, node: str | Mapping[str, Any], *surroundings: Any, key: str, **spaces: Any) -> Any:
    """Construct the part that a node describes, see ``registry.build``; one of somebody else's (``module:Class``) is
    tried, the bundled ones are held by the tests.

    spaces: the run's own, which a sequence model or an objective is tried on; see ``try_part``.
    """
    part, name = build(kind, node, *surroundings, key=key), _name(node)
    if ":" in name:
        from stormlit.checks.trials import try_part

        try_part(f"{key}={name}", kind, part, *surroundings, **spaces)
    return part


def build_policy(node: str | Mapping[str, Any], action_space: ActionSpace, *, key: str) -> Any:
    """``build_part`` for a policy; raises ``ConfigError`` for one that is not for actions of this kind."""
    name = _name(node)
    fits = getattr(part_class("policy", name, key), "fits", ())
    if fits and action_space.kind not in fits:
        bundled: dict[str, Any] = {known: part_class("policy", known) for known in names("policy")}
        fitting = [known for known, cls in bundled.items() if action_space.kind in cls.fits]
        raise ConfigError(
            f"{key}={name} is for {' and '.join(KINDS[kind] for kind in fits)} actions, the environment has "
            f"{action_space}: choose from {', '.join(fitting)}"
        )
    return build_part("policy", node, action_space, key=key)


def _name(node: str | Mapping[str, Any]) -> str:
    return node if isinstance(node, str) else str(node["name"])
