"""N environments stepped together, with a new seed for every episode and a state that resumes exactly."""

from __future__ import annotations

import zlib
from array import array
from typing import Any

import gymnasium
import numpy as np

from stormlit.envs.make import make_env
from stormlit.envs.settings import EnvSettings, env_name
from stormlit.errors import CheckpointError
from stormlit.types import EnvStep, Episode


def episode_seed(seed: int, env_index: int, episode_index: int) -> int:
    """The seed in [0, 2**31) an episode is reset with; independent for each triple of non-negative integers."""
    sequence = np.random.SeedSequence(seed, spawn_key=(env_index, episode_index))
    return int(sequence.generate_state(1, np.uint32)[0]) >> 1


class VectorEnv:
    """N independent environments of one kind, stepped one after the other in this process.

    settings: all of them; ``num_envs`` is N.  seed: where every episode's seed comes from, not negative.
    env_index_offset: added to an environment's row to get the ``env_index`` of ``episode_seed``, so that several
    vectors with one seed (processes, training and evaluation) play different episodes.

    Attributes: ``num_envs``, ``obs_shape`` (Y, X, C), ``num_actions``, ``action_meanings`` (the environment's own
    words, else the numbers).  Raises what ``make_env`` raises.
    """

    def __init__(self, settings: EnvSettings, *, seed: int, env_index_offset: int = 0) -> None:
        self._name = env_name(settings)
        self._sign_rewards = settings.reward_transform == "sign"
        self._life_loss_terminates = settings.life_loss_terminates
        first = make_env(settings)  # checks the settings, num_envs too
        offset = None if settings.episode_seeds == "same" else env_index_offset
        envs = [first, *(make_env(settings) for _ in range(settings.num_envs - 1))]
        self._rows = [_Row(env, seed, None if offset is None else offset + index) for index, env in enumerate(envs)]
        assert isinstance(first.action_space, gymnasium.spaces.Discrete) and first.observation_space.shape is not None
        self.num_envs: int = settings.num_envs
        self.obs_shape: tuple[int, ...] = first.observation_space.shape
        self.num_actions = int(first.action_space.n)
        self.action_meanings: list[str] = (
            list(first.get_wrapper_attr("get_action_meanings")())
            if first.has_wrapper_attr("get_action_meanings")
            else [str(action) for action in range(self.num_actions)]
        )

    @property
    def current_obs(self) -> np.ndarray:
        """(N, Y, X, C) uint8, a copy of the frames to act on next."""
        return np.stack([row.obs for row in self._rows])

    def reset(self) -> np.ndarray:
        """Begin the next episode in every environment; returns the first frames, (N, Y, X, C) uint8."""
        for row in self._rows:
            row.begin_episode()
        return self.current_obs

    def step(self, actions: np.ndarray) -> EnvStep:
        """Take one action in each environment, (N,) integers; an environment whose episode ended is reset at once.

        A lost life is told as termination where the settings say so, and the game goes on. The returns of
        ``episodes`` are raw, and their ``env_index`` is the row (without the offset).
        Raises ``ValueError`` for actions of another shape or type, or outside the action space.
        """
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"expected {self.num_envs} integer actions, got {actions.dtype} of shape {actions.shape}")
        outcomes = [row.step(int(action)) for row, action in zip(self._rows, actions, strict=True)]
        reward, ended, truncated, life_lost = (np.array(column) for column in zip(*outcomes, strict=True))
        final_obs = self.current_obs
        is_first = ended | truncated
        episodes = []
        for index in np.flatnonzero(is_first):
            row = self._rows[index]
            episodes.append(
                Episode(
                    env_index=int(index),
                    seed=row.seed,
                    episode_return=row.episode_return,
                    length=len(row.actions),
                    truncated=bool(truncated[index]),
                    last_reward=float(reward[index]),
                )
            )
            row.begin_episode()
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
            row.env.close()

    def state_dict(self) -> dict[str, Any]:
        """Where every running episode stands, in built-in types; to be called after ``reset``."""
        return {"environment": self._name, "rows": [row.state_dict() for row in self._rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play every running episode again, from its seed, up to where it stood.

        Exact for any environment that is deterministic given its seed, whatever hidden state it and its wrappers hold;
        takes as long as the episode took to play.
        Raises ``CheckpointError`` if the state is of another environment or number of environments, or if the replay
        does not lead to the same frame and return.
        """
        if state["environment"] != self._name or len(state["rows"]) != self.num_envs:
            raise CheckpointError(
                f"the checkpoint holds {len(state['rows'])} x {state['environment']} where the configuration has "
                f"{self.num_envs} x {self._name}"
            )
        for row, row_state in zip(self._rows, state["rows"], strict=True):
            if not row.load_state_dict(row_state):
                raise CheckpointError(
                    f"{self._name} is not reproducible from its seed: playing the actions of the saved episode again "
                    f"did not lead to the frame and return it was saved with"
                )


class _Row:
    """One environment with its running episode: the seed and the actions since, all it takes to get there again."""

    def __init__(self, env: gymnasium.Env[np.ndarray, int], seed: int, env_index: int | None) -> None:
        self.env = env
        self.obs: np.ndarray  # (Y, X, C) uint8; there is none before the first episode
        self._base_seed = seed
        self._env_index = env_index
        self._episode_index = -1

    def begin_episode(self) -> None:
        self._episode_index += 1
        if self._env_index is None:  # every episode with the same seed
            self._start(self._base_seed)
        else:
            self._start(episode_seed(self._base_seed, self._env_index, self._episode_index))

    def step(self, action: int) -> tuple[float, bool, bool, bool]:
        """Reward, terminated, truncated (never both) and life lost."""
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.actions.append(action)
        self.episode_return += float(reward)
        return float(reward), terminated, truncated and not terminated, info["life_lost"]

    def state_dict(self) -> dict[str, Any]:
        return {
            "episode_index": self._episode_index,
            "seed": self.seed,
            "actions": self.actions.tolist(),
            "episode_return": self.episode_return,
            "obs_crc32": zlib.crc32(self.obs.tobytes()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Replay; False if it does not lead to where it was."""
        self._episode_index = state["episode_index"]
        self._start(state["seed"])
        for action in state["actions"]:
            _, terminated, truncated, _ = self.step(int(action))
            if terminated or truncated:  # the saved episode was still running
                return False
        return zlib.crc32(self.obs.tobytes()) == state["obs_crc32"] and self.episode_return == state["episode_return"]

    def _start(self, seed: int) -> None:
        self.seed = seed
        self.actions = array("i")
        self.episode_return = 0.0
        self.obs, _ = self.env.reset(seed=seed)
