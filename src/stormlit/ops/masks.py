"""Which steps of a window may see which."""

from __future__ import annotations

import torch
from torch import Tensor


def episode_causal_mask(is_first: Tensor) -> Tensor:
    """True where the step of a row may attend to the step of a column: not later, and of the same episode.

    is_first: (B, T) bool.  Returns (B, T, T) bool.
    """
    episode = is_first.cumsum(dim=1)
    same = episode.unsqueeze(2) == episode.unsqueeze(1)
    length = is_first.shape[1]
    return same & torch.ones(length, length, dtype=torch.bool, device=is_first.device).tril()


def last_start(is_first: Tensor) -> Tensor:
    """Index of the last True in each row, 0 where there is none.  is_first: (B, T) bool.  Returns (B,) int64."""
    steps = torch.arange(is_first.shape[1], device=is_first.device)
    return (steps * is_first).amax(dim=1)
