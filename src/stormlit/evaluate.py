"""Playing whole episodes and counting their returns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from stormlit.envs import EnvSettings, VectorEnv, env_name, human_normalized
from stormlit.types import Episode

# Evaluation environments draw their episodes' seeds from rows that no training environment has.
EVALUATION_ROW = 1_000_000


class Policy(Protocol):
    """Anything that chooses actions for N environments."""

    def act(self, obs: np.ndarray, is_first: np.ndarray, *, greedy: bool = False) -> np.ndarray:
        """obs: (N, Y, X, C) uint8.  is_first: (N,) bool.  Returns actions (N,) int64."""
        ...


class RandomPolicy:
    """Every action with the same probability."""

    def __init__(self, num_actions: int, seed: int) -> None:
        self.num_actions, self.random = num_actions, np.random.default_rng(seed)

    def act(self, obs: np.ndarray, is_first: np.ndarray, *, greedy: bool = False) -> np.ndarray:
        return self.random.integers(self.num_actions, size=len(obs))


class ConstantPolicy:
    """One action, always."""

    def __init__(self, action: int) -> None:
        self.action = action

    def act(self, obs: np.ndarray, is_first: np.ndarray, *, greedy: bool = False) -> np.ndarray:
        return np.full(len(obs), self.action, dtype=np.int64)


def _constant(action: int, envs: VectorEnv) -> Policy:
    return ConstantPolicy(action)


@dataclass(slots=True)
class Evaluation:
    """Returns of whole episodes, raw rewards.  policy: what played.  episodes: in the order they were dealt out."""

    policy: str
    game: str
    episodes: list[Episode]

    @property
    def returns(self) -> list[float]:
        return [episode.episode_return for episode in self.episodes]

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Sample standard deviation over episodes, 0 for a single one."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def human_normalized(self) -> float | None:
        """(mean - random) / (human - random) by the published references; None for a game that has none."""
        return human_normalized(self.game, self.mean)

    def summary(self) -> str:
        """One line for a person."""
        error = self.std / max(len(self.returns), 1) ** 0.5
        line = f"{self.mean:10.2f} +- {error:.2f} (standard error, {len(self.returns)} episodes)"
        score = self.human_normalized
        return line if score is None else f"{line}, human-normalised {score:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """Built-in types only, for JSON."""
        return {
            "policy": self.policy,
            "game": self.game,
            "mean": self.mean,
            "std": self.std,
            "human_normalized": self.human_normalized,
            "episodes": [dataclasses.asdict(episode) for episode in self.episodes],
        }


def evaluate(
    name: str,
    make_policy: Callable[[VectorEnv], Policy],
    settings: EnvSettings,
    *,
    episodes: int,
    num_envs: int,
    seed: int,
    greedy: bool = False,
    on_episode: Callable[[Episode], None] | None = None,
) -> Evaluation:
    """Play ``episodes`` whole episodes, dealt out to the environments beforehand so that short ones are not favoured.

    make_policy: builds the policy for the environments it will play.  seed: of episodes and of sampled actions; the
    caller's random state is left as it was.  on_episode: called after each counted episode.
    """
    num_envs = min(num_envs, episodes)
    envs = VectorEnv(dataclasses.replace(settings, num_envs=num_envs), seed=seed, env_index_offset=EVALUATION_ROW)
    quota = [len(range(row, episodes, num_envs)) for row in range(num_envs)]
    played: list[list[Episode]] = [[] for _ in range(num_envs)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = make_policy(envs)
        obs, is_first = envs.reset(), np.ones(num_envs, dtype=bool)
        while any(len(done) < wanted for done, wanted in zip(played, quota, strict=True)):
            outcome = envs.step(policy.act(obs, is_first, greedy=greedy))
            obs, is_first = outcome.obs, outcome.is_first
            for episode in outcome.episodes:
                if len(played[episode.env_index]) < quota[episode.env_index]:
                    played[episode.env_index].append(episode)
                    if on_episode is not None:
                        on_episode(episode)
    envs.close()
    # Episode k was dealt to environment k mod num_envs.
    dealt = [played[index % num_envs][index // num_envs] for index in range(episodes)]
    return Evaluation(name, env_name(settings), dealt)


def evaluate_baselines(
    baselines: list[str], settings: EnvSettings, *, episodes: int, num_envs: int, seed: int
) -> list[Evaluation]:
    """Random play, and each action held constant, as ``evaluation.baselines`` asks; every one plays ``episodes``."""
    policies: list[tuple[str, Callable[[VectorEnv], Policy]]] = []
    if "random" in baselines:
        policies.append(("random", lambda envs: RandomPolicy(envs.num_actions, seed)))
    if "constant" in baselines:
        probe = VectorEnv(dataclasses.replace(settings, num_envs=1), seed=seed)
        for action, meaning in enumerate(probe.action_meanings):
            policies.append((f"always {meaning}", functools.partial(_constant, action)))
        probe.close()
    return [
        evaluate(name, make_policy, settings, episodes=episodes, num_envs=num_envs, seed=seed)
        for name, make_policy in policies
    ]
