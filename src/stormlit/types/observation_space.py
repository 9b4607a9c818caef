"""What an agent sees in a step: an image, vectors or both, and how they are stored.

Without PyTorch, which an environment's process does not import; what networks do with them is in ``ops.observations``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


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

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading axes of both."""
        if self.image is not None:
            return self.image.shape[:-3]
        assert self.vector is not None
        return self.vector.shape[:-1]
