"""A recurrent sequence model, for comparison with the Transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from stormlit.data import TensorRecord
from stormlit.nn.sequence.transformer import ActionMixer
from stormlit.registry import Option, register


@dataclass(slots=True)
class GRUMemory(TensorRecord):
    """state: (layers, N, D), the recurrent state of every layer."""

    state: Tensor

    def cut(self, where: Tensor) -> None:
        """Forget everything seen so far in the rows where ``where`` (N,) bool is True."""
        self.state.masked_fill_(where.view(1, -1, 1), 0.0)


@register("sequence_model", "gru")
class GRUSequence(nn.Module):
    """Token mixer, then gated recurrent layers.

    latent_dim: Z.  num_actions: A.  hidden_dim: D.

    When to use: to ask what attention is worth, and with ``player.memory=carried`` for a memory without a longest
    window. A full pass goes step by step.
    """

    carries = True

    def __init__(
        self,
        latent_dim: int,
        num_actions: int,
        hidden_dim: int,
        *,
        num_layers: Annotated[int, Option("stacked recurrent layers", low=1)] = 1,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.max_length: int | None = None
        self.mixer = ActionMixer(latent_dim, num_actions, hidden_dim)
        self.cells = nn.ModuleList(nn.GRUCell(hidden_dim, hidden_dim) for _ in range(num_layers))

    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """latent: (B, T, Z).  action: (B, T) int64, or (B, T, A) float32.  is_first: (B, T) bool.

        Returns hidden (B, T, D).
        """
        return self.prefill(latent, action, is_first, capacity=action.shape[1])[0]

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, GRUMemory]:
        """As ``forward``, returning the state after the last token too; ``capacity`` is not needed here."""
        tokens = self.mixer(latent, action)
        rows, length = action.shape[:2]
        memory = GRUMemory(tokens.new_zeros(len(self.cells), rows, self.hidden_dim))
        hidden: list[Tensor] = []
        keep = (~is_first).to(tokens.dtype).unsqueeze(-1)
        for t in range(length):
            memory.state = memory.state * keep[:, t]
            hidden.append(self._advance(tokens[:, t], memory))
        return torch.stack(hidden, dim=1), memory

    def empty(self, rows: int, capacity: int) -> GRUMemory:
        """A memory of ``rows`` trajectories that have not begun."""
        weight = next(self.parameters())
        return GRUMemory(weight.new_zeros(len(self.cells), rows, self.hidden_dim))

    def step(self, latent: Tensor, action: Tensor, memory: GRUMemory) -> Tensor:
        """latent: (N, Z).  action: (N,) int64, or (N, A) float32.  Returns (N, D); the memory moves on."""
        return self._advance(self.mixer(latent, action), memory)

    def _advance(self, x: Tensor, memory: GRUMemory) -> Tensor:
        states: list[Tensor] = []
        for cell, previous in zip(self.cells, memory.state, strict=True):
            x = cell(x, previous)
            states.append(x)
        memory.state = torch.stack(states)
        return x
