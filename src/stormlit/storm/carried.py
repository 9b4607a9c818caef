"""What a player has in place of a window where it carries the sequence model's memory along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class CarriedMemory:
    """The memory of a sequence model that ``carries`` (see ``checks.interfaces``), of N environments.

    Nothing is read again: what was remembered with earlier weights stays as it is while the weights are trained.

    capacity: steps that a memory of keys and values has room for; a recurrent one needs none.
    """

    def __init__(self, sequence_model: Any, num_envs: int, capacity: int, device: torch.device) -> None:
        self.sequence_model, self.num_envs, self.capacity = sequence_model, num_envs, capacity
        # All there is to save: the memory's tensors, and the hidden states (N, D) after each environment's last token.
        self.tensors: list[Tensor] = [
            *sequence_model.empty(num_envs, capacity).tensors(),
            torch.zeros(num_envs, sequence_model.hidden_dim, device=device),
        ]

    def read(self, begins: Tensor) -> tuple[Any, Tensor]:
        """A copy of the memory and the hidden states, cut where nothing is known yet.  begins: (N,) bool."""
        memory = self.sequence_model.empty(self.num_envs, self.capacity)
        for mine, kept in zip(memory.tensors(), self.tensors, strict=False):
            mine.copy_(kept)
        memory.cut(begins)
        return memory, self.tensors[-1].masked_fill(begins.unsqueeze(-1), 0.0)

    def moved_on(self, memory: Any, latent: Tensor, action: Tensor) -> list[Tensor]:
        """What ``tensors`` should be after one more token; ``memory``: of ``read``, which is moved on."""
        hidden = self.sequence_model.step(latent, action, memory)
        return [new.to(old.dtype) for new, old in zip([*memory.tensors(), hidden], self.tensors, strict=True)]
