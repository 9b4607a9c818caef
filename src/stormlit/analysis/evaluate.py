"""Playing whole episodes and counting their returns."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from stormlit.data import Episode
from stormlit.envs import EnvSettings, VectorEnv, env_facts, env_name, human_normalized, is_atari, is_deterministic
from stormlit.errors import counted
from stormlit.spaces import ActionSpace

# Evaluation environments draw their episodes' seeds from rows that no training environment has.
EVALUATION_ROW = 1_000_000
RANDOM = "random"  # what the policy of random play is called


OnStep = Callable[[int, int], None]
"""Called after each step of all environments, with the episodes counted and the environment steps taken so far."""


class Policy(Protocol):
    """Anything that chooses actions for N environments."""

    def act(self, obs: np.ndarray, is_first: np.ndarray, *, greedy: bool = False) -> np.ndarray:
        """obs: (N, *shape) as stored.  is_first: (N,) bool.  Returns actions (N, *shape)."""
        ...


class RandomPolicy:
    """Every action with the same probability.  actions: what they are, or how many."""

    def __init__(self, actions: ActionSpace | int, seed: int) -> None:
        self.action_space, self.random = ActionSpace.of(actions), np.random.default_rng(seed)

    def act(self, obs: np.ndarray, is_first: np.ndarray, *, greedy: bool = False) -> np.ndarray:
        return self.action_space.random(self.random, len(obs))


class ConstantPolicy:
    """One action, always."""

    def __init__(self, action: int | np.ndarray) -> None:
        self.action = np.asarray(action)

    def act(self, obs: np.ndarray, is_first: np.ndarray, *, greedy: bool = False) -> np.ndarray:
        return np.repeat(self.action[np.newaxis], len(obs), axis=0)


def random_devices() -> list[int]:
    """The GPU whose random state a fork has to keep, if there is one; the CPU's is always kept."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


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
    def truncated(self) -> int:
        """How many of the episodes were cut off by a limit of steps."""
        return sum(episode.truncated for episode in self.episodes)

    @property
    def std(self) -> float:
        """Sample standard deviation over episodes, 0 for a single one."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return self.std / max(len(self.returns), 1) ** 0.5

    @property
    def human_normalized(self) -> float | None:
        """(mean - random) / (human - random) by the published references; None for a game that has none."""
        return human_normalized(self.game, self.mean) if self.is_atari else None

    def summary(self) -> str:
        """One line for a person."""
        played = counted(len(self.returns), "episode")
        if self.truncated:
            played += f", {self.truncated} of them truncated"
        if self.crashed:
            played += f", and {self.crashed} broken off by crashes, not counted"
        line = f"{self.mean:10.2f} +- {self.standard_error:.2f} (standard error, {played})"
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
            "truncated": self.truncated,
            "crashed": self.crashed,
            "episodes": [dataclasses.asdict(episode) for episode in self.episodes],
        }


def evaluate(
    name: str,
    make_policy: Callable[[int], Policy],
    settings: EnvSettings,
    *,
    episodes: int,
    num_envs: int,
    seed: int,
    max_steps_per_episode: int | None = None,
    greedy: bool = False,
    selection: Literal["dealt", "first_to_end"] = "dealt",
    on_step: OnStep | None = None,
) -> Evaluation:
    """Play ``episodes`` whole episodes, each with a seed of its own.

    make_policy: builds the policy for a number of environments.  seed: of episodes and of sampled actions; the caller's
    random state is left as it was.  max_steps_per_episode: after as many environment steps an episode is truncated, on
    top of the environment's own limits.
    An episode that a crash breaks off is not counted: the environment's next one takes its place.
    selection: "dealt" shares the episodes out to the environments beforehand; "first_to_end" counts those that end
    first, which favours short ones, as the released code does (weipu-zhang/STORM, eval.py).
    Raises ``EnvironmentCrashError`` when environments crash more often than allowed or break Gymnasium's interface.
    """
    num_envs = min(num_envs, episodes)
    limits = [limit for limit in (settings.max_episode_steps, max_steps_per_episode) if limit is not None]
    fresh = dataclasses.replace(
        settings, num_envs=num_envs, episode_seeds="fresh", max_episode_steps=min(limits, default=None)
    )
    # Dealt out, episode k is played by environment k mod N.
    share = [len(range(index, episodes, num_envs)) if selection == "dealt" else episodes for index in range(num_envs)]
    ended, crashed, steps = [0] * num_envs, 0, 0
    played: list[tuple[int, Episode]] = []  # with its number among the episodes of its environment
    with (
        closing(VectorEnv(fresh, seed=seed, env_index_offset=EVALUATION_ROW)) as envs,
        torch.random.fork_rng(devices=random_devices()),
    ):
        torch.manual_seed(seed)
        policy = make_policy(num_envs)
        obs, is_first = envs.reset(), np.ones(num_envs, dtype=bool)
        while len(played) < episodes:
            outcome = envs.step(policy.act(obs, is_first, greedy=greedy))
            obs, is_first = outcome.obs, outcome.is_first
            steps += num_envs
            for episode in outcome.episodes:
                number = ended[episode.env_index]
                if number >= share[episode.env_index] or len(played) == episodes:
                    continue
                if episode.crashed:
                    crashed += 1
                    continue
                ended[episode.env_index] += 1
                played.append((number, episode))
            if on_step is not None:
                on_step(len(played), steps)
    if selection == "dealt":
        played.sort(key=lambda pair: (pair[0], pair[1].env_index))
    return Evaluation(name, env_name(settings), [episode for _, episode in played], is_atari(settings), crashed)


def evaluate_baselines(
    baselines: list[str],
    settings: EnvSettings,
    *,
    episodes: int,
    seed: int,
    on_step: Callable[[str], OnStep] | None = None,
    **options: Any,
) -> list[Evaluation]:
    """Random play, and actions held constant (``ActionSpace.constants``), as ``evaluation.baselines`` asks.

    on_step: makes ``evaluate``'s for a baseline of that name.  options: of ``evaluate``; all play the same episodes,
    but of a constant action in a deterministic environment one is enough.
    """
    if not baselines:
        return []
    facts = env_facts(settings)
    policies: list[tuple[str, Callable[[int], Policy], int]] = []
    if "random" in baselines:
        policies.append((RANDOM, lambda _: RandomPolicy(facts.action_space, seed), episodes))
    if "constant" in baselines:
        constants = facts.action_space.constants()
        names = _constant_names(facts.action_meanings or [*constants])
        count = 1 if is_deterministic(settings) else episodes
        policies += [
            (name, lambda _, action=action: ConstantPolicy(action), count)  # type: ignore[misc]
            for name, action in zip(names, constants.values(), strict=True)
        ]
    return [
        evaluate(
            name,
            make_policy,
            settings,
            episodes=count,
            seed=seed,
            on_step=None if on_step is None else on_step(name),
            **options,
        )
        for name, make_policy, count in policies
    ]


def _constant_names(meanings: list[str]) -> list[str]:
    """``always LEFT``, with the action's number where the letters and digits, all that trackers keep, do not differ."""
    kept = {re.sub(r"[\W_]", "", meaning)[:50] for meaning in meanings}
    if len(kept) == len(meanings):
        return [f"always {meaning}" for meaning in meanings]
    return [f"always {action} {meaning}" for action, meaning in enumerate(meanings)]
