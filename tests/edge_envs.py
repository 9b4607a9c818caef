"""Environments that break their word, for processes of isolated environments to import: ``edge_envs:Float-v0``.

Each is an environment of 16 x 16 pixels whose episodes last six steps; the fault comes at one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

EPISODE = 6
IMAGE = np.full((16, 16, 3), 7, np.uint8)


class Edge(gymnasium.Env[Any, Any]):
    """reset: what that returns.  step: what the steps from ``since`` on return, or a function that raises."""

    image = IMAGE
    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, reset: Any = None, step: Any = None, since: int = 1) -> None:
        self.reset_returns, self.step_returns, self.since = reset, step, since
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return (self.image, {}) if self.reset_returns is None else self.reset_returns

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == EPISODE or self.steps < self.since or self.step_returns is None:
            return (self.image, 1.0, self.steps == EPISODE, False, {})
        return self.step_returns() if callable(self.step_returns) else self.step_returns


class Seedless(Edge):
    """As environments were before they were given their seed at reset."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class Narrow(Edge):
    """Its pixels may only be 10 to 200."""

    image = IMAGE + 100
    observation_space = gymnasium.spaces.Box(10, 200, (16, 16, 3), np.uint8)


def fail() -> Any:
    raise LookupError("nothing there")


def stepping(**changes: Any) -> tuple[Any, ...]:
    """What a step returns, changed in one of its values."""
    return tuple(
        ({"obs": IMAGE, "reward": 1.0, "terminated": False, "truncated": False, "info": {}} | changes).values()
    )


KINDS: dict[str, tuple[type[Edge], dict[str, Any]]] = {
    "Perfect": (Edge, {}),
    # observations
    "Float": (Edge, {"reset": (IMAGE / np.float32(255), {})}),
    "Long": (Edge, {"step": stepping(obs=IMAGE.astype(np.int64))}),
    "List": (Edge, {"reset": (IMAGE.tolist(), {})}),
    "ChannelsFirst": (Edge, {"reset": (np.zeros((3, 16, 16), np.uint8), {})}),
    "Grows": (Edge, {"step": stepping(obs=np.zeros((20, 20, 3), np.uint8)), "since": 3}),
    "Narrow": (Narrow, {}),
    "TooDark": (Narrow, {"step": stepping(obs=IMAGE), "since": 2}),
    # the interface
    "Seedless": (Seedless, {}),
    "OldReset": (Edge, {"reset": IMAGE}),
    "FourValues": (Edge, {"step": (IMAGE, 1.0, False, {})}),
    "NoInfo": (Edge, {"reset": (IMAGE, None)}),
    "NoReward": (Edge, {"step": stepping(reward=None)}),
    "RewardArray": (Edge, {"step": stepping(reward=np.ones(1))}),
    "ArrayEnd": (Edge, {"step": stepping(truncated=np.zeros(1, bool))}),
    "Fails": (Edge, {"step": fail}),
    "FailsLater": (Edge, {"step": fail, "since": 2}),
    # rewards that are numbers, of other types
    "RewardNumpy": (Edge, {"step": stepping(reward=np.float32(1), terminated=np.False_)}),
    "RewardZeroDim": (Edge, {"step": stepping(reward=np.array(1.0))}),
    # rewards that are not finite
    "NanReward": (Edge, {"step": stepping(reward=float("nan")), "since": 4}),
    "HugeReward": (Edge, {"step": stepping(reward=-1e39), "since": 4}),
}

MEANINGS: dict[str, Callable[[], Any] | Any] = {
    "Fewer": lambda: ["A", "B"],
    "More": lambda: list("ABCD"),
    "NoMeanings": lambda: None,
    "Raising": fail,
    "Attribute": ["A", "B", "C"],
    "Arrows": lambda: ["\u2190", "\u2191", "\u2192"],
    "Named": lambda: ("LEFT", "NOOP", "RIGHT"),
}


def with_meanings(meanings: Any) -> Edge:
    env = Edge()
    env.get_action_meanings = meanings  # type: ignore[attr-defined]
    return env


for word, (kind, options) in KINDS.items():
    gymnasium.register(f"{word}-v0", entry_point=kind, max_episode_steps=100, kwargs=options)
for word, said in MEANINGS.items():
    gymnasium.register(f"{word}-v0", entry_point=with_meanings, max_episode_steps=100, kwargs={"meanings": said})
gymnasium.register("Endless-v0", entry_point=Edge)


class ShortOrLong(gymnasium.Env[np.ndarray, np.int64]):
    """Half of the episodes end at once with return 0, the others after 40 steps with return 1."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.is_long = bool(self.np_random.integers(2))
        self.left = 40 if self.is_long else 1
        return np.zeros((8, 8, 3), np.uint8), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        ended = self.left == 0
        return np.zeros((8, 8, 3), np.uint8), float(ended and self.is_long), ended, False, {}
