"""Actions and observations as networks read and draw them; what they are is in ``stormlit.spaces``."""

from __future__ import annotations

import torch
from torch import Tensor

from stormlit.ops.categorical import one_hot
from stormlit.ops.twohot import symlog
from stormlit.spaces import ActionSpace, ObservationSpace, Seen


def encode(space: ActionSpace, action: Tensor) -> Tensor:
    """Actions that are not one discrete choice, as vectors for a sequence model.

    action: (..., *shape) as stored, or of a Box as sampled, which is clipped to [-1, 1] as on its way to an
    environment.  Returns (..., A) float32: a one-hot for each choice, bits, or the numbers of a Box.
    """
    if space.kind == "box":
        return clip(space, action)
    if space.kind == "multi_binary":
        return action.float()
    choices = zip(action.unbind(-1), space.classes, strict=True)
    return torch.cat([one_hot(choice, count) for choice, count in choices], dim=-1)


def clip(space: ActionSpace, action: Tensor) -> Tensor:
    """As they are stored and taken: numbers of a Box in [-1, 1], choices as they are."""
    return action.clamp(-1.0, 1.0) if space.kind == "box" else action


def random_like(space: ActionSpace, action: Tensor) -> Tensor:
    """Uniformly random actions in the shape of others, (..., *shape)."""
    if space.is_discrete:
        return torch.randint_like(action, space.num_actions)
    if space.kind == "box":
        return torch.rand_like(action).mul_(2.0).sub_(1.0)
    choices = zip(action.unbind(-1), space.classes, strict=True)
    return torch.stack([torch.randint_like(choice, count) for choice, count in choices], dim=-1)


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
    image = None if seen.image is None else seen.image / 255.0
    return Seen(image, None if seen.vector is None else symlog(seen.vector))


def normalize_pixels(obs: Tensor) -> Tensor:
    """uint8 frames to float32 in [0, 1], of the same shape and memory order."""
    return obs / 255.0


def pixels(obs_hat: Tensor) -> Tensor:
    """Decoded frames in about [0, 1] to uint8 of the same shape."""
    return obs_hat.float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
