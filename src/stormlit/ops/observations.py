"""Observations as networks read them; ``ObservationSpace`` says how they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from stormlit.ops.twohot import symlog
from stormlit.spaces import ObservationSpace, Seen


def channels_first(space: ObservationSpace, obs: Tensor) -> Tensor:
    """Stored observations (..., *shape) as batches hold them: a view of images (..., C, Y, X), others as they are."""
    return obs if space.vectors else obs.movedim(-1, -3)


def split(space: ObservationSpace, obs: Tensor) -> Seen:
    """Image and vectors of observations as batches hold them, as they were stored."""
    if not space.vectors:
        return Seen(obs, None)
    if space.image is None:
        return Seen(None, obs)
    numbers, pixels = obs.tensor_split([4 * space.width], dim=-1)
    return Seen(pixels.unflatten(-1, space.image).movedim(-1, -3), numbers.contiguous().view(torch.float32))


def read(space: ObservationSpace, obs: Tensor) -> Seen:
    """Observations as batches hold them in the form that networks read."""
    seen = split(space, obs)
    image = None if seen.image is None else normalize_pixels(seen.image)
    return Seen(image, None if seen.vector is None else symlog(seen.vector))


def normalize_pixels(obs: Tensor) -> Tensor:
    """uint8 frames to float32 in [0, 1], of the same shape and memory order."""
    return obs / 255.0


def pixels(obs_hat: Tensor) -> Tensor:
    """Decoded frames in about [0, 1] to uint8 of the same shape."""
    return obs_hat.float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
