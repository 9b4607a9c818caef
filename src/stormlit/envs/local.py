"""One environment of a vector, in this process: told to reset or to step, waited for later."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np

from stormlit.envs.actions import action_space_of
from stormlit.envs.atari import AtariProtocol
from stormlit.envs.make import make_env
from stormlit.envs.settings import EnvSettings
from stormlit.errors import EnvironmentContractError, describe
from stormlit.spaces import ActionSpace, ObservationSpace

Command = Literal["reset", "step"]


class EnvFacts(NamedTuple):
    """What an environment is like.

    action_meanings: its own words, one for each discrete action, else the numbers; of other
    actions none.
    has_time_limit: whether something ends every episode, however it is played.
    """

    observation_space: ObservationSpace
    action_space: ActionSpace
    action_meanings: list[str]
    has_time_limit: bool


class StepResult(NamedTuple):
    """What followed a reset or a step.  obs: as stored.  reward: raw.  After a reset only obs has a meaning."""

    obs: np.ndarray
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    life_lost: bool = False


class Crash(Exception):
    """An environment that cannot be used any more, and why, as the end of a sentence about it."""


class LocalEnv:
    """An environment in this process: a crash is an exception, and a hang is for ever.

    Raises ``EnvironmentSetupError`` as ``make_env`` does. After an error it can only be discarded.
    """

    def __init__(self, settings: EnvSettings) -> None:
        self._env = make_env(settings)
        self._called: tuple[Command, Any] | None = None

    def facts(self) -> EnvFacts:
        """To be called once, before the first reset."""
        env = self._env
        actions = action_space_of(env.action_space)
        assert actions is not None
        meanings = _action_meanings(env, actions.num_actions) if actions.is_discrete else []
        return EnvFacts(env.get_wrapper_attr("stored_observations"), actions, meanings, _has_time_limit(env))

    def call_async(self, command: Command, value: int | np.ndarray) -> None:
        """Begin to reset with a seed, or to step with an action of the action space; never fails."""
        self._called = (command, value)

    def call_wait(self) -> StepResult:
        """Wait for what was called last.  Raises ``Crash``, or ``EnvironmentContractError`` as ``CheckedEnv`` does."""
        assert self._called is not None
        command, value = self._called
        try:
            if command == "reset":
                return StepResult(self._env.reset(seed=value)[0])
            obs, reward, terminated, truncated, info = self._env.step(value)
            return StepResult(obs, float(reward), terminated, truncated, bool(info["life_lost"]))
        except EnvironmentContractError:
            raise
        except (Exception, SystemExit) as error:  # whatever it is: the environment's code is not ours
            raise Crash(f"its {command} raised {describe(error)}") from error

    def close(self) -> None:
        """End it; never fails."""
        with suppress(Exception):  # it may be broken already, and nothing more is wanted of it
            self._env.close()

    discard = close


def _action_meanings(env: gymnasium.Env[Any, Any], num_actions: int) -> list[str]:
    try:
        meanings = env.get_wrapper_attr("get_action_meanings")()
    except Exception:  # most environments have none, and of the others the code is not ours
        meanings = None
    if isinstance(meanings, list | tuple) and len(meanings) == num_actions:
        return [str(meaning) for meaning in meanings]
    return [str(action) for action in range(num_actions)]


def _has_time_limit(env: gymnasium.Env[Any, Any]) -> bool:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit | AtariProtocol):
            return True
        env = env.env
    return False
