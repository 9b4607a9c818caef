"""Environments and wrappers for the words of ``env``, for processes of isolated environments to import."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Drawn(gymnasium.Env[np.ndarray, int]):
    """Numbers to see, and a picture of them: a bright row that goes down at each step.

    rows: of the picture.  broken: whether it cannot be drawn.
    """

    metadata = {"render_modes": ["rgb_array", "human"]}  # noqa: RUF012  as Gymnasium has it
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, rows: int = 20, broken: bool = False, render_mode: str | None = None) -> None:
        self.rows, self.broken, self.render_mode = rows, broken, render_mode
        self.row = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.row = int(self.np_random.integers(self.rows))
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.row = (self.row + 1) % self.rows
        return np.zeros(2, np.float32), float(action), self.row == 0, False, {}

    def render(self) -> np.ndarray:
        if self.broken:
            raise OSError("no display")
        picture = np.zeros((self.rows, 30, 3), np.uint8)
        picture[self.row] = (255, 128, 0)
        return picture


class Blind(Drawn):
    metadata = {"render_modes": ["human"]}  # noqa: RUF012


class Negative(gymnasium.ObservationWrapper):
    """Bright for dark."""

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return 255 - observation


class Halved(gymnasium.ObservationWrapper):
    """Half as bright."""

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation // 2


class Choosy(gymnasium.Wrapper):
    def __init__(self, env: gymnasium.Env) -> None:
        raise RuntimeError("not this one")


class NoWrapper:
    pass


class Channels(gymnasium.Env[np.ndarray, int]):
    """A lit cell that walks through a 10 x 10 grid of five channels of bools, as MinAtar shows its games."""

    observation_space = spaces.Box(0, 1, (10, 10, 5), np.bool_)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(5))
        return self.grid(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place += 1
        return self.grid(), float(action), self.place == 9, False, {}

    def grid(self) -> np.ndarray:
        grid = np.zeros((10, 10, 5), np.bool_)
        grid[self.place, :, self.place % 5] = True
        return grid


gymnasium.register("Channels-v0", entry_point=Channels)
gymnasium.register("Drawn-v0", entry_point=Drawn)
gymnasium.register("Blind-v0", entry_point=Blind)
