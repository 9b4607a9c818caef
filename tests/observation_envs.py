"""Environments for every kind of observation, for processes of isolated environments to import:
``observation_envs:Vector-v0``. Episodes last eight steps; what is seen follows from the seed and the actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from stormlit.envs import EnvSettings

EPISODE = 8
IMAGE = spaces.Box(0, 255, (16, 16, 3), np.uint8)
GREY = spaces.Box(0.0, 1.0, (16, 16), np.float32)

SPACES: dict[str, spaces.Space[Any]] = {
    "Vector": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "Choice": spaces.Discrete(4, start=-1),
    "Both": spaces.Dict({"picture": IMAGE, "speed": spaces.Box(-9.0, 9.0, (2,), np.float32)}),
    "Nested": spaces.Tuple(
        [
            spaces.Dict({"near": IMAGE, "far": GREY}),
            spaces.MultiDiscrete([2, 3]),
            spaces.MultiBinary(2),
            spaces.Box(-1.0, 1.0, (), np.float32),
        ]
    ),
}


def shown(space: spaces.Space[Any], level: float) -> Any:
    """An observation of a space for a level in [0, 1)."""
    match space:
        case spaces.Dict():
            return {key: shown(inner, level) for key, inner in space.items()}
        case spaces.Tuple():
            return tuple(shown(inner, level) for inner in space)
        case spaces.Discrete():
            return space.start + np.int64(level * space.n)
        case spaces.MultiDiscrete():
            return (level * space.nvec).astype(space.dtype)
        case spaces.MultiBinary():
            return np.full(space.shape, level > 0.5, np.int8)
        case spaces.Box():
            high = np.minimum(space.high.astype(np.float64), 1000.0)
            return (level * high).astype(space.dtype)
    raise TypeError(space)


class Level(gymnasium.Env[Any, np.int64]):
    """A level that rises with action 1 and falls with 0; ``spoil`` may change what is returned of it."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any], spoil: Callable[[Any], Any] | None = None) -> None:
        self.observation_space, self._spoil = space, spoil
        self._steps, self._level = 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps, self._level = 0, float(self.np_random.uniform())
        return shown(self.observation_space, self._level), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._level = (self._level + (0.13 if action else -0.07)) % 1.0
        obs = shown(self.observation_space, self._level)
        return obs if self._spoil is None else self._spoil(obs), self._level, self._steps == EPISODE, False, {}


for _name, _space in SPACES.items():
    gymnasium.register(f"{_name}-v0", Level, max_episode_steps=100, kwargs={"space": _space})


def settings(name: str, **words: Any) -> EnvSettings:
    return EnvSettings(game=None, id=f"observation_envs:{name}-v0", size=16, **words)
