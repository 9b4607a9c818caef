"""What the policy and the critic see of the world model's state: a part chosen by name.

Latents come dense, (..., Z) float32, or sparse, (..., G) int64 (see ``types``); what is made of sparse ones is sparse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stormlit.nn.fast.sparse import SparseState
from stormlit.registry import register


@register("agent_state", "latent")
class LatentState(nn.Module):
    """The current frame's latent z alone.  latent_dim: Z.  hidden_dim: D."""

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = latent_dim

    def forward(self, latent: Tensor, hidden: Tensor) -> Tensor | SparseState:
        """latent: (..., Z) or (..., G).  hidden: (..., D).  Returns (..., F)."""
        return latent if latent.is_floating_point() else SparseState(latent, None)


@register("agent_state", "hidden")
class HiddenState(nn.Module):
    """The memory h of everything before the current frame, alone.  latent_dim: Z.  hidden_dim: D."""

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = hidden_dim

    def forward(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """latent: (..., Z) or (..., G).  hidden: (..., D).  Returns (..., F)."""
        return hidden


@register("agent_state", "both")
class LatentAndHiddenState(nn.Module):
    """[z, h], as in the paper.  latent_dim: Z.  hidden_dim: D."""

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = latent_dim + hidden_dim

    def forward(self, latent: Tensor, hidden: Tensor) -> Tensor | SparseState:
        """latent: (..., Z) or (..., G).  hidden: (..., D).  Returns (..., F)."""
        if not latent.is_floating_point():
            return SparseState(latent, hidden)
        return torch.cat([latent, hidden.to(latent.dtype)], dim=-1)
