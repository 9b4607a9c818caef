"""What an agent can do and what it sees in a step: the kinds of actions and observations, and how they are stored.

Without PyTorch, which an environment's process does not import; what networks do with them is in ``ops.actions`` and
``ops.observations``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["discrete", "multi_discrete", "multi_binary", "box"]
KINDS: Mapping[Kind, str] = {
    "discrete": "Discrete",
    "multi_discrete": "MultiDiscrete",
    "multi_binary": "MultiBinary",
    "box": "Box",
}
"""Every kind with Gymnasium's name for it."""


@dataclass(frozen=True)
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

    @functools.cached_property
    def is_discrete(self) -> bool:
        """Whether an action is one whole number."""
        return self.kind == "discrete"

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one stored action: (), or (dims,)."""
        return () if self.is_discrete else (self.dims,)

    @property
    def dtype(self) -> type[np.int64] | type[np.float32]:
        """Of stored actions."""
        return np.float32 if self.kind == "box" else np.int64

    @property
    def width(self) -> int:
        """A: how many numbers an action has in the form that networks read, see ``ops.spaces.encode``."""
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
            outside = [index for index, action in enumerate(actions.tolist()) if not 0 <= action < self.classes[0]]
            return outside[0] if outside else None
        low, high = (-1.0, 1.0) if self.kind == "box" else (0, np.array(self.classes) - 1)
        inside = ((actions >= low) & (actions <= high)).reshape(len(actions), self.dims).all(axis=1)
        return None if inside.all() else int(inside.argmin())


def action_text(action: np.ndarray, meanings: Sequence[str]) -> str:
    """One action for a person: its name, or its numbers.  action: as stored.  meanings: of discrete actions."""
    if action.ndim == 0:
        return meanings[int(action)]
    return " ".join(f"{number:+.2f}" if action.dtype.kind == "f" else str(number) for number in action)


@dataclass(frozen=True, slots=True)
class ObservationSpace:
    """Observations as they are stored and learned from, whatever form an environment gives them in.

    image: (Y, X, C), or None.  vectors: the name and the width of each vector; end to end they are one of V numbers.
    At least one of the two is there. An observation is one array, so that whatever stores, copies or compares
    observations need not know what they are of:

        an image     (Y, X, C) uint8
        vectors      (V,) float32
        both         (4 V + Y X C,) uint8, the bytes of the numbers and then the pixels
    """

    image: tuple[int, int, int] | None
    vectors: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, observations: ObservationSpace | tuple[int, ...]) -> ObservationSpace:
        """The space itself; a shape (Y, X, C) is short for an image."""
        if isinstance(observations, ObservationSpace):
            return observations
        rows, columns, channels = observations
        return cls((rows, columns, channels))

    @property
    def width(self) -> int:
        """V: how many numbers all vectors have together."""
        return sum(width for _, width in self.vectors)

    @property
    def image_first(self) -> tuple[int, int, int]:
        """(C, Y, X) of the image as networks read it.  Raises ``ValueError`` where there is none."""
        if self.image is None:
            raise ValueError(f"{self} is no image")
        rows, columns, channels = self.image
        return channels, rows, columns

    @property
    def names(self) -> list[str]:
        """A name for each of the V numbers."""
        return [name if width == 1 else f"{name}[{index}]" for name, width in self.vectors for index in range(width)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one stored observation."""
        if self.image is None or not self.vectors:
            return self.image or (self.width,)
        return (4 * self.width + math.prod(self.image),)

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """Of stored observations."""
        return np.float32 if self.image is None else np.uint8

    @property
    def nbytes(self) -> int:
        """Of one stored observation."""
        return 4 * self.width + (0 if self.image is None else math.prod(self.image))

    def __str__(self) -> str:
        """For a person: ``64x64x3 uint8 and 4 float32``."""
        image = [] if self.image is None else [f"{'x'.join(map(str, self.image))} uint8"]
        return " and ".join([*image, *([f"{self.width} float32"] if self.vectors else [])])

    def zeros(self, *leading: int) -> np.ndarray:
        """Zeros in the shape and dtype of stored observations, (*leading, *shape)."""
        return np.zeros((*leading, *self.shape), self.dtype)

    def numbers(self, stored: np.ndarray) -> np.ndarray:
        """The vectors of stored observations (..., *shape), (..., V) float32; of an image alone (..., 0)."""
        if self.image is None:
            return stored
        if not self.vectors:
            return np.zeros((*stored.shape[:-3], 0), np.float32)
        return np.ascontiguousarray(stored[..., : 4 * self.width]).view(np.float32)

    def join(self, image: np.ndarray | None, vector: np.ndarray | None) -> np.ndarray:
        """One stored observation.  image: (Y, X, C) uint8.  vector: (V,) float32.  Each where the space has one."""
        if image is None or vector is None:
            given = vector if image is None else image
            assert given is not None
            return given
        return np.concatenate([np.ascontiguousarray(vector).view(np.uint8), image.reshape(-1)])


@dataclass(slots=True)
class Seen:
    """Observations taken apart; None for what the space does not have.

    image: (..., C, Y, X), uint8, or float32 in [0, 1] for networks.
    vector: (..., V) float32, as the environment gave it, or symlog(x) for networks.
    """

    image: Tensor | None
    vector: Tensor | None

    def after_first(self) -> Seen:
        """Without the first of the T steps of (B, T, ...)."""
        return Seen(*(None if part is None else part[:, 1:] for part in (self.image, self.vector)))
