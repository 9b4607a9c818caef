"""N environments stepped together, with a new seed for every episode and a state that resumes exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

from stormlit.envs.row import Restarts, Row, open_envs
from stormlit.envs.settings import EnvSettings, check_settings, env_name
from stormlit.errors import CheckpointError, EnvironmentCrashError
from stormlit.types import EnvStep, Episode


class VectorEnv:
    """N independent environments of one kind: in this process, one after the other, or in N others, in parallel.

    settings: all of them; ``num_envs`` is N, ``isolation`` says where; the episodes are the same wherever they are.
    seed: where every episode's seed comes from, not negative.
    env_index_offset: added to an environment's row to get the ``env_index`` of ``episode_seed``, so that several
    vectors with one seed (processes, training and evaluation) play different episodes.

    A crash (an exception; with processes also their death, or a step that takes too long) truncates the episode, and a
    new environment goes on with the next one; after ``max_restarts`` of them ``failure`` is set.

    Attributes: ``num_envs``, ``obs_shape`` (Y, X, C), ``num_actions``, ``action_meanings`` (the environment's own
    words, else the numbers).  Raises what ``make_env`` raises.
    """

    def __init__(self, settings: EnvSettings, *, seed: int, env_index_offset: int = 0) -> None:
        check_settings(settings)
        self._name = env_name(settings)
        self._sign_rewards = settings.reward_transform == "sign"
        self._life_loss_terminates = settings.life_loss_terminates
        self._restarts = Restarts(settings)
        envs, facts = open_envs(settings)
        offset = None if settings.episode_seeds == "same" else env_index_offset
        self._rows = [
            Row(env, settings, index, self._restarts, seed=seed, env_index=None if offset is None else offset + index)
            for index, env in enumerate(envs)
        ]
        self.num_envs: int = settings.num_envs
        self.obs_shape = facts.obs_shape
        self.action_meanings = facts.action_meanings
        self.num_actions = facts.num_actions

    @property
    def current_obs(self) -> np.ndarray:
        """(N, Y, X, C) uint8, a copy of the frames to act on next."""
        return np.stack([row.obs for row in self._rows])

    @property
    def restarts(self) -> int:
        """How often an environment was restarted after a crash; part of the state."""
        return self._restarts.count

    @property
    def failure(self) -> EnvironmentCrashError | None:
        """Why no further step can be taken, if so. The state is sound: whoever loads it goes on."""
        return self._restarts.failure

    def reset(self) -> np.ndarray:
        """Begin the next episode in every environment; returns the first frames, (N, Y, X, C) uint8.

        Raises ``EnvironmentCrashError`` if the environments crash more often than allowed.
        """
        self._begin_episodes(self._rows)
        if self.failure is not None:
            raise self.failure
        return self.current_obs

    def step(self, actions: np.ndarray) -> EnvStep:
        """Take one action in each environment, (N,) integers; an environment whose episode ended is reset at once.

        A lost life is told as termination where the settings say so, and the game goes on. The returns of
        ``episodes`` are raw, and their ``env_index`` is the row (without the offset).
        A crash is told as truncation with reward 0 and the last frame known: what the action led to nobody knows. The
        step on which the last restart was used up is told like any other; the next one raises ``failure``.
        Raises ``ValueError`` for actions of another shape or type, or outside the action space, before any is taken.
        """
        self._check_actions(actions)
        if self.failure is not None:
            raise self.failure
        for row, action in zip(self._rows, actions, strict=True):
            row.ask_step(int(action))
        outcomes = [row.await_outcome() for row in self._rows]
        reward, ended, truncated, life_lost, crashed = (np.array(column) for column in zip(*outcomes, strict=True))
        final_obs = self.current_obs
        is_first = ended | truncated
        ended_rows = np.flatnonzero(is_first)
        episodes = [
            Episode(
                env_index=int(index),
                seed=self._rows[index].seed,
                episode_return=self._rows[index].episode_return,
                length=len(self._rows[index].actions),
                truncated=bool(truncated[index]),
                last_reward=float(reward[index]),
                crashed=bool(crashed[index]),
            )
            for index in ended_rows
        ]
        self._begin_episodes([self._rows[index] for index in ended_rows])
        return EnvStep(
            obs=self.current_obs,
            final_obs=final_obs,
            reward=(np.sign(reward) if self._sign_rewards else reward).astype(np.float32),
            terminated=ended | life_lost if self._life_loss_terminates else ended,
            truncated=truncated,
            is_first=is_first,
            episodes=episodes,
        )

    def close(self) -> None:
        """Free the environments."""
        for row in self._rows:
            row.close()

    def state_dict(self) -> dict[str, Any]:
        """Where every running episode stands, in built-in types; to be called after ``reset``."""
        rows = [row.state_dict() for row in self._rows]
        return {"environment": self._name, "rows": rows, "restarts": self._restarts.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play every running episode again, from its seed, up to where it stood.

        Exact for any environment that is deterministic given its seed, whatever hidden state it and its wrappers hold;
        takes as long as the episode took to play.
        Raises ``CheckpointError`` if the state is of another environment or number of environments, if it holds actions
        outside the action space, or if the replay does not lead to the same frame and return;
        ``EnvironmentCrashError`` if environments crash more often than allowed.
        """
        if state["environment"] != self._name or len(state["rows"]) != self.num_envs:
            raise CheckpointError(
                f"the checkpoint holds {len(state['rows'])} x {state['environment']} where the configuration has "
                f"{self.num_envs} x {self._name}"
            )
        self._restarts.count = state.get("restarts", 0)
        for row, row_state in zip(self._rows, state["rows"], strict=True):
            for action in row_state["actions"]:
                if not 0 <= action < self.num_actions:
                    raise CheckpointError(
                        f"the checkpoint holds action {action}, where {self._name} has 0 to {self.num_actions - 1}"
                    )
            if not row.load_state_dict(row_state):
                raise CheckpointError(
                    f"{self._name} is not reproducible from its seed: playing the actions of the saved episode again "
                    f"did not lead to the frame and return it was saved with"
                )

    def _check_actions(self, actions: np.ndarray) -> None:
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"expected {self.num_envs} integer actions, got {actions.dtype} of shape {actions.shape}")
        for action in actions:
            if not 0 <= action < self.num_actions:
                raise ValueError(f"action {action} is outside the action space, 0 to {self.num_actions - 1}")

    @staticmethod
    def _begin_episodes(rows: list[Row]) -> None:
        for row in rows:
            row.ask_next_episode()
        for row in rows:
            row.await_first_frame()
