"""One token a step for its latent and its action together, or one for each, in front of any sequence model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.nn.building import build_part
from stormlit.registry import fill
from stormlit.spaces import ActionSpace


class SeparateTokens(nn.Module):
    """Reads a step as the latent's token, then the action's, as IRIS does (Micheli et al. 2023).

    ``hidden[:, t]`` is what the model inside makes of step t's action. That model is an ordinary one with twice as many
    steps and one action more: the latent's token comes with the action "none yet", the action's token with a latent of
    zeros. ``max_length`` and ``capacity`` count steps, each of them two tokens of the model inside.

    model: a sequence model for ``num_actions + 1`` actions.  num_actions: A.  Action vectors get one more number, which
    is 1 for "none yet".
    """

    def __init__(self, model: Any, num_actions: int) -> None:
        super().__init__()
        self.model, self.no_action = model, num_actions
        self.hidden_dim: int = model.hidden_dim
        self.carries: bool = getattr(model, "carries", False)
        self.max_length: int | None = None if model.max_length is None else model.max_length // 2

    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """latent: (B, T, Z).  action: (B, T) int64, or (B, T, A) float32.  is_first: (B, T) bool.

        Returns hidden (B, T, D).
        """
        return self.model(*self._tokens(latent, action, is_first))[:, 1::2]

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, Any]:
        """As ``forward``, with the memory of the model inside."""
        hidden, memory = self.model.prefill(*self._tokens(latent, action, is_first), 2 * capacity)
        return hidden[:, 1::2], memory

    def empty(self, rows: int, capacity: int) -> Any:
        """A memory of ``rows`` trajectories that have not begun, with room for ``capacity`` steps."""
        return self.model.empty(rows, 2 * capacity)

    def step(self, latent: Tensor, action: Tensor, memory: Any) -> Tensor:
        """latent: (N, Z).  action: (N,) int64, or (N, A) float32.  Returns hidden (N, D).

        The memory moves on by one step.
        """
        none, action = self._actions(action)
        self.model.step(latent, none, memory)
        return self.model.step(torch.zeros_like(latent), action, memory)

    def _tokens(self, latent: Tensor, action: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two tokens of each step, one after the other; an episode starts with the first one."""
        latents = torch.stack([latent, torch.zeros_like(latent)], dim=2)
        actions = torch.stack(self._actions(action), dim=2)
        starts = F.pad(is_first.unsqueeze(-1), (0, 1))
        return latents.flatten(1, 2), actions.flatten(1, 2), starts.flatten(1, 2)

    def _actions(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """ "None yet", and the action, as the model inside takes them."""
        if not action.is_floating_point():
            return torch.full_like(action, self.no_action), action
        return F.pad(torch.zeros_like(action), (0, 1), value=1.0), F.pad(action, (0, 1))


def build_merged(
    node: str | Mapping[str, Any], latent_dim: int, action_space: ActionSpace, hidden_dim: int, *, key: str
) -> Any:
    """The sequence model that a node describes, which reads a step as one token."""
    surroundings = latent_dim, action_space.width, hidden_dim
    return build_part("sequence_model", node, *surroundings, key=key, actions=action_space)


def build_separate(
    node: str | Mapping[str, Any], latent_dim: int, action_space: ActionSpace, hidden_dim: int, *, key: str
) -> SeparateTokens:
    """The sequence model that a node describes, reading two tokens a step; its ``max_length`` stays one in steps."""
    filled = fill("sequence_model", node, key)
    if isinstance(filled.get("max_length"), int):
        filled["max_length"] *= 2
    width = action_space.width
    model = build_part("sequence_model", filled, latent_dim, width + 1, hidden_dim, key=key, actions=action_space)
    return SeparateTokens(model, width)
