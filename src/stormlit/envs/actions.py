"""From the actions that are stored and learned from to those that an environment takes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from stormlit.errors import ActionError
from stormlit.spaces import ActionSpace

SUPPORTED = "Discrete, MultiDiscrete, MultiBinary and Box actions of floating-point numbers with finite bounds"


def action_space_of(space: spaces.Space[Any] | None) -> ActionSpace | None:
    """A Gymnasium space as it is stored: flat, counted from 0, in [-1, 1].  None if it is not supported."""
    match space:
        case spaces.Discrete():
            return ActionSpace.of(int(space.n))
        case spaces.MultiDiscrete() if space.nvec.size:
            return ActionSpace.choices("multi_discrete", tuple(int(count) for count in space.nvec.flat))
        case spaces.MultiBinary() if np.prod(space.shape):
            return ActionSpace.choices("multi_binary", (2,) * int(np.prod(space.shape)))
        case spaces.Box() if np.issubdtype(space.dtype, np.floating) and np.prod(space.shape):
            finite = np.isfinite(space.low).all() and np.isfinite(space.high).all()
            return ActionSpace.box(int(np.prod(space.shape))) if finite else None
    return None


def described(space: spaces.Space[Any] | None) -> str:
    """A space whose actions are not supported, in a few words."""
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and 0 not in space.shape:
        return f"unbounded Box {space.dtype} {space.shape}"
    if isinstance(space, spaces.Box):
        return f"Box {space.dtype} {space.shape}"
    return "no" if space is None else type(space).__name__


def is_stored_form(space: spaces.Space[Any]) -> bool:
    """Whether an environment takes actions just as they are stored."""
    return isinstance(space, spaces.Discrete) and space.start == 0


class StoredActions(gymnasium.ActionWrapper[np.ndarray, Any, Any]):
    """Takes actions as ``ActionSpace`` says they are stored, and hands on what the environment understands.

    Numbers of a Box are clipped to [-1, 1] and scaled to its bounds; choices are counted from the space's start, and
    everything has the space's shape and dtype. A step raises ``ActionError`` for an action of another type or shape,
    for a choice that does not exist and for NaN, before the environment sees it.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, Any]) -> None:
        super().__init__(env)
        inner = env.action_space
        self._inner, stored = inner, action_space_of(inner)
        assert stored is not None
        self.stored = stored
        if stored.is_discrete:
            self.action_space = spaces.Discrete(stored.num_actions)
        elif stored.kind == "box":
            self.action_space = spaces.Box(-1.0, 1.0, stored.shape, np.float32)
        elif stored.kind == "multi_binary":
            self.action_space = spaces.MultiBinary(stored.dims)
        else:
            self.action_space = spaces.MultiDiscrete(list(stored.classes))

    def action(self, action: Any) -> Any:
        """action: as stored.  Returns what the environment takes."""
        given = np.asarray(action)[np.newaxis]
        misfit = self.stored.misfit(given)
        if misfit is not None:
            raise ActionError(f"the action is {misfit}")
        given = self.stored.clip(given)
        if self.stored.first_outside(given) is not None:
            raise ActionError(f"the action {action} is outside {self.stored}: expected {self.stored.range}")
        return self._translated(given[0])

    def _translated(self, action: np.ndarray) -> Any:
        inner = self._inner
        if isinstance(inner, spaces.Discrete):
            return int(action) + int(inner.start)
        if not isinstance(inner, spaces.Box):
            return (action.reshape(inner.shape) + getattr(inner, "start", 0)).astype(inner.dtype)
        share = (action.reshape(inner.shape).astype(np.float64) + 1.0) / 2.0
        low, high = inner.low.astype(np.float64), inner.high.astype(np.float64)
        # Rounding to the space's own dtype must not lead out of it again.
        scaled = (low * (1.0 - share) + high * share).astype(inner.dtype)
        return np.asarray(np.clip(scaled, inner.low, inner.high))
