"""Catch: a tiny pixel environment that needs nothing but NumPy, for tests and first experiments."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

GRID = 8  # rows and columns
BEST_RETURN = 1.0  # always reachable
RANDOM_RETURN = -0.75  # mean of uniformly random actions: the ball is caught one time in eight

BALL_COLOUR = (255, 208, 64)
PADDLE_COLOUR = (64, 160, 255)
MOVES = (-1, 0, 1)  # columns, for the actions LEFT, NOOP, RIGHT


class Catch(gymnasium.Env[Any, Any]):
    """Catch a falling ball with a paddle one cell wide, on a grid of 8 x 8 cells.

    The ball starts in a random column of the top row and falls one row a step; the paddle starts in a random column of
    the bottom row and moves by at most one column a step. After 7 steps the ball is at the bottom and the episode
    terminates with reward +1 (caught) or -1 (missed); every other reward is 0. No column is further than 7 steps
    away, so the best return is +1 in every episode; random actions return -0.75 on average.

    Observations: (8 * cell, 8 * cell, 3) uint8, the ball and the paddle as solid blocks on black (the ball drawn over
    the paddle). Actions: 0 left, 1 stay, 2 right.
    With ``ball_as_numbers`` a dictionary, ``image`` without the ball, and ``ball``, its row and column as (2,) int64:
    neither is enough to play.
    With ``continuous`` the action is a number, (1,) float32 in [-1, 1]: how many columns the paddle moves. It may then
    stand between two columns, and catches a ball that is half a column away or less.
    """

    def __init__(self, cell: int = 8, ball_as_numbers: bool = False, continuous: bool = False) -> None:
        """``cell`` is the side of a grid cell in pixels; 8 makes observations of 64 x 64."""
        self._cell, self._ball_as_numbers = cell, ball_as_numbers
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Box(
            0, 255, (GRID * cell, GRID * cell, 3), np.uint8
        )
        if ball_as_numbers:
            ball = gymnasium.spaces.MultiDiscrete([GRID, GRID])
            self.observation_space = gymnasium.spaces.Dict({"ball": ball, "image": self.observation_space})
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(len(MOVES))
        if continuous:
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._ball_row = self._ball_column = 0
        self._paddle_column: float = 0  # a whole number unless actions are continuous

    def get_action_meanings(self) -> list[str]:
        """What the actions 0, 1 and 2 do, where they are these three."""
        return ["LEFT", "NOOP", "RIGHT"]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Place ball and paddle in random columns."""
        super().reset(seed=seed, options=options)
        self._ball_row = 0
        self._ball_column, self._paddle_column = (int(column) for column in self.np_random.integers(GRID, size=2))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move the paddle, then let the ball fall by one row."""
        move = float(action[0]) if isinstance(self.action_space, gymnasium.spaces.Box) else MOVES[action]
        self._paddle_column = min(max(self._paddle_column + move, 0), GRID - 1)
        self._ball_row += 1
        landed = self._ball_row == GRID - 1
        caught = abs(self._ball_column - self._paddle_column) <= 0.5
        reward = (1.0 if caught else -1.0) if landed else 0.0
        return self._seen(), reward, landed, False, {}

    def _seen(self) -> Any:
        if not self._ball_as_numbers:
            return self._image()
        return {"ball": np.array([self._ball_row, self._ball_column]), "image": self._image()}

    def _image(self) -> np.ndarray:
        image = np.zeros((GRID * self._cell, GRID * self._cell, 3), np.uint8)
        # Pixels at the edges of a paddle between two columns are as bright as they are covered.
        left = np.arange(GRID * self._cell) - self._paddle_column * self._cell
        covered = np.clip(np.minimum(left + 1, self._cell - left), 0.0, 1.0)
        image[-self._cell :] = np.outer(covered, PADDLE_COLOUR).round()
        if not self._ball_as_numbers:
            row, column = self._ball_row * self._cell, self._ball_column * self._cell
            image[row : row + self._cell, column : column + self._cell] = BALL_COLOUR
        return image


# The limit lies after the last step of every episode: it tells that all of them end.
gymnasium.register("stormlit/Catch-v0", entry_point="stormlit.envs.catch:Catch", max_episode_steps=GRID)
