"""Environments for every kind of action, for processes of isolated environments to import: ``action_envs:Box-v0``.

Each shows 16 x 16 pixels whose brightness is what the actions so far led to, and refuses an action that its own space
does not contain, to the bit of its dtype. Episodes last six steps.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from stormlit.envs import EnvSettings

EPISODE = 6

SPACES: dict[str, spaces.Space[Any]] = {
    "Started": spaces.Discrete(3, start=-1),
    "Multi": spaces.MultiDiscrete(np.array([[3, 2], [2, 4]]), start=np.array([[1, 0], [0, -2]])),
    "Binary": spaces.MultiBinary([2, 2]),
    "Box": spaces.Box(np.array([-2.0, 0.1]), np.array([0.3, 0.7]), dtype=np.float32),
    "BoxDouble": spaces.Box(-5.0, 7.0, (2, 1), np.float64),
    "BoxScalar": spaces.Box(0.0, 1.0, (), np.float32),
}


class Acting(gymnasium.Env[np.ndarray, Any]):
    """``taken`` are the actions of the episode, as they came."""

    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.action_space = space
        self.taken: list[Any] = []
        self.level = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken, self.level = [], float(self.np_random.uniform(0, 100))
        return self._image(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise AssertionError(f"took {action!r}, outside {self.action_space}")
        self.taken.append(action)
        effect = float(np.sum(np.asarray(action, np.float64) * 3.0))
        self.level = (self.level + effect) % 256
        return self._image(), effect, len(self.taken) == EPISODE, False, {}

    def _image(self) -> np.ndarray:
        return np.full((16, 16, 3), int(self.level), np.uint8)


for _word, _space in SPACES.items():
    gymnasium.register(f"{_word}-v0", entry_point=Acting, max_episode_steps=100, kwargs={"space": _space})


def settings(env: str, **changes: Any) -> EnvSettings:
    return EnvSettings(game=None, id=f"action_envs:{env}-v0", size=16, **changes)
