"""One environment of a vector with its running episode, restarted when it crashes."""

from __future__ import annotations

import logging
import zlib
from array import array
from typing import Any, NamedTuple

import numpy as np

from stormlit.envs.isolated import IsolatedEnv
from stormlit.envs.local import Crash, Facts, HostedEnv, LocalEnv, describe
from stormlit.envs.settings import EnvSettings, env_key, env_name
from stormlit.errors import EnvironmentCrashError, EnvironmentSetupError

_log = logging.getLogger(__name__)


def episode_seed(seed: int, env_index: int, episode_index: int) -> int:
    """The seed in [0, 2**31) an episode is reset with; independent for each triple of non-negative integers."""
    sequence = np.random.SeedSequence(seed, spawn_key=(env_index, episode_index))
    return int(sequence.generate_state(1, np.uint32)[0]) >> 1


def open_env(settings: EnvSettings) -> HostedEnv:
    """Begin to make an environment where the settings want it."""
    return IsolatedEnv(settings) if settings.isolation == "process" else LocalEnv(settings)


def open_envs(settings: EnvSettings) -> tuple[list[HostedEnv], Facts]:
    """Make all environments, those with processes at the same time.  Raises ``EnvironmentSetupError``."""
    envs: list[HostedEnv] = []
    try:
        for _ in range(settings.num_envs):
            envs.append(open_env(settings))
        facts = [env.facts() for env in envs]
    except (Crash, EnvironmentSetupError) as error:
        for env in envs:
            env.discard()
        if isinstance(error, Crash):
            raise EnvironmentSetupError(f"{env_key(settings)} cannot be made: {error}") from error
        raise
    return envs, facts[0]


class Restarts:
    """How often the environments of a vector were restarted, and the failure once that was too often."""

    def __init__(self, settings: EnvSettings) -> None:
        self.count = 0
        self.failure: EnvironmentCrashError | None = None
        self._name, self._limit = env_name(settings), settings.max_restarts

    def after(self, crash: Crash, row: int) -> None:
        """Count one more, or set ``failure``."""
        if self.count < self._limit:
            self.count += 1
            _log.warning(
                "environment %d (%s) crashed: %s; restarted, %d of at most env.max_restarts=%d times",
                row, self._name, crash, self.count, self._limit,
            )  # fmt: skip
        else:
            self.failure = EnvironmentCrashError(
                f"environment {row} ({self._name}) crashed: {crash}; it is not restarted, as that was done "
                f"{self.count} times already, and env.max_restarts={self._limit}"
            )
            self.failure.__cause__ = crash


class Outcome(NamedTuple):
    """What came of an action: ``terminated`` and ``truncated`` are never both set; a crash truncates."""

    reward: float
    terminated: bool
    truncated: bool
    life_lost: bool
    crashed: bool = False


class Row:
    """One environment with its running episode: the seed and the actions since, all it takes to get there again.

    env: made from ``settings``.  index: its row in the vector.  restarts: shared by all rows.
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
        self.obs: np.ndarray  # (Y, X, C) uint8; there is none before the first episode
        self._settings, self._index, self._restarts = settings, index, restarts
        self._base_seed, self._env_index = seed, env_index
        self._episode_index = -1

    def ask_next_episode(self) -> None:
        """Begin to reset; to be followed by ``await_first_frame``."""
        self._plan_next_episode()
        if self.env is not None:
            self.env.ask("reset", self.seed)

    def await_first_frame(self) -> None:
        """Wait for the reset. A crash is followed by a restart and the episode after that one, while restarts last."""
        while self.env is not None or self._restarts.failure is None:
            try:
                if self.env is None:
                    self._reopen().ask("reset", self.seed)
                self._take_first_frame()
                return
            except Crash as crash:
                self._lose(crash)
                self._plan_next_episode()

    def ask_step(self, action: int) -> None:
        assert self.env is not None
        self._action = action
        self.env.ask("step", action)

    def await_outcome(self) -> Outcome:
        """Wait for the step. After a crash the last frame known stays, and the action is not part of the episode."""
        assert self.env is not None
        try:
            answer = self.env.answer()
        except Crash as crash:
            self._lose(crash)
            return Outcome(0.0, terminated=False, truncated=True, life_lost=False, crashed=True)
        self.obs = answer.obs
        self.actions.append(self._action)
        self.episode_return += answer.reward
        truncated = answer.truncated and not answer.terminated
        return Outcome(answer.reward, answer.terminated, truncated, answer.life_lost)

    def close(self) -> None:
        if self.env is not None:
            self.env.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "episode_index": self._episode_index,
            "seed": self.seed,
            "actions": self.actions.tolist(),
            "episode_return": self.episode_return,
            # An environment that stays down has not shown this episode's first frame.
            "obs_crc32": None if self.env is None else zlib.crc32(self.obs.tobytes()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Replay; False if it does not lead to where it was.  Raises ``EnvironmentCrashError``."""
        self._episode_index = state["episode_index"]
        while True:
            try:
                return self._replay(state)
            except Crash as crash:
                self._lose(crash)
                if self._restarts.failure is not None:
                    raise self._restarts.failure from crash

    def _replay(self, state: dict[str, Any]) -> bool:
        self._plan_episode(state["seed"])
        env = self.env or self._reopen()
        env.ask("reset", self.seed)
        self._take_first_frame()
        for action in state["actions"]:
            env.ask("step", action)
            answer = env.answer()
            if answer.terminated or answer.truncated:  # the saved episode was still running
                return False
            self.obs = answer.obs
            self.actions.append(action)
            self.episode_return += answer.reward
        crc32 = state["obs_crc32"]
        return crc32 in (None, zlib.crc32(self.obs.tobytes())) and self.episode_return == state["episode_return"]

    def _plan_next_episode(self) -> None:
        self._episode_index += 1
        if self._env_index is None:  # every episode with the same seed
            self._plan_episode(self._base_seed)
        else:
            self._plan_episode(episode_seed(self._base_seed, self._env_index, self._episode_index))

    def _plan_episode(self, seed: int) -> None:
        self.seed = seed
        self.actions = array("i")
        self.episode_return = 0.0

    def _take_first_frame(self) -> None:
        assert self.env is not None
        self.obs = self.env.answer().obs

    def _reopen(self) -> HostedEnv:
        try:
            self.env = open_env(self._settings)
            self.env.facts()
        except Crash:
            raise
        except Exception as error:  # it could be made before: whatever has changed may change back
            raise Crash(f"it could not be made again: {describe(error)}") from error
        return self.env

    def _lose(self, crash: Crash) -> None:
        if self.env is not None:
            self.env.discard()
            self.env = None
        self._restarts.after(crash, self._index)
