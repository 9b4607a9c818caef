"""Environments: settings, single environments, and N of them stepped together."""

from __future__ import annotations

from stormlit.envs.atari import ATARI_100K_GAMES, human_normalized
from stormlit.envs.make import make_env, square_image
from stormlit.envs.row import episode_seed
from stormlit.envs.settings import AtariSettings, EnvSettings, env_id, env_name
from stormlit.envs.vector import VectorEnv

__all__ = [
    "ATARI_100K_GAMES",
    "AtariSettings",
    "EnvSettings",
    "VectorEnv",
    "env_id",
    "env_name",
    "episode_seed",
    "human_normalized",
    "make_env",
    "square_image",
]
