"""The geometry every convolutional encoder and decoder shares: halve the image until ``final_width`` is left."""

from __future__ import annotations

from typing import Annotated

from stormlit.errors import ConfigError
from stormlit.registry import Option

StemChannels = Annotated[int, Option("channels of the largest feature map, doubling at each halving", low=1)]
FinalWidth = Annotated[int, Option("side of the smallest feature map, in pixels", low=1)]


def stage_channels(obs_shape: tuple[int, int, int], stem_channels: int, final_width: int) -> list[int]:
    """Channels after each halving, doubling from ``stem_channels``.

    obs_shape: (C, Y, X).  Raises ``ConfigError`` unless the image is square and ``final_width`` times a power of two.

    >>> stage_channels((3, 64, 64), 32, 4)
    [32, 64, 128, 256]
    """
    _, rows, columns = obs_shape
    halvings = max(rows // final_width, 1).bit_length() - 1
    if rows != columns or halvings < 1 or final_width * 2**halvings != rows:
        raise ConfigError(
            f"env.size={rows} cannot be halved down to final_width={final_width}: "
            f"choose a size of {final_width * 4}, {final_width * 8} or {final_width * 16} pixels"
        )
    return [stem_channels * 2**i for i in range(halvings)]
