"""A small vision Transformer as an encoder."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from stormlit.errors import ConfigError
from stormlit.registry import Option, register


@register("encoder", "patches")
class PatchEncoder(nn.Module):
    """Patches of the image as tokens with learned positions, pre-norm attention between them (ViT, Dosovitskiy 2021).

    obs_shape: (C, Y, X).  The embedding is all the tokens, side by side.

    When to use: to ask what attention within a frame is worth. Objects smaller than a patch are harder to tell apart
    for it.
    """

    def __init__(
        self,
        obs_shape: tuple[int, int, int],
        *,
        patch: Annotated[int, Option("side of a patch, in pixels", low=1)] = 8,
        width: Annotated[int, Option("width of a patch's token", low=1)] = 64,
        num_layers: Annotated[int, Option("Transformer layers", low=0)] = 2,
        num_heads: Annotated[int, Option("attention heads", low=1)] = 4,
    ) -> None:
        super().__init__()
        channels, rows, columns = obs_shape
        if rows % patch or columns % patch:
            raise ConfigError(
                f"env.size={rows if rows == columns else f'{rows}x{columns}'} is not a multiple of "
                f"world_model.encoder.patch={patch}"
            )
        if width % num_heads:
            raise ConfigError(
                f"world_model.encoder.width={width} is not a multiple of world_model.encoder.num_heads={num_heads}"
            )
        count = (rows // patch) * (columns // patch)
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(count, width))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(num_layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.embed_dim = count * width

    def forward(self, obs: Tensor) -> Tensor:
        """obs: (M, C, Y, X) in [0, 1].  Returns (M, E)."""
        tokens = self.patches(obs).flatten(2).transpose(1, 2) + self.positions
        return self.norm(self.layers(tokens)).flatten(1)
