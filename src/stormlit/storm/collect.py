"""Real experience: one step of every environment into the replay buffer."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from stormlit.data import Episode
from stormlit.envs import VectorEnv
from stormlit.storm.acting import Player
from stormlit.storm.replay import ReplayBuffer


class Collector:
    """Steps the environments, at random or with the player, and stores what happened.

    seed: of the random actions.
    returns: "complete", or "without_last_reward", which reports an episode's return without its last reward and adds
    that to the next one's, as the released code does (weipu-zhang/STORM, train.py).
    """

    def __init__(
        self,
        envs: VectorEnv,
        player: Player,
        replay: ReplayBuffer,
        *,
        seed: int,
        returns: Literal["complete", "without_last_reward"] = "complete",
    ) -> None:
        self.envs, self.player, self.replay = envs, player, replay
        self.returns = returns
        self.held_back = [0.0] * envs.num_envs  # last rewards of the episodes before
        self.latest_return: float | None = None  # of the last finished episode
        self.random = np.random.default_rng(seed)
        self.obs = envs.reset()
        self.is_first = np.ones(envs.num_envs, dtype=bool)

    def select_action(self, *, random: bool) -> np.ndarray:
        """The next action of every environment, (N, *shape)."""
        if random:
            return self.envs.action_space.random(self.random, self.envs.num_envs)
        return self.player.act(self.obs, self.is_first)

    def step(self, action: np.ndarray) -> list[Episode]:
        """``step_async`` and ``step_wait``."""
        self.step_async(action)
        return self.step_wait()

    def step_async(self, action: np.ndarray) -> None:
        """Begin a step of every environment; to be followed by ``step_wait``."""
        self.envs.step_async(action)
        self._action = action

    def step_wait(self) -> list[Episode]:
        """Wait for the step and store what happened.  Returns the episodes that ended."""
        outcome, action = self.envs.step_wait(), self._action
        # After a crash the row says reward 0 and no end, which nobody knows: one false target a crash, and those are
        # counted and few. Leaving the row out would tear a hole in those of the other environments, and the next row is
        # first of an episode, so that no KL, memory or return reaches across.
        self.replay.append(self.obs, action, outcome.reward, outcome.terminated, self.is_first)
        self.obs, self.is_first = outcome.obs, outcome.is_first
        episodes = outcome.episodes
        if self.returns == "without_last_reward":
            episodes = [self._without_last_reward(episode) for episode in episodes]
        for episode in episodes:
            if not episode.crashed:
                self.latest_return = episode.episode_return
        return episodes

    def _without_last_reward(self, episode: Episode) -> Episode:
        reported = episode.episode_return - episode.last_reward + self.held_back[episode.env_index]
        self.held_back[episode.env_index] = episode.last_reward
        return dataclasses.replace(episode, episode_return=reported)

    def state_dict(self) -> dict[str, Any]:
        return {
            "envs": self.envs.state_dict(),
            "player": self.player.state_dict(),
            "random": self.random.bit_generator.state,
            "is_first": self.is_first.tolist(),
            "held_back": list(self.held_back),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        anew = self.envs.load_state_dict(state["envs"])
        self.player.load_state_dict(state["player"])
        self.random.bit_generator.state = state["random"]
        self.obs = self.envs.current_obs
        self.is_first = np.array(state["is_first"], dtype=bool) | anew
        self.held_back = [0.0 if new else held for new, held in zip(anew, state["held_back"], strict=True)]
