"""A demonstration: what was seen, done and got, step by step, and what is known of where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from stormlit.errors import nearest

Timing = Literal["aligned", "as_published"]
"""Of an official pickle: see ``read_official_pickle``."""

LARGEST_BYTES = 4 * 2**30
"""Bytes of a file and of an array that are read at most: 350,000 frames of 64 x 64."""


@dataclass(slots=True)
class Origin:
    """Where a demonstration comes from; None is unknown.

    env_id: Gymnasium id.  num_actions, action_meanings: of its action space, if discrete.  env: the section
    ``env`` of the configuration it was recorded with, which tells how frames were made.  policy: "random", or the run
    and checkpoint that played.
    """

    env_id: str | None = None
    num_actions: int | None = None
    action_meanings: list[str] | None = None
    env: dict[str, Any] | None = None
    policy: str | None = None


@dataclass(slots=True)
class Demonstration:
    """T consecutive steps, of one or more episodes; the last one need not be complete.

    obs: (T, Y, X, C) uint8; (T, V) float32 of vectors; of both (T, B) uint8, the bytes of each step's V numbers and
    then its pixels.  action: (T,) int64, from 0; or (T, dims) int64, or float32
    in [-1, 1].  reward: (T,) float32, untransformed.
    terminated, truncated: (T,) bool, the episode ended, or was cut.  life_lost: (T,) bool.
    ``reward[t]`` and the flags follow ``action[t]``, taken at ``obs[t]``; the frame an episode ends on is not stored.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    life_lost: np.ndarray
    origin: Origin = field(default_factory=Origin)

    def __len__(self) -> int:
        return len(self.action)

    @property
    def is_first(self) -> np.ndarray:
        """(T,) bool, the step begins an episode, or the demonstration."""
        return np.concatenate([[True], (self.terminated | self.truncated)[:-1]])


SHAPES: Mapping[str, tuple[str, str]] = {
    "obs": ("uint8", "(T, Y, X, C)"),
    "action": ("int64", "(T,)"),
    "reward": ("float32", "(T,)"),
    "terminated": ("bool", "(T,)"),
    "truncated": ("bool", "(T,)"),
    "life_lost": ("bool", "(T,)"),
}
"""dtype and shape of each array of a demonstration."""


def check_names(found: Iterable[str], expected: list[str]) -> None:
    """Raise ``ValueError`` naming the first array that is unknown or missing."""
    for name in found:
        if name not in expected:
            guess = nearest(name[:80], expected)
            raise ValueError(
                f"it has an array '{shortened(name)}' that is not known{guess}; expected {', '.join(expected)}"
            )
    for name in expected:
        if name not in found:
            raise ValueError(f"it has no array '{name}'; expected {', '.join(expected)}")


def check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ``ValueError`` for the first array of a wrong type, shape, length or value."""
    obs, action, reward = arrays["obs"], arrays["action"], arrays["reward"]
    for name, (dtype, shape) in SHAPES.items():
        array = arrays[name]
        if name == "action" and array.ndim == 2 and array.shape[1] and array.dtype in ("int64", "float32"):
            shape, dtype = "(T, dims)", str(array.dtype)  # of several parts
        if name == "obs" and array.ndim == 2 and array.dtype in ("uint8", "float32"):
            shape, dtype = "(T, dims)", str(array.dtype)  # vectors, or an image with vectors
        if array.dtype != dtype or array.ndim != len(shape.split(", ")):
            raise ValueError(f"'{name}' is {array.dtype} of shape {array.shape}, expected {dtype} of shape {shape}")
        if len(array) != len(obs):
            raise ValueError(f"'{name}' has {len(array)} steps where 'obs' has {len(obs)}")
    if 0 in obs.shape:
        raise ValueError(f"'obs' has shape {obs.shape}, expected at least one step of frames that are not empty")
    bounded = action.dtype == np.float32
    for name, bad, expected in (
        ("action", ~(np.abs(action) <= 1) if bounded else action < 0, "-1 to 1" if bounded else "0 or more"),
        ("reward", ~np.isfinite(reward), "a finite number"),
        ("obs", ~np.isfinite(obs) if obs.dtype == np.float32 else np.zeros(0, bool), "finite numbers"),
    ):
        if bad.any():
            step = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
            raise ValueError(f"'{name}' is {arrays[name][step]} at step {step}, expected {expected}")


def shortened(value: object, most: int = 80) -> str:
    """What a file says, as part of one sentence that can be shown in a terminal."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value)[: 4 * most])
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
