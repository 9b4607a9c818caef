"""The geometry every convolutional encoder and decoder shares: halve the image until about ``final_width`` is left."""

from __future__ import annotations

from typing import Annotated

from stormlit.errors import ConfigError
from stormlit.registry import Option

StemChannels = Annotated[int, Option("channels of the largest feature map, doubling at each halving", low=1)]
FinalWidth = Annotated[
    int, Option("shortest side of the smallest feature map, in pixels; halving stops before it gets shorter", low=1)
]


def stage_channels(obs_shape: tuple[int, int, int], stem_channels: int, final_width: int) -> list[int]:
    """Channels after each halving, doubling from ``stem_channels``.

    obs_shape: (C, Y, X).  Raises ``ConfigError`` for an image that cannot be halved once.

    >>> stage_channels((3, 64, 64), 32, 4), stage_channels((3, 96, 96), 32, 4)
    ([32, 64, 128, 256], [32, 64, 128, 256])
    """
    _, rows, columns = obs_shape
    halvings = (min(rows, columns) // final_width).bit_length() - 1
    if halvings < 1:
        size = rows if rows == columns else f"{rows}x{columns}"
        raise ConfigError(
            f"env.size={size} cannot be halved down to final_width={final_width}: "
            f"choose a size of at least {2 * final_width} pixels"
        )
    return [stem_channels * 2**i for i in range(halvings)]


def stage_sizes(obs_shape: tuple[int, int, int], final_width: int, *, round_up: bool = False) -> list[tuple[int, int]]:
    """(Y, X) of the image and after each halving; the half of an odd side is rounded down, or up.

    obs_shape: (C, Y, X).  Raises ``ConfigError`` for an image that cannot be halved once.

    >>> stage_sizes((3, 84, 84), 4)
    [(84, 84), (42, 42), (21, 21), (10, 10), (5, 5)]
    >>> stage_sizes((3, 84, 84), 4, round_up=True)[-2:]
    [(11, 11), (6, 6)]
    """
    _, rows, columns = obs_shape
    sizes = [(rows, columns)]
    for _ in stage_channels(obs_shape, 1, final_width):
        rows, columns = (rows + round_up) // 2, (columns + round_up) // 2
        sizes.append((rows, columns))
    return sizes
