"""What an agent can do in a step: the kinds of actions, and how they are stored.

Without PyTorch, which an environment's process does not import; what networks do with them is in ``ops.actions``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["discrete", "multi_discrete", "multi_binary", "box"]
KINDS: Mapping[Kind, str] = {
    "discrete": "Discrete",
    "multi_discrete": "MultiDiscrete",
    "multi_binary": "MultiBinary",
    "box": "Box",
}
"""Every kind with Gymnasium's name for it."""


@dataclass(frozen=True, slots=True)
class ActionSpace:
    """Actions as they are stored and learned from, whatever form an environment takes them in.

    kind: "discrete", one of ``classes[0]`` actions.  "multi_discrete", one of ``classes[i]`` for each part i of an
    action.  "multi_binary", the same with two classes each.  "box", ``dims`` numbers in [-1, 1].
    Choices are counted from 0.
    """

    kind: Kind
    classes: tuple[int, ...] = ()
    dims: int = 1

    @classmethod
    def of(cls, actions: ActionSpace | int) -> ActionSpace:
        """The space itself; a number n is short for n discrete actions."""
        return actions if isinstance(actions, ActionSpace) else cls("discrete", (actions,))

    @classmethod
    def box(cls, dims: int) -> ActionSpace:
        """``dims`` numbers in [-1, 1]."""
        return cls("box", dims=dims)

    @classmethod
    def choices(cls, kind: Kind, classes: tuple[int, ...]) -> ActionSpace:
        """Several choices at a time, part i among ``classes[i]``."""
        return cls(kind, classes, len(classes))

    @property
    def is_discrete(self) -> bool:
        """Whether an action is one whole number."""
        return self.kind == "discrete"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one stored action: (), or (dims,)."""
        return () if self.is_discrete else (self.dims,)

    @property
    def dtype(self) -> type[np.int64] | type[np.float32]:
        """Of stored actions."""
        return np.float32 if self.kind == "box" else np.int64

    @property
    def width(self) -> int:
        """A: how many numbers an action has in the form that networks read, see ``ops.actions.encode``."""
        return sum(self.classes) if self.kind in ("discrete", "multi_discrete") else self.dims

    @property
    def num_actions(self) -> int:
        """How many discrete actions there are.  Raises ``ValueError`` for any other kind."""
        if not self.is_discrete:
            raise ValueError(f"{self} actions cannot be counted")
        return self.classes[0]

    @property
    def range(self) -> str:
        """What a number of an action may be, in words: "0 to 3"."""
        if self.kind == "box":
            return "-1 to 1"
        return ", ".join(f"0 to {count - 1}" for count in self.classes)

    def __str__(self) -> str:
        """As Gymnasium writes it."""
        inner = {"box": f"-1 to 1, {self.dims}", "multi_discrete": list(self.classes), "discrete": self.classes[:1]}
        size = inner.get(self.kind, self.dims)
        return f"{KINDS[self.kind]}({size[0] if isinstance(size, tuple) else size})"

    def zeros(self, *leading: int) -> np.ndarray:
        """Zeros in the shape and dtype of stored actions, (*leading, *shape)."""
        return np.zeros((*leading, *self.shape), self.dtype)

    def random(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Uniformly random actions, (count, *shape)."""
        if self.is_discrete:
            return generator.integers(self.num_actions, size=count)
        if self.kind == "box":
            return generator.uniform(-1.0, 1.0, (count, self.dims)).astype(np.float32)
        return generator.integers(self.classes, size=(count, self.dims))

    def constants(self) -> dict[str, Any]:
        """Actions that a baseline can hold all along, by name: each discrete one; of others the ends of their range.

        A Box has its middle too.
        """
        if self.is_discrete:
            return {str(action): action for action in range(self.num_actions)}
        if self.kind == "box":
            return {word: self.zeros() + np.float32(x) for word, x in (("low", -1), ("middle", 0), ("high", 1))}
        return {"first": self.zeros(), "last": np.array(self.classes, np.int64) - 1}

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """Numbers of a Box into [-1, 1]; a choice that does not exist is nearest to none, and stays."""
        return np.clip(actions, -1.0, 1.0) if self.kind == "box" else actions

    def misfit(self, actions: np.ndarray) -> str | None:
        """What is wrong with the type or shape of actions (N, *shape), as the end of a sentence; None if nothing is."""
        kind = np.floating if self.kind == "box" else np.integer
        if np.issubdtype(actions.dtype, kind) and actions.shape[1:] == self.shape:
            return None
        length = "".join(f", {size}" for size in self.shape) or ","
        return f"{actions.dtype} of shape {actions.shape} where {self} takes {self.dtype.__name__} of shape (N{length})"

    def first_outside(self, actions: np.ndarray) -> int | None:
        """The first of actions (N, *shape) that is outside the space (NaN is), by its number; None if none is."""
        if self.is_discrete:  # at every step, of one or a few environments: NumPy takes many times as long
            return next((i for i, action in enumerate(actions.tolist()) if not 0 <= action < self.num_actions), None)
        low, high = (-1.0, 1.0) if self.kind == "box" else (0, np.array(self.classes) - 1)
        inside = ((actions >= low) & (actions <= high)).reshape(len(actions), self.dims).all(axis=1)
        return None if inside.all() else int(inside.argmin())


def action_text(action: np.ndarray, meanings: Sequence[str]) -> str:
    """One action for a person: its name, or its numbers.  action: as stored.  meanings: of discrete actions."""
    if action.ndim == 0:
        return meanings[int(action)]
    return " ".join(f"{number:+.2f}" if action.dtype.kind == "f" else str(number) for number in action)
