"""The state-space recurrence of Mamba-2 (Dao and Gu 2024), many steps at once."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(
    x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, is_first: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """``state_t = exp(log_decay_t) state_{t-1} + x_t write_t^T`` and ``y_t = state_t read_t``, for every head.

    Where an episode begins, the state before it counts as zero. Within ``chunk`` steps everything is computed at once,
    as attention is (the paper's equation 16: ``y = (L o read write^T) x``), and from one chunk to the next by the
    state, so that the cost grows as the number of steps.

    x: (B, T, heads, P).  log_decay: (B, T, heads), at most 0.  write, read: (B, T, S), shared by the heads.
    is_first: (B, T) bool.  state: (B, heads, P, S), before the first step.
    All float32. Returns y (B, T, heads, P), and the state after the last step.
    """
    outputs = []
    for part in zip(*(tensor.split(chunk, dim=1) for tensor in (x, log_decay, write, read, is_first)), strict=True):
        y, state = _scan_chunk(state, *part)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def _scan_chunk(
    state: Tensor, x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, is_first: Tensor
) -> tuple[Tensor, Tensor]:
    """``scan`` over few enough steps that all pairs of them fit in memory."""
    decay = log_decay.transpose(1, 2)  # (B, heads, T)
    episode = is_first.cumsum(dim=1)
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    seen = (episode.unsqueeze(2) == episode.unsqueeze(1)) & later
    # Sums over the steps after j up to i, each on its own: differences of running sums would lose small ones.
    between = decay.unsqueeze(3).masked_fill(~later.tril(-1), 0.0).cumsum(dim=2)
    # Masked before the exponential, so that no gradient comes from what is not seen.
    between = between.masked_fill(~seen.unsqueeze(1), float("-inf")).exp()
    # What is left of the state before the chunk.
    since = decay.cumsum(dim=2).masked_fill((episode > 0).unsqueeze(1), float("-inf")).exp()

    weights = between * (read @ write.mT).unsqueeze(1)
    y = weights @ x.transpose(1, 2) + since.unsqueeze(-1) * (read.unsqueeze(1) @ state.mT)
    kept = x.transpose(1, 2) * between[:, :, -1].unsqueeze(-1)
    state = kept.mT @ write.unsqueeze(1) + since[:, :, -1, None, None] * state
    return y.transpose(1, 2), state


def step(x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """``scan`` for a single step.

    x: (N, heads, P).  log_decay: (N, heads).  write, read: (N, S).  state: (N, heads, P, S).
    Returns y (N, heads, P) and the new state.
    """
    state = torch.addcmul(log_decay.exp()[:, :, None, None] * state, x.unsqueeze(-1), write[:, None, None, :])
    return (state.flatten(1, 2) @ read.unsqueeze(-1)).view_as(x), state
