"""Atari games by the Atari 100k protocol, and the scores they are normalised with."""

from __future__ import annotations

import csv
from importlib import resources
from typing import Any

import ale_py
import gymnasium
import numpy as np

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner on stderr for every process


def _read_reference_scores() -> dict[str, tuple[float, float]]:
    with resources.files("stormlit.envs").joinpath("atari_scores.csv").open() as file:
        return {row["game"]: (float(row["random"]), float(row["human"])) for row in csv.DictReader(file)}


NOOP = 0  # first in the action set of every game but two (Backgammon and VideoCheckers, which have none)

_REFERENCE_SCORES = _read_reference_scores()

ATARI_100K_GAMES: tuple[str, ...] = tuple(_REFERENCE_SCORES)
"""The 26 games of the Atari 100k benchmark (Kaiser et al., 2020), in alphabetical order."""


def human_normalized(game: str, episode_return: float) -> float | None:
    """``(return - random) / (human - random)``: 0 plays like random actions, 1 like a human; None outside the 26 games.

    The reference scores are those that every Atari 100k paper uses (Mnih et al., 2015; Wang et al., 2016).

    >>> human_normalized("Pong", 14.6), human_normalized("Tetris", 10.0)
    (1.0, None)
    """
    if game not in _REFERENCE_SCORES:
        return None
    random, human = _REFERENCE_SCORES[game]
    return (episode_return - random) / (human - random)


def ale_games() -> list[str]:
    """Names of all games of the Arcade Learning Environment, in CamelCase."""
    return sorted({spec.name for spec in gymnasium.registry.values() if spec.namespace == "ALE"})


class AtariProtocol(gymnasium.Wrapper[np.ndarray, int, np.ndarray, int]):
    """Frame skip, maximum of the last two frames, no-ops at reset and lost lives, over an ALE environment.

    env: made with ``frameskip=1``, RGB frames (Y, X, 3) uint8. Frames keep their size.
    frame_skip, max_pool, noop_max: see ``AtariSettings``.
    ``info["life_lost"]`` (bool) tells that the step ended with fewer lives than it began with.

    A step that the end of the episode cuts short shows the maximum of the frames it saw, at most the last two.
    No-ops are counted in emulator frames; should they end the episode, the game is reset and the rest of them follow.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, int], frame_skip: int, max_pool: bool, noop_max: int) -> None:
        super().__init__(env)
        self._frame_skip = frame_skip
        self._max_pool = max_pool
        self._noop_max = noop_max
        self._lives = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        frame, info = self.env.reset(seed=seed, options=options)
        for _ in range(self._draw_noops()):
            frame, _, terminated, truncated, info = self.env.step(NOOP)
            if terminated or truncated:
                frame, info = self.env.reset(options=options)
        self._lives = info["lives"]
        return frame, {**info, "life_lost": False}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated, info = self.env.step(action)
        image, total_reward = frame, float(reward)
        for _ in range(self._frame_skip - 1):
            if terminated or truncated:
                break
            previous = frame
            frame, reward, terminated, truncated, info = self.env.step(action)
            image = np.maximum(previous, frame) if self._max_pool else frame
            total_reward += float(reward)
        life_lost = info["lives"] < self._lives
        self._lives = info["lives"]
        return image, total_reward, terminated, truncated, {**info, "life_lost": life_lost}

    def _draw_noops(self) -> int:
        return int(self.np_random.integers(1, self._noop_max + 1)) if self._noop_max else 0
