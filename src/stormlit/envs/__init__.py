"""Environments: settings, single environments, and N of them stepped together."""

from __future__ import annotations

from stormlit.envs.atari import ATARI_100K_GAMES, human_normalized
from stormlit.envs.hosts import EnvFacts
from stormlit.envs.make import make_env
from stormlit.envs.observations import resized_image
from stormlit.envs.settings import AtariSettings, EnvSettings, env_id, env_name, is_atari, is_deterministic
from stormlit.envs.vector import VectorEnv, env_facts, episode_seed

__all__ = [
    "ATARI_100K_GAMES",
    "AtariSettings",
    "EnvFacts",
    "EnvSettings",
    "VectorEnv",
    "env_facts",
    "env_id",
    "env_name",
    "episode_seed",
    "human_normalized",
    "is_atari",
    "is_deterministic",
    "make_env",
    "resized_image",
]
