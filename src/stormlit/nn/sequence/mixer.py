"""The token of a step: latent and action in one vector."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.data import OneHots
from stormlit.nn.sparse import InputLinear


class ActionMixer(nn.Module):
    """``e_t = m(z_t, a_t)``, STORM's equation 2: Linear - LayerNorm - ReLU - Linear - LayerNorm of z_t and one-hot a_t.

    An action that is not one of a few comes as a vector in place of the one-hot.

    latent_dim: Z.  num_actions: A.  hidden_dim: D.
    """

    def __init__(self, latent_dim: int, num_actions: int, hidden_dim: int) -> None:
        super().__init__()
        self.latent = InputLinear(latent_dim, hidden_dim)
        # A row of the first layer's weight per action: the same sum as concatenating a one-hot action.
        self.action = InputLinear(num_actions, hidden_dim)
        # One layer with Z + A inputs would start with this bound; two separate ones would not.
        bound = (latent_dim + num_actions) ** -0.5
        for part in (self.latent, self.action):
            nn.init.uniform_(part.weight, -bound, bound)
        self.layers = nn.Sequential(
            nn.LayerNorm(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim, bias=False),
            nn.LayerNorm(hidden_dim),
        )

    def forward(self, latent: Tensor | OneHots, action: Tensor) -> Tensor:
        """latent: (..., Z), or one-hots.  action: (...,) int64, or (..., A) float32.  Returns (..., D)."""
        if action.is_floating_point():
            return self.layers(self.latent(latent) + self.action(action))
        return self.layers(self.latent(latent) + F.embedding(action, self.action.weight.t()))
