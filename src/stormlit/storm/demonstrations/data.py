"""A demonstration: what was seen, done and got, step by step, and what is known of where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stormlit.errors import DemonstrationError, nearest

Timing = Literal["aligned", "as_published"]
"""Of an official pickle: see ``read_official_pickle``."""

LARGEST_BYTES = 4 * 2**30
"""Bytes of a file and of an array that are read at most: 350,000 frames of 64 x 64."""


@dataclass(slots=True)
class Origin:
    """Where a demonstration comes from; None is unknown.

    env_id: Gymnasium id.  num_actions, action_meanings: of its action space.  env: the section ``env`` of the
    configuration it was recorded with, which tells how frames were made.  policy: "random", or the run
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

    obs: (T, Y, X, C) uint8, C is 1 or 3.  action: (T,) int64, from 0.  reward: (T,) float32, untransformed.
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


def check_names(file: Path, found: list[str], expected: list[str]) -> None:
    """Raise ``DemonstrationError`` naming the first array that is unknown or missing."""
    for name in found:
        if name not in expected:
            raise DemonstrationError(
                f"{file} has an array '{shortened(name)}' that is not known{nearest(name[:80], expected)}; "
                f"expected {', '.join(expected)}"
            )
    for name in expected:
        if name not in found:
            raise DemonstrationError(f"{file} has no array '{name}'; expected {', '.join(expected)}")


def check_size(file: Path, name: str, shape: tuple[int, ...], itemsize: int, held: int) -> None:
    """Raise ``DemonstrationError`` unless an array that claims ``shape`` takes the ``held`` bytes, and not too many.

    To be called before anything is allocated.
    """
    claimed = math.prod(shape) * itemsize
    if claimed > LARGEST_BYTES:
        raise DemonstrationError(
            f"{file} claims '{name}' of shape {shortened(shape)}, more than the "
            f"{LARGEST_BYTES // 2**30} GiB that are read"
        )
    if claimed != held:
        raise DemonstrationError(
            f"{file} claims '{name}' of shape {shortened(shape)}, {claimed:,} bytes, but holds {held:,}"
        )


def check_file(file: Path) -> int:
    """The size of a file in bytes; raises ``DemonstrationError`` for one that cannot be read, or is too large."""
    try:
        size = file.stat().st_size
        if not file.is_file():
            raise DemonstrationError(f"{file} is not a file; expected a demonstration, .npz or .pkl")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise DemonstrationError(f"the demonstration {file} cannot be read: {reason}") from error
    if size > LARGEST_BYTES:
        raise DemonstrationError(f"{file} has {size:,} bytes, more than the {LARGEST_BYTES // 2**30} GiB that are read")
    return size


def check_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ``DemonstrationError`` for the first array of a wrong type, shape, length or value."""
    steps = len(arrays["obs"]) if arrays["obs"].ndim else 0
    for name, (dtype, shape) in SHAPES.items():
        array = arrays[name]
        if array.dtype != dtype or array.ndim != shape.count(",") + (name == "obs"):
            raise DemonstrationError(
                f"{file}: '{name}' is {array.dtype} of shape {array.shape}, expected {dtype} of shape {shape}"
            )
        if len(array) != steps:
            raise DemonstrationError(f"{file}: '{name}' has {len(array)} steps where 'obs' has {steps}")
    if steps == 0 or 0 in arrays["obs"].shape or arrays["obs"].shape[3] not in (1, 3):
        raise DemonstrationError(
            f"{file}: 'obs' has shape {arrays['obs'].shape}, expected at least one step of frames with 1 or 3 channels"
        )
    if arrays["action"].min() < 0:
        step = int(arrays["action"].argmin())
        raise DemonstrationError(f"{file}: 'action' is {arrays['action'][step]} at step {step}, expected 0 or more")
    if not np.isfinite(arrays["reward"]).all():
        step = int(np.isfinite(arrays["reward"]).argmin())
        raise DemonstrationError(
            f"{file}: 'reward' is {arrays['reward'][step]} at step {step}, expected a finite number"
        )


def shortened(value: object) -> str:
    """What a file says, as part of one sentence."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
