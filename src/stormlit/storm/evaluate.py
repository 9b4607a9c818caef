"""Playing whole episodes and counting their returns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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


def random_devices() -> list[int]:
    """The GPU whose random state a fork has to keep, if there is one; the CPU's is always kept."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def _constant(action: int, envs: VectorEnv) -> Policy:
    return ConstantPolicy(action)


@dataclass(slots=True)
class Evaluation:
    """Returns of whole episodes, raw rewards.  policy: what played.  episodes: in the order they were dealt out.

    crashed: episodes that a crash of the environment broke off; they are not among ``episodes``, others were played.
    is_atari: whether ``game`` is one of the Arcade Learning Environment, which has references.
    """

    policy: str
    game: str
    episodes: list[Episode]
    is_atari: bool = True
    crashed: int = 0

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
        return human_normalized(self.game, self.mean) if self.is_atari else None

    def summary(self) -> str:
        """One line for a person."""
        error = self.std / max(len(self.returns), 1) ** 0.5
        played = f"{len(self.returns)} episodes"
        if self.crashed:
            played += f", and {self.crashed} broken off by crashes, not counted"
        line = f"{self.mean:10.2f} +- {error:.2f} (standard error, {played})"
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
            "crashed": self.crashed,
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
    selection: Literal["dealt", "first_to_end"] = "dealt",
    on_episode: Callable[[Episode], None] | None = None,
) -> Evaluation:
    """Play ``episodes`` whole episodes, each with a seed of its own.

    make_policy: builds the policy for the environments it will play.  seed: of episodes and of sampled actions; the
    caller's random state is left as it was.  on_episode: called after each counted episode.
    An episode that a crash breaks off is not counted: the environment's next one takes its place.
    Raises ``EnvironmentCrashError`` when environments crash more often than allowed.
    selection: "dealt" shares the episodes out to the environments beforehand; "first_to_end" counts those that end
    first, which favours short ones, as the released code does (weipu-zhang/STORM, eval.py).
    """
    num_envs = min(num_envs, episodes)
    fresh = dataclasses.replace(settings, num_envs=num_envs, episode_seeds="fresh")
    # Dealt out, episode k is played by environment k mod N.
    share = [len(range(row, episodes, num_envs)) if selection == "dealt" else episodes for row in range(num_envs)]
    ended, crashed = [0] * num_envs, 0
    counted: list[tuple[int, Episode]] = []  # with its number among the episodes of its environment
    with (
        closing(VectorEnv(fresh, seed=seed, env_index_offset=EVALUATION_ROW)) as envs,
        torch.random.fork_rng(devices=random_devices()),
    ):
        torch.manual_seed(seed)
        policy = make_policy(envs)
        obs, is_first = envs.reset(), np.ones(num_envs, dtype=bool)
        while len(counted) < episodes:
            outcome = envs.step(policy.act(obs, is_first, greedy=greedy))
            obs, is_first = outcome.obs, outcome.is_first
            for episode in outcome.episodes:
                number = ended[episode.env_index]
                if number >= share[episode.env_index] or len(counted) == episodes:
                    continue
                if episode.crashed:
                    crashed += 1
                    continue
                ended[episode.env_index] += 1
                counted.append((number, episode))
                if on_episode is not None:
                    on_episode(episode)
    if selection == "dealt":
        counted.sort(key=lambda pair: (pair[0], pair[1].env_index))
    is_atari = settings.id is None or settings.id.startswith("ALE/")
    return Evaluation(name, env_name(settings), [episode for _, episode in counted], is_atari, crashed)


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
