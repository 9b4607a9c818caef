"""What an environment returns, checked against Gymnasium's interface and its own spaces."""

from __future__ import annotations

from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces

from stormlit.envs.observations import View, described
from stormlit.errors import EnvironmentContractError

BOOLS = (bool, np.bool_)
LARGEST_REWARD = float(np.finfo(np.float32).max)  # what is learned from is float32


class CheckedEnv(gymnasium.Wrapper[np.ndarray, int, np.ndarray, int]):
    """Observations as they are stored, see ``ObservationSpace``, of an environment that keeps to Gymnasium's interface.

    view: what makes them of the environment's own.  name: the key that chose it, for error messages.
    A step raises ``ValueError`` for an action outside the space, before the environment sees it: some emulators hang
    for ever on an action they do not know.
    Raises ``EnvironmentContractError`` when the environment returns what it must not: another number of values, an
    observation outside its space, a reward that is not a finite number, an end that is not a bool, no info dictionary.
    """

    def __init__(self, env: gymnasium.Env[Any, int], view: View, name: str) -> None:
        super().__init__(env)
        self._view, self._name = view, name
        self._seed: int | None = None
        self._steps = 0
        self.stored_observations = view.stored
        low, high = (0, 255) if view.stored.dtype == np.uint8 else (-np.inf, np.inf)
        self.observation_space = spaces.Box(low, high, view.stored.shape, view.stored.dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._seed, self._steps = seed, 0
        returned = self.env.reset(seed=seed, options=options)
        if not isinstance(returned, tuple) or len(returned) != 2:
            self._refuse(f"{described(returned)} from reset, where Gymnasium expects (observation, info)")
        obs, info = returned
        if not isinstance(info, dict):
            self._refuse(f"{described(info)} as info, not a dictionary")
        return self._seen(obs), {"life_lost": False, **info}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is outside the action space {self.action_space}")
        returned: Any = self.env.step(action)
        self._steps += 1
        if not isinstance(returned, tuple) or len(returned) != 5:
            self._refuse(
                f"{described(returned)} from step, where Gymnasium expects (observation, reward, terminated, "
                f"truncated, info)"
            )
        obs, reward, terminated, truncated, info = returned
        if not (isinstance(terminated, BOOLS) and isinstance(truncated, BOOLS)):
            word, value = ("truncated", truncated) if isinstance(terminated, BOOLS) else ("terminated", terminated)
            self._refuse(f"{word} as {described(value)}, not as a bool")
        if not isinstance(info, dict):
            self._refuse(f"{described(info)} as info, not a dictionary")
        seen = self._seen(obs), self._checked_reward(reward)
        return *seen, bool(terminated), bool(truncated), {"life_lost": False, **info}

    def _seen(self, obs: Any) -> np.ndarray:
        try:
            return self._view(obs)
        except ValueError as error:
            self._refuse(str(error))

    def _checked_reward(self, reward: Any) -> float:
        try:
            value = reward if type(reward) is float else self._number(reward)
        except (TypeError, ValueError, OverflowError):
            self._refuse(f"{described(reward)} as the reward, not a number")
        if not -LARGEST_REWARD <= value <= LARGEST_REWARD:
            self._refuse(f"the reward {value}, which is not a finite float32")
        return value

    @staticmethod
    def _number(reward: Any) -> float:
        if isinstance(reward, str | bytes) or np.ndim(reward):
            raise TypeError
        return float(reward)

    def _refuse(self, what: str) -> NoReturn:
        where = f"at step {self._steps} of" if self._steps else "at the reset of"
        raise EnvironmentContractError(f"{self._name} returned {what} ({where} the episode with seed {self._seed})")
