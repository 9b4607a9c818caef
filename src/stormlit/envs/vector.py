"""N environments stepped together, with a new seed for every episode and a state that resumes exactly."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import zlib
from typing import Any, NamedTuple

import numpy as np

from stormlit.data import EnvStep, Episode
from stormlit.envs.hosts import Command, Crash, EnvFacts, IsolatedEnv, LocalEnv, StepResult
from stormlit.envs.settings import AtariSettings, EnvSettings, check_settings, env_key, env_name, is_atari
from stormlit.errors import (
    ActionError,
    CheckpointError,
    EnvironmentContractError,
    EnvironmentCrashError,
    EnvironmentSetupError,
    IrreproducibleError,
    describe,
)

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
        self._actions: list[int | np.ndarray] = []

    def reset_async(self) -> None:
        """Begin the next episode; to be followed by ``reset_wait``."""
        self._plan_next_episode()
        if self.env is not None:
            self.env.call_async("reset", self._seed)

    def reset_wait(self) -> None:
        """Wait for the first frame. After a crash comes a restart and the episode after that, while restarts last."""
        while self.env is not None or self._restarts.failure is None:
            try:
                if self.env is None:
                    self.env = self._reopened()
                    self.env.call_async("reset", self._seed)
                self._take_first_frame(self.env)
                return
            except (Crash, EnvironmentContractError) as error:
                self._discard(error, "reset")
                self._plan_next_episode()

    def step_async(self, action: int | np.ndarray) -> None:
        """Begin a step; to be followed by ``step_wait``.  action: as stored, and never changed afterwards."""
        assert self.env is not None
        self._action = action
        self.env.call_async("step", action)

    def step_wait(self) -> Outcome:
        """Wait for the step. After a crash the last frame known stays, and the action is not part of the episode."""
        assert self.env is not None
        try:
            result, crashed = self._take_step(self.env, self._action), False
        except (Crash, EnvironmentContractError) as error:
            self._discard(error, "step")
            result, crashed = StepResult(self.obs, truncated=True), True
        terminated = result.terminated or (result.life_lost and self._settings.life_loss_terminates)
        if not (result.terminated or result.truncated):
            return Outcome(result.reward, terminated, None)
        steps, truncated = len(self._actions), not result.terminated
        ended = Episode(self._index, self._seed, self._return, steps, truncated, result.reward, crashed)
        return Outcome(result.reward, terminated, ended)

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
            begun = False
            try:
                self._seed, self._return, self._actions = state["seed"], 0.0, []
                self.env = self.env or self._reopened()
                self.env.call_async("reset", self._seed)
                self._take_first_frame(self.env)
                begun = True
                return self._replay(self.env, state)
            except (Crash, EnvironmentContractError) as error:
                self._discard(error, "step" if begun else "reset")
                if self._restarts.failure is not None:
                    raise self._restarts.failure from error
                crashed_on_the_way += begun
        return False

    def _replay(self, env: HostedEnv, state: dict[str, Any]) -> bool:
        for action in state["actions"]:
            env.call_async("step", action)
            result = self._take_step(env, action)
            if result.terminated or result.truncated:  # the saved episode was still running
                return False
        return state["obs_crc32"] in (None, zlib.crc32(self.obs.tobytes())) and self._return == state["episode_return"]

    def _plan_next_episode(self) -> None:
        self._episode_index += 1
        self._seed = self._base_seed  # of every episode, where there is no index to tell them apart
        if self._env_index is not None:
            self._seed = episode_seed(self._base_seed, self._env_index, self._episode_index)
        self._return, self._actions = 0.0, []

    def _take_first_frame(self, env: HostedEnv) -> None:
        self.obs = env.call_wait().obs
        self._restarts.succeeded.add("reset")

    def _take_step(self, env: HostedEnv, action: int | np.ndarray) -> StepResult:
        result = env.call_wait()
        self._restarts.succeeded.add("step")
        self.obs = result.obs
        self._actions.append(action)
        self._return += result.reward
        return result

    def _reopened(self) -> HostedEnv:
        env: HostedEnv | None = None
        try:
            env = open_env(self._settings)
            env.facts()
            return env
        except Exception as error:
            if env is not None:
                env.discard()
            if isinstance(error, Crash):
                raise
            # It could be made before: whatever has changed may change back.
            raise Crash(f"it could not be made again: {describe(error)}") from error

    def _discard(self, error: Crash | EnvironmentContractError, command: Command) -> None:
        if self.env is not None:
            self.env.discard()
            self.env = None
        self._restarts.after(error, command, self._index)


_log = logging.getLogger(__name__)


class VectorEnv:
    """N independent environments of one kind: in this process, one after the other, or in N others, in parallel.

    settings: all of them; ``num_envs`` is N, ``isolation`` says where; the episodes are the same wherever they are.
    seed: where every episode's seed comes from, not negative.
    env_index_offset: added to an environment's place to get the ``env_index`` of ``episode_seed``, so that several
    vectors with one seed (processes, training and evaluation) play different episodes.

    A crash (an exception; with processes also their death, or a step that takes too long) truncates the episode, and a
    new environment goes on with the next one. After ``max_restarts`` of them, or when an environment breaks Gymnasium's
    interface, ``failure`` is set.

    Attributes: ``num_envs``, ``observation_space``, ``action_space``, ``action_meanings`` (of discrete actions, the
    environment's own words, else the numbers).  Raises what ``make_env`` raises.
    """

    def __init__(self, settings: EnvSettings, *, seed: int, env_index_offset: int = 0) -> None:
        check_settings(settings)
        self._name = env_name(settings)
        self._sign_rewards = settings.reward_transform == "sign"
        self._restarts_irreproducible = settings.irreproducible == "restart"
        self._restarts = Restarts(settings)
        envs, facts = open_envs(settings, settings.num_envs)
        offset = None if settings.episode_seeds == "same" else env_index_offset
        self._slots = [
            EnvSlot(
                env, settings, index, self._restarts, seed=seed, env_index=None if offset is None else offset + index
            )
            for index, env in enumerate(envs)
        ]
        self.num_envs: int = settings.num_envs
        self.observation_space, self.action_space, self.action_meanings, _ = facts
        _warn(settings, facts)

    @property
    def num_actions(self) -> int:
        """How many discrete actions there are; see ``ActionSpace.num_actions``."""
        return self.action_space.num_actions

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Of one stored observation, (Y, X, C) of an image."""
        return self.observation_space.shape

    @property
    def current_obs(self) -> np.ndarray:
        """(N, *shape) as stored, a copy of the frames to act on next."""
        return np.stack([slot.obs for slot in self._slots])

    @property
    def restarts(self) -> int:
        """How often an environment was restarted after a crash; part of the state."""
        return self._restarts.count

    @property
    def failure(self) -> EnvironmentCrashError | None:
        """Why no further step can be taken, if so. The state is sound: whoever loads it goes on."""
        return self._restarts.failure

    def reset(self) -> np.ndarray:
        """Begin the next episode in every environment; returns the first frames, (N, *shape) as stored.

        Raises ``failure``.
        """
        self._begin_episodes(self._slots)
        if self.failure is not None:
            raise self.failure
        return self.current_obs

    def step(self, actions: np.ndarray) -> EnvStep:
        """``step_async`` and ``step_wait``."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Begin to take one action in each environment, (N, *shape); processes do so while this one goes on.

        Numbers of a Box are clipped to [-1, 1].
        Raises ``ActionError`` for actions of another shape or type, outside the action space or not a number, and
        ``failure``, before any is taken.
        """
        chosen = self._checked(actions)
        if self.failure is not None:
            raise self.failure
        for slot, action in zip(self._slots, chosen, strict=True):
            slot.step_async(action)

    def step_wait(self) -> EnvStep:
        """What the actions led to; an environment whose episode ended is reset at once.

        A lost life is termination where the settings say so, and the game goes on. The returns of ``episodes`` are raw,
        and their ``env_index`` is the place (without the offset).
        A crash is truncation with reward 0 and no termination, as what the action led to is unknown. The step on which
        ``failure`` is set is returned like any other, and the next one raises it; only an environment that has never
        worked raises it at once.
        """
        outcomes = [slot.step_wait() for slot in self._slots]
        if isinstance(self.failure, EnvironmentContractError) and "step" not in self._restarts.succeeded:
            raise self.failure
        rewards, terminated, ended = zip(*outcomes, strict=True)
        self._begin_episodes([slot for slot, episode in zip(self._slots, ended, strict=True) if episode])
        reward = np.array(rewards)
        return EnvStep(
            obs=self.current_obs,
            reward=(np.sign(reward) if self._sign_rewards else reward).astype(np.float32),
            terminated=np.array(terminated),
            is_first=np.array([episode is not None for episode in ended]),
            episodes=[episode for episode in ended if episode],
        )

    def close(self) -> None:
        """Free the environments."""
        for slot in self._slots:
            slot.close()

    def state_dict(self) -> dict[str, Any]:
        """Where every running episode stands, in built-in types; to be called after ``reset``."""
        rows = [slot.state_dict() for slot in self._slots]
        return {"environment": self._name, "rows": rows, "restarts": self._restarts.count}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Play every running episode again, from its seed, up to where it stood.

        Exact for any environment that is deterministic given its seed, whatever hidden state it and its wrappers hold;
        takes as long as the episode took to play. Where that does not lead to the same frame and return, the settings
        may ask for the next episode. Returns where it is a new one that has begun, (N,) bool.
        Raises ``CheckpointError`` if the state is of another environment or number of environments or holds actions
        outside the action space, ``IrreproducibleError`` if an episode is not the same and the settings do not ask for
        another;
        ``failure`` if that is set on the way.
        """
        if state["environment"] != self._name or len(state["rows"]) != self.num_envs:
            raise CheckpointError(
                f"the checkpoint holds {len(state['rows'])} x {state['environment']} where the configuration has "
                f"{self.num_envs} x {self._name}"
            )
        self._restarts.count = state.get("restarts", 0)
        lost: list[EnvSlot] = []
        for index, (slot, row) in enumerate(zip(self._slots, state["rows"], strict=True)):
            if slot.load_state_dict({**row, "actions": self._restored(row["actions"])}):
                continue
            told = (
                f"{self._name} is not reproducible from its seed: playing the actions of the saved episode again did "
                f"not lead to the frame and return it was saved with"
            )
            if not self._restarts_irreproducible:
                raise IrreproducibleError(f"{told}; env.irreproducible=restart goes on with a new episode there")
            lost.append(slot)
            _log.warning("environment %d: %s; a new one begins", index, told)
        self._begin_episodes(lost)
        if lost and self.failure is not None:
            raise self.failure
        return np.array([slot in lost for slot in self._slots])

    def _checked(self, actions: np.ndarray) -> list[Any]:
        """The actions one by one: numbers, or arrays of their own."""
        space = self.action_space
        if len(actions) != self.num_envs or space.misfit(actions):
            kind = "integer " if space.is_discrete else f"{space} "
            raise ActionError(f"expected {self.num_envs} {kind}actions, got {actions.dtype} of shape {actions.shape}")
        clipped = space.clip(actions)
        outside = space.first_outside(clipped)
        if outside is not None:
            raise ActionError(f"action {actions[outside]} is outside the action space, {space.range}")
        return clipped.tolist() if space.is_discrete else [action.astype(space.dtype) for action in clipped]

    def _restored(self, saved: list[Any]) -> list[Any]:
        """The actions of a checkpoint as they were taken."""
        space = self.action_space
        try:
            actions = np.array(saved, space.dtype).reshape(len(saved), *space.shape)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint holds no {space} actions, as {self._name} has") from error
        outside = space.first_outside(actions)
        if outside is not None:
            raise CheckpointError(f"the checkpoint holds action {saved[outside]}, where {self._name} has {space.range}")
        return actions.tolist() if space.is_discrete else list(actions)

    @staticmethod
    def _begin_episodes(slots: list[EnvSlot]) -> None:
        for slot in slots:
            slot.reset_async()
        for slot in slots:
            slot.reset_wait()


def _warn(settings: EnvSettings, facts: EnvFacts) -> None:
    """Name what may surprise: settings without effect, and episodes that nothing ends."""
    if not is_atari(settings):
        default = AtariSettings()
        for key, value in dataclasses.asdict(settings.atari).items():
            if value != getattr(default, key):
                _warn_once(f"env.atari.{key}={value} has no effect: {env_key(settings)} is no game of env.game")
    if not facts.has_time_limit:
        _warn_once(
            f"{env_key(settings)} has no time limit: an episode that does not end by itself goes on for ever; "
            f"env.max_episode_steps=N sets one"
        )


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
