"""One place of a vector: an environment with its running episode, made anew when it crashes."""

from __future__ import annotations

import logging
import re
import zlib
from typing import Any, NamedTuple

import numpy as np

from stormlit.data import Episode
from stormlit.envs.isolated import IsolatedEnv
from stormlit.envs.local import Command, Crash, EnvFacts, LocalEnv, StepResult
from stormlit.envs.settings import EnvSettings, env_key, env_name
from stormlit.errors import EnvironmentContractError, EnvironmentCrashError, EnvironmentSetupError, describe

HostedEnv = LocalEnv | IsolatedEnv

# Of an episode in which a step crashes each time, before it counts as one that cannot be played again.
REPLAYS = 3

_log = logging.getLogger(__name__)


def episode_seed(seed: int, env_index: int, episode_index: int) -> int:
    """The seed in [0, 2**31) an episode is reset with; independent for each triple of non-negative integers."""
    sequence = np.random.SeedSequence(seed, spawn_key=(env_index, episode_index))
    return int(sequence.generate_state(1, np.uint32)[0]) >> 1


def open_env(settings: EnvSettings) -> HostedEnv:
    """Begin to make an environment where the settings want it."""
    return IsolatedEnv(settings) if settings.isolation == "process" else LocalEnv(settings)


def open_envs(settings: EnvSettings, count: int) -> tuple[list[HostedEnv], EnvFacts]:
    """Make ``count`` environments, those with processes at the same time.  Raises ``EnvironmentSetupError``."""
    envs: list[HostedEnv] = []
    try:
        for _ in range(count):
            envs.append(open_env(settings))
        facts = [env.facts() for env in envs]
    except (Crash, EnvironmentSetupError) as error:
        for env in envs:
            env.discard()
        if isinstance(error, Crash):
            raise EnvironmentSetupError(f"{env_key(settings)} cannot be made: {error}") from error
        raise
    return envs, facts[0]


def env_facts(settings: EnvSettings) -> EnvFacts:
    """What an environment is like; it is made for that, and closed again.  Raises ``EnvironmentSetupError``."""
    (env,), facts = open_envs(settings, 1)
    env.close()
    return facts


class Restarts:
    """How often the environments of a vector were made anew, and ``failure``, once they cannot go on."""

    def __init__(self, settings: EnvSettings) -> None:
        self.count = 0
        self.failure: EnvironmentCrashError | None = None
        self.succeeded: set[Command] = set()  # what has worked in any of the environments
        self._settings = settings
        self._before = ""

    def after(self, error: Crash | EnvironmentContractError, command: Command, index: int) -> None:
        """Count one more, or set ``failure``. What fails twice alike before it ever worked is no chance crash."""
        name, limit = env_name(self._settings), self._settings.max_restarts
        failure: EnvironmentCrashError
        alike = re.sub(r"\d", "", str(error))
        if isinstance(error, EnvironmentContractError):
            failure = error
        elif command not in self.succeeded and alike == self._before:
            failure = EnvironmentContractError(
                f"{env_key(self._settings)} cannot be played: {error}, and the same when it was tried again"
            )
        elif self.count < limit:
            self.count, self._before = self.count + 1, alike
            _log.warning(
                "environment %d (%s) crashed: %s; restarted, %d of at most env.max_restarts=%d times",
                index, name, error, self.count, limit,
            )  # fmt: skip
            return
        else:
            failure = EnvironmentCrashError(
                f"environment {index} ({name}) crashed: {error}; it is not restarted, as that was done "
                f"{self.count} times already, and env.max_restarts={limit}"
            )
        failure.__cause__ = error if failure is not error else error.__cause__
        self.failure = self.failure or failure


class Outcome(NamedTuple):
    """What came of an action.  reward: raw.  terminated: by the environment's end or, if that counts, a lost life.

    episode: the one that ended with it, if one did.
    """

    reward: float
    terminated: bool
    episode: Episode | None


