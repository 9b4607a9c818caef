"""Importing this module registers every bundled part, and says which configuration key holds a part of which kind."""

from __future__ import annotations

from stormlit import nn, tracking
from stormlit.nn import agent_states as agent_state

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

__all__ = ["PART_KEYS", "agent_state", "nn", "tracking"]
