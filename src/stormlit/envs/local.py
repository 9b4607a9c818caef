"""One environment of a vector: asked to reset or to step, it answers later, or crashes. Here, in this process."""

from __future__ import annotations

import traceback
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import gymnasium
import numpy as np

from stormlit.envs.make import make_env
from stormlit.envs.settings import EnvSettings

Command = Literal["reset", "step"]


class Facts(NamedTuple):
    """What an environment is like.  obs_shape: (Y, X, C).  action_meanings: its own words, else the numbers."""

    obs_shape: tuple[int, ...]
    num_actions: int
    action_meanings: list[str]


class Answer(NamedTuple):
    """What followed a reset or a step.  obs: (Y, X, C) uint8.  reward: raw.  After a reset all but obs is nothing."""

    obs: np.ndarray
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    life_lost: bool = False


class Crash(Exception):
    """An environment that is good for nothing any more, and why, as the end of a sentence about it."""


class HostedEnv(Protocol):
    """An environment, wherever it runs. After a ``Crash`` it can only be discarded."""

    def facts(self) -> Facts:
        """To be called once, before anything is asked.  Raises ``EnvironmentSetupError`` or ``Crash``."""
        ...

    def ask(self, command: Command, value: int) -> None:
        """Begin to reset with a seed, or to step with an action of the action space; never fails."""
        ...

    def answer(self) -> Answer:
        """Wait for what was asked last.  Raises ``Crash``."""
        ...

    def close(self) -> None:
        """End it in good order."""
        ...

    def discard(self) -> None:
        """End it somehow; never fails."""
        ...


class LocalEnv:
    """An environment in this process: a crash is an exception, and a hang is for ever.

    Raises ``EnvironmentSetupError`` as ``make_env`` does.
    """

    def __init__(self, settings: EnvSettings) -> None:
        self._env = make_env(settings)
        self._asked: tuple[Command, int] | None = None

    def facts(self) -> Facts:
        env = self._env
        assert isinstance(env.action_space, gymnasium.spaces.Discrete) and env.observation_space.shape is not None
        num_actions = int(env.action_space.n)
        if env.has_wrapper_attr("get_action_meanings"):
            meanings = list(env.get_wrapper_attr("get_action_meanings")())
        else:
            meanings = [str(action) for action in range(num_actions)]
        return Facts(env.observation_space.shape, num_actions, meanings)

    def ask(self, command: Command, value: int) -> None:
        self._asked = (command, value)

    def answer(self) -> Answer:
        assert self._asked is not None
        command, value = self._asked
        try:
            if command == "reset":
                return Answer(self._env.reset(seed=value)[0])
            obs, reward, terminated, truncated, info = self._env.step(value)
            return Answer(obs, float(reward), bool(terminated), bool(truncated), bool(info["life_lost"]))
        except Exception as error:  # whatever it is: the environment's code is not ours
            raise Crash(f"its {command} raised {describe(error)}") from error

    def close(self) -> None:
        self._env.close()

    def discard(self) -> None:
        with suppress(Exception):  # it is broken already
            self._env.close()


def describe(error: Exception) -> str:
    """Type, first line and place of an exception."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {message} ({Path(place.filename).name}, line {place.lineno})"
