"""N environments stepped together, with a new seed for every episode and a state that resumes exactly."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

import numpy as np

from stormlit.data import EnvStep
from stormlit.envs.episode import EnvSlot, Restarts, open_envs
from stormlit.envs.local import EnvFacts
from stormlit.envs.settings import AtariSettings, EnvSettings, check_settings, env_key, env_name, is_atari
from stormlit.errors import (
    ActionError,
    CheckpointError,
    EnvironmentContractError,
    EnvironmentCrashError,
    IrreproducibleError,
)

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