class EnvSlot:
    """One environment with its running episode: the seed and the actions since, all it takes to get there again.

    env: made from ``settings``.  index: its place in the vector.  restarts: shared by all slots.
    seed, env_index: see ``episode_seed``; env_index None gives every episode the seed itself.

    Once ``restarts.failure`` is set a crashed environment stays down: ``obs`` is the last frame known, and the state
    is that of the next episode before its first frame.
    """

    def __init__(
        self,
        env: HostedEnv,
        settings: EnvSettings,
        index: int,
        restarts: Restarts,
        *,
        seed: int,
        env_index: int | None,
    ) -> None:
        self.env: HostedEnv | None = env  # None: crashed
        self.obs: np.ndarray  # as stored; there is none before the first episode
        self._settings, self._index, self._restarts = settings, index, restarts
        self._base_seed, self._env_index = seed, env_index
        self._episode_index = -1

    def reset_async(self) -> None:
        """Begin the next episode; to be followed by ``reset_wait``."""
        self._plan_next_episode()
        if self.env is not None:
            self._call_async("reset", self._seed)

    def reset_wait(self) -> None:
        """Wait for the first frame. After a crash comes a restart and the episode after that, while restarts last."""
        while self.env is not None or self._restarts.failure is None:
            try:
                if self.env is None:
                    self._reopen()
                    self._call_async("reset", self._seed)
                self._take_first_frame()
                return
            except (Crash, EnvironmentContractError) as error:
                self._discard(error)
                self._plan_next_episode()

    def step_async(self, action: int | np.ndarray) -> None:
        """Begin a step; to be followed by ``step_wait``.  action: as stored, and never changed afterwards."""
        self._action = action
        self._call_async("step", action)

    def step_wait(self) -> Outcome:
        """Wait for the step. After a crash the last frame known stays, and the action is not part of the episode."""
        try:
            result = self._take_step(self._action)
        except (Crash, EnvironmentContractError) as error:
            self._discard(error)
            return Outcome(0.0, False, self._episode(0.0, truncated=True, crashed=True))
        terminated = result.terminated or (result.life_lost and self._settings.life_loss_terminates)
        if not (result.terminated or result.truncated):
            return Outcome(result.reward, terminated, None)
        return Outcome(result.reward, terminated, self._episode(result.reward, truncated=not result.terminated))

    def close(self) -> None:
        if self.env is not None:
            self.env.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "episode_index": self._episode_index,
            "seed": self._seed,
            "actions": [action.tolist() if isinstance(action, np.ndarray) else action for action in self._actions],
            "episode_return": self._return,
            # An environment that stays down has not shown this episode's first frame.
            "obs_crc32": None if self.env is None else zlib.crc32(self.obs.tobytes()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Replay, actions as taken; False if it does not lead to where it was.  Raises ``EnvironmentCrashError``."""
        self._episode_index = state["episode_index"]
        crashed_on_the_way = 0
        while crashed_on_the_way < REPLAYS:
            try:
                return self._replay(state)
            except (Crash, EnvironmentContractError) as error:
                self._discard(error)
                if self._restarts.failure is not None:
                    raise self._restarts.failure from error
                crashed_on_the_way += self._command == "step"
        return False

    def _replay(self, state: dict[str, Any]) -> bool:
        self._plan_episode(state["seed"])
        if self.env is None:
            self._reopen()
        self._call_async("reset", self._seed)
        self._take_first_frame()
        for action in state["actions"]:
            self._call_async("step", action)
            result = self._take_step(action)
            if result.terminated or result.truncated:  # the saved episode was still running
                return False
        return state["obs_crc32"] in (None, zlib.crc32(self.obs.tobytes())) and self._return == state["episode_return"]

    def _plan_next_episode(self) -> None:
        self._episode_index += 1
        if self._env_index is None:  # every episode with the same seed
            self._plan_episode(self._base_seed)
        else:
            self._plan_episode(episode_seed(self._base_seed, self._env_index, self._episode_index))

    def _plan_episode(self, seed: int) -> None:
        self._seed, self._return = seed, 0.0
        self._actions: list[int | np.ndarray] = []

    def _call_async(self, command: Command, value: int | np.ndarray) -> None:
        assert self.env is not None
        self._command: Command = command
        self.env.call_async(command, value)

    def _take_first_frame(self) -> None:
        assert self.env is not None
        self.obs = self.env.call_wait().obs
        self._restarts.succeeded.add("reset")

    def _take_step(self, action: int | np.ndarray) -> StepResult:
        assert self.env is not None
        result = self.env.call_wait()
        self._restarts.succeeded.add("step")
        self.obs = result.obs
        self._actions.append(action)
        self._return += result.reward
        return result

    def _episode(self, last_reward: float, *, truncated: bool, crashed: bool = False) -> Episode:
        return Episode(self._index, self._seed, self._return, len(self._actions), truncated, last_reward, crashed)

    def _reopen(self) -> None:
        self._command = "reset"
        try:
            self.env = open_env(self._settings)
            self.env.facts()
        except Crash:
            raise
        except Exception as error:  # it could be made before: whatever has changed may change back
            raise Crash(f"it could not be made again: {describe(error)}") from error

    def _discard(self, error: Crash | EnvironmentContractError) -> None:
        if self.env is not None:
            self.env.discard()
            self.env = None
        self._restarts.after(error, self._command, self._index)
