"""A residual encoder and decoder: the same halvings as the paper's, with residual blocks at every scale."""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.nn.autocast import training_memory_format
from stormlit.nn.encoders.cnn import BatchNorm
from stormlit.nn.encoders.image import FinalWidth, StemChannels, stage_channels, stage_sizes
from stormlit.registry import Option, register

Blocks = Annotated[int, Option("residual blocks at each scale", low=0)]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around an identity path.  (M, C, Y, X) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            BatchNorm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            BatchNorm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


@register("encoder", "resnet")
class ResidualEncoder(nn.Module):
    """At each scale a 3x3 stride-2 convolution, then residual blocks.

    obs_shape: (C, Y, X).

    When to use: where the frames are the difficulty (many objects, real pictures) and a multiple of the cost is no
    matter.
    """

    def __init__(
        self,
        obs_shape: tuple[int, int, int],
        *,
        stem_channels: StemChannels = 32,
        final_width: FinalWidth = 4,
        blocks: Blocks = 1,
    ) -> None:
        super().__init__()
        channels = stage_channels(obs_shape, stem_channels, final_width)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip([obs_shape[0], *channels], channels, strict=False):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=False), BatchNorm(fan_out)]
            layers += [nn.ReLU(inplace=True), *(ResidualBlock(fan_out) for _ in range(blocks))]
        self.layers = nn.Sequential(*layers)
        self.embed_dim = channels[-1] * math.prod(stage_sizes(obs_shape, final_width, round_up=True)[-1])

    def forward(self, obs: Tensor) -> Tensor:
        """obs: (M, C, Y, X) in [0, 1].  Returns (M, E)."""
        return self.layers(obs).flatten(1)


@register("decoder", "resnet")
class ResidualDecoder(nn.Module):
    """At each scale residual blocks, then a doubling by nearest neighbour and a 3x3 convolution.

    latent_dim: Z.  obs_shape: (C, Y, X).

    When to use: beside the ``resnet`` encoder. Doubling by nearest neighbour leaves no checkerboard.
    """

    def __init__(
        self,
        latent_dim: int,
        obs_shape: tuple[int, int, int],
        *,
        stem_channels: StemChannels = 32,
        final_width: FinalWidth = 4,
        blocks: Blocks = 1,
    ) -> None:
        super().__init__()
        channels = stage_channels(obs_shape, stem_channels, final_width)[::-1]
        smallest, *larger = stage_sizes(obs_shape, final_width, round_up=True)[::-1]
        self.map_shape = (channels[0], *smallest)
        self.project = nn.Linear(latent_dim, math.prod(self.map_shape), bias=False)
        layers: list[nn.Module] = [BatchNorm(channels[0]), nn.ReLU(inplace=True)]
        for fan_in, fan_out, size in zip(channels, [*channels[1:], channels[-1]], larger, strict=True):
            layers += [ResidualBlock(fan_in) for _ in range(blocks)]
            layers += [nn.Upsample(size), nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False)]
            layers += [BatchNorm(fan_out), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(channels[-1], obs_shape[0], 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """latent: (M, Z).  Returns (M, C, Y, X)."""
        first_map = self.project(latent).unflatten(1, self.map_shape)
        return self.layers(first_map.contiguous(memory_format=training_memory_format(latent.device)))
