"""Two tokens a step, one for the latent and one for the action, in front of any sequence model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.nn.building import build_part
from stormlit.registry import fill


class SeparateTokens(nn.Module):
    """Reads a step as the latent's token, then the action's, as IRIS does (Micheli et al. 2023).

    ``hidden[:, t]`` is what the model inside makes of step t's action. That model is an ordinary one with twice as many
    steps and one action more: the latent's token comes with the action "none yet", the action's token with a latent of
    zeros. ``max_length`` and ``capacity`` count steps, each of them two tokens of the model inside.

    model: a sequence model for ``num_actions + 1`` actions.  num_actions: A.
    """

    def __init__(self, model: Any, num_actions: int) -> None:
        super().__init__()
        self.model, self.no_action = model, num_actions
        self.hidden_dim: int = model.hidden_dim
        self.max_length: int | None = None if model.max_length is None else model.max_length // 2

    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """latent: (B, T, Z).  action: (B, T) int64.  is_first: (B, T) bool.  Returns hidden (B, T, D)."""
        return self.model(*self._tokens(latent, action, is_first))[:, 1::2]

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, Any]:
        """As ``forward``, with the memory of the model inside."""
        hidden, memory = self.model.prefill(*self._tokens(latent, action, is_first), 2 * capacity)
        return hidden[:, 1::2], memory

    def empty(self, rows: int, capacity: int) -> Any:
        """A memory of ``rows`` trajectories that have not begun, with room for ``capacity`` steps."""
        return self.model.empty(rows, 2 * capacity)

    def step(self, latent: Tensor, action: Tensor, memory: Any) -> Tensor:
        """latent: (N, Z).  action: (N,) int64.  Returns hidden (N, D); the memory moves on by one step."""
        self.model.step(latent, torch.full_like(action, self.no_action), memory)
        return self.model.step(torch.zeros_like(latent), action, memory)

    def _tokens(self, latent: Tensor, action: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two tokens of each step, one after the other; an episode starts with the first one."""
        latents = torch.stack([latent, torch.zeros_like(latent)], dim=2)
        actions = torch.stack([torch.full_like(action, self.no_action), action], dim=2)
        starts = F.pad(is_first.unsqueeze(-1), (0, 1))
        return latents.flatten(1, 2), actions.flatten(1, 2), starts.flatten(1, 2)


def build_separate(
    kind: str, node: str | Mapping[str, Any], latent_dim: int, num_actions: int, hidden_dim: int, *, key: str
) -> SeparateTokens:
    """The sequence model that a node describes, reading two tokens a step; its ``max_length`` stays one in steps."""
    filled = fill(kind, node, key)
    if isinstance(filled.get("max_length"), int):
        filled["max_length"] *= 2
    model = build_part(kind, filled, latent_dim, num_actions + 1, hidden_dim, key=key)
    return SeparateTokens(model, num_actions)
