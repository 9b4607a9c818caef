"""What the policy and the critic see of the world model's state: a part chosen by name.

These accept sparse latents, of which they make sparse states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stormlit.data import OneHots
from stormlit.registry import register


@register("agent_state", "latent")
class LatentState(nn.Module):
    """The current frame's latent z alone.

    latent_dim: Z.  hidden_dim: D.

    When to use: where a single frame shows all that counts, or to ask what the memory adds. The sequence model then
    only serves the dreams.
    """

    accepts_sparse = True

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = latent_dim

    def forward(self, latent: Tensor | OneHots, hidden: Tensor) -> Tensor | OneHots:
        """latent: (..., Z), or one-hots.  hidden: (..., D).  Returns (..., F)."""
        return latent


@register("agent_state", "hidden")
class HiddenState(nn.Module):
    """The memory h of everything before the current frame, alone.

    latent_dim: Z.  hidden_dim: D.

    When to use: to ask what the memory alone is worth. Such an agent acts before it has seen the frame.
    """

    accepts_sparse = True

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = hidden_dim

    def forward(self, latent: Tensor | OneHots, hidden: Tensor) -> Tensor:
        """latent: (..., Z), or one-hots.  hidden: (..., D).  Returns (..., F)."""
        return hidden


@register("agent_state", "both")
class LatentAndHiddenState(nn.Module):
    """[z, h], as in the paper.

    latent_dim: Z.  hidden_dim: D.

    When to use: the default. The agent sees the current frame and what came before it.
    """

    accepts_sparse = True

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = latent_dim + hidden_dim

    def forward(self, latent: Tensor | OneHots, hidden: Tensor) -> Tensor | OneHots:
        """latent: (..., Z), or one-hots.  hidden: (..., D).  Returns (..., F)."""
        if isinstance(latent, OneHots):
            return OneHots(latent.positions, hidden)
        return torch.cat([latent, hidden.to(latent.dtype)], dim=-1)
