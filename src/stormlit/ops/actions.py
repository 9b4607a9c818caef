"""Actions as networks read and draw them; ``ActionSpace`` says what they are."""

from __future__ import annotations

import torch
from torch import Tensor

from stormlit.ops.categorical import one_hot
from stormlit.spaces import ActionSpace


def encode(space: ActionSpace, action: Tensor) -> Tensor:
    """Actions for a sequence model.

    action: (..., *shape) as stored, or of a Box as sampled, which is clipped to [-1, 1] as on its way to an
    environment.  Returns discrete ones as they are, (...,) int64; any other as (..., A) float32: a one-hot for each
    choice, bits, or the numbers of a Box.
    """
    if space.is_discrete:
        return action
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
