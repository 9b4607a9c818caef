"""Encoders and decoders of vectors, such as the positions and speeds that a control task shows."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from stormlit.nn.heads import MLPHead
from stormlit.registry import Option, register

HiddenDim = Annotated[int, Option("width of the hidden layers", 1, 10**5)]
NumLayers = Annotated[int, Option("hidden layers", low=0)]


@register("vector_encoder", "mlp")
class MLPEncoder(nn.Module):
    """``num_layers`` times Linear - LayerNorm - ReLU, then a linear layer to as many features (after DreamerV3).

    vector_dim: V.

    When to use: it is the only one bundled.
    """

    def __init__(self, vector_dim: int, *, hidden_dim: HiddenDim = 256, num_layers: NumLayers = 2) -> None:
        super().__init__()
        self.embed_dim = hidden_dim
        self.layers = MLPHead(vector_dim, hidden_dim, hidden_dim, num_layers=num_layers)

    def forward(self, vector: Tensor) -> Tensor:
        """vector: (M, V) in symlog.  Returns (M, E)."""
        return self.layers(vector)


@register("vector_decoder", "mlp")
class MLPDecoder(nn.Module):
    """``num_layers`` times Linear - LayerNorm - ReLU, then a linear layer to the vector.

    latent_dim: Z.  vector_dim: V.

    When to use: it is the only one bundled.
    """

    def __init__(
        self, latent_dim: int, vector_dim: int, *, hidden_dim: HiddenDim = 256, num_layers: NumLayers = 2
    ) -> None:
        super().__init__()
        self.layers = MLPHead(latent_dim, vector_dim, hidden_dim, num_layers=num_layers)

    def forward(self, latent: Tensor) -> Tensor:
        """latent: (M, Z).  Returns (M, V) in symlog."""
        return self.layers(latent)
