"""Importing this module registers every bundled part, and says which configuration key holds a part of which kind."""

from __future__ import annotations

from stormlit import nn, tracking
from stormlit.config.schema import KEYS
from stormlit.nn import agent_states as agent_state

PART_KEYS = {key: option.part for key, option in KEYS.items() if option.part}

__all__ = ["PART_KEYS", "agent_state", "nn", "tracking"]
