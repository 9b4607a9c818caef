"""Real experience: one step of every environment into the replay buffer."""

from __future__ import annotations

from typing import Any

import numpy as np

from stormlit.envs import VectorEnv
from stormlit.player import Player
from stormlit.replay import ReplayBuffer
from stormlit.types import Episode


class Collector:
    """Steps the environments, at random or with the player, and stores what happened.

    seed: of the random actions.
    """

    def __init__(self, envs: VectorEnv, player: Player, replay: ReplayBuffer, *, seed: int) -> None:
        self.envs, self.player, self.replay = envs, player, replay
        self.random = np.random.default_rng(seed)
        self.obs = envs.reset()
        self.is_first = np.ones(envs.num_envs, dtype=bool)

    def step(self, *, random: bool) -> list[Episode]:
        """Take one action in every environment.  Returns the episodes that ended."""
        if random:
            action = self.random.integers(self.envs.num_actions, size=self.envs.num_envs)
        else:
            action = self.player.act(self.obs, self.is_first)
        outcome = self.envs.step(action)
        self.replay.append(self.obs, action, outcome.reward, outcome.terminated, self.is_first)
        self.obs, self.is_first = outcome.obs, outcome.is_first
        return outcome.episodes

    def state_dict(self) -> dict[str, Any]:
        return {
            "envs": self.envs.state_dict(),
            "player": self.player.state_dict(),
            "random": self.random.bit_generator.state,
            "is_first": self.is_first.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.envs.load_state_dict(state["envs"])
        self.player.load_state_dict(state["player"])
        self.random.bit_generator.state = state["random"]
        self.obs = self.envs.current_obs
        self.is_first = np.array(state["is_first"], dtype=bool)
