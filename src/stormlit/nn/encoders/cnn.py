"""The paper's convolutional encoder and decoder (STORM, tables 5 and 6)."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.nn.autocast import training_memory_format
from stormlit.nn.encoders.image import FinalWidth, StemChannels, stage_channels, stage_sizes
from stormlit.registry import Option, register


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` without its count of batches, which is used without a fixed momentum only."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (M, C, Y, X).  Returns the same shape."""
        assert self.momentum is not None
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each place of a feature map, as in DreamerV3."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (M, C, Y, X).  Returns the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, type[BatchNorm] | type[ChannelNorm]] = {"batch": BatchNorm, "layer": ChannelNorm}
Norm = Annotated[
    Literal["batch", "layer"], Option("normalisation: over the batch (the paper), or over the channels of each place")
]


@register("encoder", "cnn")
class ConvEncoder(nn.Module):
    """4x4 stride-2 convolutions with a norm and ReLU, channels doubling, until ``final_width`` pixels are left.

    Of an odd side the half is rounded down: no pixel is left out, as the kernels overlap.

    obs_shape: (C, Y, X).

    When to use: the default. It sees small details, as Atari's, at little cost.
    """

    def __init__(
        self,
        obs_shape: tuple[int, int, int],
        *,
        stem_channels: StemChannels = 32,
        final_width: FinalWidth = 4,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        channels = stage_channels(obs_shape, stem_channels, final_width)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip([obs_shape[0], *channels], channels, strict=False):
            # The norm brings the bias. ReLU is not in place: on a CPU that takes longer in bfloat16.
            layers += [nn.Conv2d(fan_in, fan_out, 4, stride=2, padding=1, bias=False), NORMS[norm](fan_out)]
            layers += [nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.embed_dim = channels[-1] * math.prod(stage_sizes(obs_shape, final_width)[-1])

    def forward(self, obs: Tensor) -> Tensor:
        """obs: (M, C, Y, X) in [0, 1].  Returns (M, E)."""
        return self.layers(obs).flatten(1)


@register("decoder", "cnn")
class ConvDecoder(nn.Module):
    """The encoder's mirror: a linear layer to the smallest map, then 4x4 stride-2 transposed convolutions.

    latent_dim: Z.  obs_shape: (C, Y, X).

    When to use: the default, beside the ``cnn`` encoder.
    """

    def __init__(
        self,
        latent_dim: int,
        obs_shape: tuple[int, int, int],
        *,
        stem_channels: StemChannels = 32,
        final_width: FinalWidth = 4,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        channels = stage_channels(obs_shape, stem_channels, final_width)[::-1]
        smallest, *larger = stage_sizes(obs_shape, final_width)[::-1]
        odd = [(rows % 2, columns % 2) for rows, columns in larger]  # what doubling the size before falls short by
        self.map_shape = (channels[0], *smallest)
        self.project = nn.Linear(latent_dim, math.prod(self.map_shape), bias=False)
        layers: list[nn.Module] = [NORMS[norm](channels[0]), nn.ReLU()]
        for (fan_in, fan_out), more in zip(itertools.pairwise(channels), odd, strict=False):
            layers += [nn.ConvTranspose2d(fan_in, fan_out, 4, 2, padding=1, output_padding=more, bias=False)]
            layers += [NORMS[norm](fan_out), nn.ReLU()]
        layers += [nn.ConvTranspose2d(channels[-1], obs_shape[0], 4, 2, padding=1, output_padding=odd[-1])]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """latent: (M, Z).  Returns (M, C, Y, X)."""
        first_map = self.project(latent).unflatten(1, self.map_shape)
        return self.layers(first_map.contiguous(memory_format=training_memory_format(latent.device)))
